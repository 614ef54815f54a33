package workspace

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/fault"
)

func fileNode(mode uint32) Node {
	return Node{Kind: File, Mode: mode, SHA256: strings.Repeat("0", 64)}
}

// TestHostileManifest: whatever a list says that Collect would not write, it is refused whole, before anything is applied.
func TestHostileManifest(t *testing.T) {
	dir, file, link := Node{Kind: Dir, Mode: 0o755}, fileNode(0o644), Node{Kind: Symlink, Mode: 0o777, Target: "/etc"}
	for _, tt := range []struct {
		name  string
		ok    bool
		lists []Change
	}{
		{"empty", true, nil},
		{"plain", true, []Change{{Path: "a", Now: file}, {Path: "b", Now: dir}, {Path: "b/c", Now: link}}},
		{"file in place of a directory", true, []Change{{Path: "b", Was: dir, Now: file}, {Path: "b/c", Was: file}}},
		{"odd name", true, []Change{{Path: "...", Now: file}, {Path: "..a\n\xff\x1b", Now: file}}},
		{"absolute", false, []Change{{Path: "/etc/passwd", Now: file}}},
		{"up", false, []Change{{Path: "../x", Now: file}}},
		{"up inside", false, []Change{{Path: "a/../../x", Now: file}}},
		{"only up", false, []Change{{Path: "..", Now: dir}}},
		{"dot", false, []Change{{Path: "./x", Now: file}}},
		{"empty path", false, []Change{{Path: "", Now: dir}}},
		{"empty part", false, []Change{{Path: "a//b", Now: file}}},
		{"slash at the end", false, []Change{{Path: "a/", Now: dir}}},
		{"nul", false, []Change{{Path: "a\x00b", Now: file}}},
		{"long part", false, []Change{{Path: Name(strings.Repeat("x", 256)), Now: file}}},
		{"long path", false, []Change{{Path: Name(strings.Repeat("x/", 2048)) + "x", Now: file}}},
		{"twice", false, []Change{{Path: "a", Now: file}, {Path: "a", Now: link}}},
		{"out of order", false, []Change{{Path: "b", Now: file}, {Path: "a", Now: file}}},
		{"below a new symlink", false, []Change{{Path: "a", Now: link}, {Path: "a/b", Now: file}}},
		{"below a new file", false, []Change{{Path: "a", Now: file}, {Path: "a/b", Now: dir}}},
		{"far below a symlink", false, []Change{{Path: "a", Now: link}, {Path: "a/b", Was: dir}, {Path: "a/b/c", Now: file}}},
		{"nothing to nothing", false, []Change{{Path: "a"}}},
		{"unknown kind", false, []Change{{Path: "a", Now: Node{Kind: "socket"}}}},
		{"mode bits", false, []Change{{Path: "a", Now: fileNode(0o100644)}}},
		{"no digest", false, []Change{{Path: "a", Now: Node{Kind: File}}}},
		{"digest is a path", false, []Change{{Path: "a", Now: Node{Kind: File, SHA256: "../../../../../../etc/passwd" + strings.Repeat("0", 36)}}}},
		{"negative size", false, []Change{{Path: "a", Now: Node{Kind: File, Size: -1, SHA256: strings.Repeat("0", 64)}}}},
		{"nanoseconds", false, []Change{{Path: "a", Now: Node{Kind: Dir, Nsec: 1 << 30}}}}, // UTIME_OMIT
		{"link without target", false, []Change{{Path: "a", Now: Node{Kind: Symlink}}}},
		{"nul in target", false, []Change{{Path: "a", Now: Node{Kind: Symlink, Target: "x\x00"}}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dest := filepath.Join(t.TempDir(), "c")
			writeManifestForTest(t, dest, manifest{Version: manifestVersion, Changes: tt.lists})
			c, err := Open(dest, t.TempDir())
			if (err == nil) != tt.ok {
				t.Fatalf("error = %v, want ok %t", err, tt.ok)
			}
			if err != nil && fault.KindOf(err) != fault.Invalid {
				t.Errorf("kind %s", fault.KindOf(err))
			}
			if err == nil && len(c.List()) != len(tt.lists) {
				t.Errorf("%d changes", len(c.List()))
			}
		})
	}
}

