package workspace

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDiff(t *testing.T) {
	c := collect(t,
		spec{"edited": "file 0644 one\ntwo\nthree\n", "gone": "file 0600 bye\n", "bin": "file 0644 \x00a", "l": "-> old", "mode": "file 0644 m", "dir": "dir", "moved on": "file 0644 a\n", "done": "file 0644 a\n"},
		spec{"edited": "file 0644 one\n2\x1b[2J\u202e\nthree", "gone": "whiteout", "bin": "file 0644 \x00bb", "l": "-> new\nline", "mode": "file 0755 m", "dir": "file 0644 flat\n",
			"new\x1b]0;evil\a": "file 4755 x\r\n", "CLAUDE.md": "file 0644 obey\n", "p": "fifo", "empty/dir": "dir 0711", "moved on": "file 0644 b\n", "done": "file 0644 b\n"})
	must(t, os.WriteFile(filepath.Join(c.ws, "moved on"), []byte("c\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(c.ws, "done"), []byte("b\n"), 0o644))
	var b strings.Builder
	must(t, c.Diff(t.Context(), &b, DiffOptions{}))
	got := b.String()
	for _, want := range []string{
		"--- a/edited\n+++ b/edited\n@@ -1,3 +1,3 @@\n one\n-two\n-three\n+2\\x1b[2J\\u{202e}\n+three\n\\ No newline at end of file\n",
		"diff --cofferdam a/gone b/gone\ndeleted file mode 100600\n--- a/gone\n+++ /dev/null\n@@ -1,1 +0,0 @@\n-bye\n",
		"Binary or large files differ: 2 bytes, then 3 bytes\n",
		"-old\n\\ No newline at end of file\n+new\n+line\n",
		"diff --cofferdam a/mode b/mode\nold mode 100644\nnew mode 100755\n",
		"diff --cofferdam a/dir b/dir\ndirectory becomes file\n",
		`"b/new\x1b]0;evil\a"` + "\n# special mode bits 4000 are not applied without --include-dangerous\nnew file mode 104755\n",
		"+x\\x0d\n",
		"new directory mode 040711\n",
		"# the workspace has changed since the run ended",
		"diff --cofferdam a/done b/done\n# the workspace holds this already\n",
		"\n# Set apart: not applied without --include-dangerous\ndiff --cofferdam a/CLAUDE.md b/CLAUDE.md\n# set apart (claude.md): instructs",
		"\n# Not collected\np: a named pipe is not carried out of a sandbox\n",
	} {
		want = strings.ReplaceAll(want, "directory", "dir")
		if !strings.Contains(strings.ReplaceAll(got, "directory", "dir"), want) {
			t.Errorf("missing %q", want)
		}
	}
	if strings.ContainsFunc(got, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' || r == 0x202e }) {
		t.Error("the diff holds control characters")
	}
	if t.Failed() {
		t.Log(got)
	}
	b.Reset()
	must(t, c.Diff(t.Context(), &b, DiffOptions{Paths: []Name{"mode"}, Colour: Painted}))
	if want := "\x1b[1mdiff --cofferdam a/mode b/mode\x1b[m\n\x1b[1mold mode 100644\x1b[m\n\x1b[1mnew mode 100755\x1b[m\n"; b.String() != want {
		t.Errorf("got %q", b.String())
	}
}
