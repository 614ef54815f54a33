package receipt

import (
	"errors"
	"slices"
	"testing"
	"time"
)

// TestItems holds what is said in short to what was found: only what was looked for and not found is gone.
func TestItems(t *testing.T) {
	items := []Item{
		Looked("processes", "looked at", nil), Looked("cable", "asked for", errors.New("still there")), Unobserved("memory", "nothing tells"), Left("changes", "/somewhere"), {What: "nothing", How: "said"},
	}
	if got := Names(items); !slices.Equal(got, []string{"processes"}) {
		t.Errorf("gone: %q", got)
	}
	if got := Problems(items); !slices.Equal(got, []string{"cable: still there"}) {
		t.Errorf("problems: %q", got)
	}
	if got := Words(items); got != "1 gone, 1 remains, 1 not observed, 1 kept" {
		t.Errorf("words: %q", got)
	}
	for _, i := range items[:4] {
		if age := time.Since(i.At); age < 0 || age > time.Minute || i.At.Location() != time.UTC {
			t.Errorf("%s at %v", i.What, i.At)
		}
	}
	if Names(nil) != nil || Problems(nil) != nil || Words(nil) != "" {
		t.Error("an empty receipt says something")
	}
}