func TestManifestIsStrict(t *testing.T) {
	for text, ok := range map[string]bool{
		`{"version":1,"changes":[],"skipped":[]}`:                                                true,
		`{"version":2,"changes":[],"skipped":[]}`:                                                false,
		`{"version":1,"changes":[],"skipped":[],"extra":1}`:                                      false,
		`{"version":1,"changes":[],"skipped":[]}{}`:                                              false,
		`{"version":1,"changes":[{"path":"%61","now":{"kind":"dir","mode":0}}],"skipped":[]}`:    false, // a second spelling of "a"
		`{"version":1,"changes":[{"path":"a%2Fb","now":{"kind":"dir","mode":0}}],"skipped":[]}`:  false,
		`{"version":1,"changes":[{"path":"a%0Ab","now":{"kind":"dir","mode":0}}],"skipped":[]}`:  true,
		`{"version":1,"changes":[{"path":"a","danger":{"rule":""},"now":{"kind":"dir"}}]}`:       false,
		`{"version":1,"changes":[{"path":"a","now":{"kind":"dir","mode":0,"target":"%"}}]}`:      false,
		`{"version":1,"changes":[{"path":"a","was":{"kind":"","mode":4},"now":{"kind":"dir"}}]}`: false,
		`{"version":1,"changes":[{"path":"a","raced":true,"now":{"kind":"dir","mode":493}}]}`:    true,
		``: false,
	} {
		if _, err := readManifest(strings.NewReader(text)); (err == nil) != ok {
			t.Errorf("%s: error %v, want ok %t", text, err, ok)
		}
	}
}

func TestCompareNames(t *testing.T) {
	sorted := []Name{"a", "a/b", "a/b/c", "a\x01", "a-b", "a.b", "a0", "b"}
	shuffled := slices.Clone(sorted)
	slices.Reverse(shuffled)
	slices.SortFunc(shuffled, compareNames)
	if !slices.Equal(sorted, shuffled) {
		t.Errorf("got %q", shuffled)
	}
}

// FuzzName: every name survives its encoding, the encoding prints, and what is shown to people holds no control character.
func FuzzName(f *testing.F) {
	for _, s := range []string{"", "a/b", "%", "%41", "\xff\xfe", "a\nb", "\u202e", "é", "\x1b]0;x\a", "\ufffd", `"q"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		text, err := Name(s).MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var back Name
		if err := back.UnmarshalText(text); err != nil || string(back) != s {
			t.Fatalf("%q became %q: %v", s, back, err)
		}
		for _, shown := range []string{Name(s).String(), inert(s), string(text)} {
			if strings.ContainsFunc(shown, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0x202e }) {
				t.Fatalf("%q is shown as %q", s, shown)
			}
		}
	})
}

// FuzzManifest: what is accepted is inside the workspace, sorted, and never below something that is no directory.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"version":1,"changes":[{"path":"a","now":{"kind":"dir","mode":493,"mtime":1}},{"path":"a/b","was":{"kind":"symlink","mode":511,"target":"x","mtime":0}}],"skipped":[]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := readManifest(bytes.NewReader(data))
		if err != nil {
			return
		}
		solid := map[Name]bool{}
		for i, c := range m.Changes {
			if !filepath.IsLocal(string(c.Path)) || filepath.Clean(string(c.Path)) != string(c.Path) {
				t.Fatalf("accepted %q", c.Path)
			}
			if i > 0 && compareNames(m.Changes[i-1].Path, c.Path) >= 0 {
				t.Fatal("not sorted")
			}
			for dir, _ := c.Path.split(); dir != "" && c.Now.Kind != Absent; dir, _ = dir.split() {
				if solid[dir] {
					t.Fatalf("%q is below no directory", c.Path)
				}
			}
			solid[c.Path] = c.Now.Kind != Dir
		}
		judge(m.Changes, t.TempDir(), m.Unprotected)
		if _, err := json.Marshal(m); err != nil {
			t.Fatal(err)
		}
	})
}
