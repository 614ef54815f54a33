package snapshot

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
)

func TestParseName(t *testing.T) {
	for text, ok := range map[string]bool{
		"ready": true, "a": true, "0": true, "node-22.1_x": true, strings.Repeat("a", 64): true,
		"": false, ".": false, "..": false, ".making-x": false, "-x": false, "_x": false, "a/b": false, "../a": false, "A": false, "a b": false, "a\n": false, "é": false, "a\x00": false, strings.Repeat("a", 65): false,
	} {
		name, err := ParseName(text)
		if (err == nil) != ok || ok && string(name) != text || !ok && fault.KindOf(err) != fault.Invalid {
			t.Errorf("%q: %q, %v", text, name, err)
		}
	}
}

// place makes a snapshot that may become whole, and whole if it is given a name.
func place(t *testing.T, s *Store, about Snapshot, whole bool) (dir string) {
	t.Helper()
	dir, err := s.Begin(about)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ram"), make([]byte, 10000), 0o600); err != nil {
		t.Fatal(err)
	}
	if whole {
		if err := os.Rename(dir, s.Dir(about.Name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestStore(t *testing.T) {
	state := t.TempDir()
	s, err := Open(state)
	if err != nil {
		t.Fatal(err)
	}
	place(t, s, Snapshot{Name: "ready", Run: "aaaaaaaa", Command: []string{"make"}, Mounts: []Mount{{"/a", "/b"}}}, true)
	half := place(t, s, Snapshot{Name: "half", Run: "bbbbbbbb"}, false)
	dead := place(t, s, Snapshot{Name: "dead", Run: "cccccccc"}, false)
	got, err := s.Find("ready")
	if err != nil || got.Run != "aaaaaaaa" || got.Command[0] != "make" || got.Mounts[0].Target != "/b" || got.Size < 10000 || got.Made.IsZero() {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := s.Begin(Snapshot{Name: "ready", Run: "dddddddd"}); fault.KindOf(err) != fault.Conflict || !strings.Contains(fault.HintOf(err), "snapshot rm ready") {
		t.Errorf("a name that is taken: %v", err)
	}
	for _, name := range []Name{"half", "other"} {
		if _, err := s.Find(name); fault.KindOf(err) != fault.NotFound {
			t.Errorf("%s: %v", name, err)
		}
		if err := s.Remove(name); fault.KindOf(err) != fault.NotFound {
			t.Errorf("remove %s: %v", name, err)
		}
	}
	if list, err := s.List(); err != nil || len(list) != 1 || list[0].Name != "ready" {
		t.Errorf("%+v, %v", list, err)
	}
	if err := s.Sweep(func(r ident.Run) bool { return r == "bbbbbbbb" }); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(half); err != nil {
		t.Errorf("what a run that lives is making was swept: %v", err)
	}
	if _, err := os.Stat(dead); err == nil {
		t.Error("what a dead run has left is there still")
	}
	if err := s.Remove("ready"); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Join(state, "snapshots")); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestDamaged has a description that says what this version does not know, or nothing: it is listed, cannot be continued, and can be removed.
func TestDamaged(t *testing.T) {
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for name, words := range map[Name]string{"unknown": `{"name":"unknown","x":1}`, "empty": "", "long": `{"name":"` + strings.Repeat("x", maxAbout) + `"}`} {
		place(t, s, Snapshot{Name: name, Run: "aaaaaaaa"}, true)
		if err := os.WriteFile(filepath.Join(s.Dir(name), aboutName), []byte(words), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Find(name); fault.KindOf(err) != fault.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
		if list, err := s.List(); err != nil || len(list) != 1 || list[0].Name != name {
			t.Errorf("%s: list %+v, %v", name, list, err)
		}
		if err := s.Remove(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestOpenToOthers refuses a store that others can look into.
func TestOpenToOthers(t *testing.T) {
	state := t.TempDir()
	if _, err := Open(state); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(state, "snapshots"), 0o750); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(state); fault.KindOf(err) != fault.Denied || !strings.Contains(fault.HintOf(err), "chmod 700") {
		t.Errorf("others can look into it: %v", err)
	}
}
