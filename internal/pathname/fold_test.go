package pathname

import (
	"slices"
	"testing"
)

func TestFoldSegment(t *testing.T) {
	for name, want := range map[string]string{
		"": "", "plain": "plain", ".Git": ".git", ".gi\u200ct": ".git", "\ufeff.git": ".git", "a:b": "a", ":a": ":a", "a. .": "a", "...": "...", "git~1": "git~1",
		"\u212a": "k", "\u017f": "s", "É": "é", "a:B.": "a", "\x80": "\ufffd",
	} {
		if got := FoldSegment(name); got != want {
			t.Errorf("%q is %q, want %q", name, got, want)
		}
	}
	if got := Fold("A/.GIT./b"); !slices.Equal(got, []string{"a", ".git", "b"}) {
		t.Errorf("%q", got)
	}
	if got := FoldCase("A:B.\u200c"); got != "a:b.\u200c" {
		t.Errorf("%q", got)
	}
}

// FuzzFoldSegment holds that what is folded stays as it is.
func FuzzFoldSegment(f *testing.F) {
	f.Add(".GIT: ")
	f.Fuzz(func(t *testing.T, name string) {
		folded := FoldSegment(name)
		if again := FoldSegment(folded); again != folded {
			t.Errorf("%q is %q, and that %q", name, folded, again)
		}
	})
}
