package workspace

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
)

func TestApplyConflicts(t *testing.T) {
	lower := spec{"f": "file 0644 old", "d/in": "file 0644 in", "l": "-> a", "gone": "file 0644 x"}
	upper := spec{"f": "file 0644 new", "d": "whiteout", "l": "-> b", "new/x": "file 0644 n", "gone": "whiteout"}
	for _, tt := range []struct {
		name, conflict string
		change         func(ws string) error
	}{
		{"nothing changed", "", func(string) error { return nil }},
		{"something else changed", "", func(ws string) error { return os.WriteFile(ws+"/other", nil, 0o644) }},
		{"same change made by hand", "", func(ws string) error { return os.WriteFile(ws+"/f", []byte("new"), 0o644) }},
		{"deleted by hand", "", func(ws string) error { return os.Remove(ws + "/gone") }},
		{"edited", "f", func(ws string) error { return os.WriteFile(ws+"/f", []byte("mine"), 0o644) }},
		{"edited, same size", "f", func(ws string) error { return os.WriteFile(ws+"/f", []byte("0ld"), 0o644) }},
		{"mode changed", "f", func(ws string) error { return os.Chmod(ws+"/f", 0o600) }},
		{"removed", "f", func(ws string) error { return os.Remove(ws + "/f") }},
		{"became a directory", "f", func(ws string) error { return errors.Join(os.Remove(ws+"/f"), os.Mkdir(ws+"/f", 0o755)) }},
		{"became a pipe", "f", func(ws string) error { return errors.Join(os.Remove(ws+"/f"), unix.Mkfifo(ws+"/f", 0o644)) }},
		{"became a symlink", "f", func(ws string) error { return errors.Join(os.Remove(ws+"/f"), os.Symlink("/etc/passwd", ws+"/f")) }},
		{"link moved", "l", func(ws string) error { return errors.Join(os.Remove(ws+"/l"), os.Symlink("c", ws+"/l")) }},
		{"file added to a directory that goes", "d", func(ws string) error { return os.WriteFile(ws+"/d/mine", nil, 0o644) }},
		{"new path taken by a symlink", "new", func(ws string) error { return os.Symlink("/tmp", ws+"/new") }},
		{"deletion of an edited file", "gone", func(ws string) error { return os.WriteFile(ws+"/gone", []byte("y"), 0o644) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := collect(t, lower, upper)
			must(t, tt.change(c.ws))
			before := snapshot(t, c.ws)
			r, err := c.Apply(t.Context(), ApplyOptions{})
			if tt.conflict == "" {
				must(t, err)
				return
			}
			if fault.KindOf(err) != fault.Conflict || len(r.Conflicts) == 0 || string(r.Conflicts[0].Path) != tt.conflict {
				t.Fatalf("conflicts %v, error %v, want one at %s", r.Conflicts, err, tt.conflict)
			}
			if diff := cmp.Diff(before, snapshot(t, c.ws)); diff != "" {
				t.Errorf("the workspace changed:\n%s", diff)
			}
			if _, err := c.Apply(t.Context(), ApplyOptions{Paths: []Name{"new"}}); (err == nil) == (tt.conflict == "new") {
				t.Errorf("apply of another path: %v", err)
			}
		})
	}
}

func TestApplyForce(t *testing.T) {
	c := collect(t, spec{"f": "file 0644 old", "g": "file 0644 old"}, spec{"f": "file 0644 new", "g": "whiteout"})
	must(t, os.WriteFile(filepath.Join(c.ws, "f"), []byte("mine"), 0o600))
	must(t, os.Remove(filepath.Join(c.ws, "g")))
	must(t, os.Symlink("/etc/passwd", filepath.Join(c.ws, "g")))
	r := apply(t, c, ApplyOptions{Overwrite: OverwriteConflicts})
	if diff := cmp.Diff(spec{"f": "file 0644 new"}, snapshot(t, c.ws)); diff != "" || len(r.Conflicts) != 2 {
		t.Errorf("conflicts %v\n%s", r.Conflicts, diff)
	}
}

func TestApplyParts(t *testing.T) {
	lower := spec{"a": "file 0644 a", "d/x": "file 0644 x", "swap/in": "file 0644 i"}
	upper := spec{
		"a": "file 0644 b", "d/x": "whiteout", "n/m/f": "file 0644 f", "n/g": "file 0644 g", "swap": "file 0644 s",
		".envrc": "file 0644 evil", "su": "file 4755 su", "p/.claude/settings.json": "file 0644 {}", "p/ok": "file 0644 ok",
	}
	for _, tt := range []struct {
		name string
		o    ApplyOptions
		want spec
	}{
		{"one file", ApplyOptions{Paths: []Name{"a"}}, spec{"a": "file 0644 b", "d": "dir", "d/x": "file 0644 x", "swap": "dir", "swap/in": "file 0644 i"}},
		{"file in new directories", ApplyOptions{Paths: []Name{"n/m/f"}}, spec{
			"a": "file 0644 a", "d": "dir", "d/x": "file 0644 x", "swap": "dir", "swap/in": "file 0644 i", "n": "dir", "n/m": "dir", "n/m/f": "file 0644 f"}},
		{"dry run", ApplyOptions{DryRun: true, Dangerous: IncludeDangerous}, spec{"a": "file 0644 a", "d": "dir", "d/x": "file 0644 x", "swap": "dir", "swap/in": "file 0644 i"}},
		{"all but dangerous", ApplyOptions{}, spec{
			"a": "file 0644 b", "d": "dir", "n": "dir", "n/m": "dir", "n/m/f": "file 0644 f", "n/g": "file 0644 g", "swap": "file 0644 s",
			"su": "file 0755 su", "p": "dir", "p/ok": "file 0644 ok"}},
		{"dangerous named without the flag", ApplyOptions{Paths: []Name{".envrc"}}, spec{"a": "file 0644 a", "d": "dir", "d/x": "file 0644 x", "swap": "dir", "swap/in": "file 0644 i"}},
		{"dangerous by name", ApplyOptions{Paths: []Name{".envrc", "su"}, Dangerous: IncludeDangerous}, spec{
			".envrc": "file 0644 evil", "su": "file 4755 su", "a": "file 0644 a", "d": "dir", "d/x": "file 0644 x", "swap": "dir", "swap/in": "file 0644 i"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := collect(t, lower, upper)
			apply(t, c, tt.o)
			if diff := cmp.Diff(tt.want, snapshot(t, c.ws)); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("unknown path", func(t *testing.T) {
		c := collect(t, lower, upper)
		if _, err := c.Apply(t.Context(), ApplyOptions{Paths: []Name{"nope"}}); fault.KindOf(err) != fault.NotFound {
			t.Errorf("error = %v", err)
		}
	})
}

// TestApplyKeepsWhatHoldsDangerous: a directory goes only with everything in it.
func TestApplyKeepsWhatHoldsDangerous(t *testing.T) {
	c := collect(t, spec{"p/CLAUDE.md": "file 0644 rules", "p/x": "file 0644 x"}, spec{"p": "-> elsewhere"})
	r := apply(t, c, ApplyOptions{})
	want := spec{"p": "dir", "p/CLAUDE.md": "file 0644 rules"}
	if diff := cmp.Diff(want, snapshot(t, c.ws)); diff != "" || len(r.Kept) != 1 || r.Kept[0].Path != "p" {
		t.Errorf("kept %v\n%s", r.Kept, diff)
	}
}

func TestApplyKeepsTimesAndModes(t *testing.T) {
	dir := t.TempDir()
	ws, up := filepath.Join(dir, "ws"), filepath.Join(dir, "up")
	must(t, os.Mkdir(ws, 0o755))
	spec{"d": "dir 0500", "d/f": "file 0400 x", "l": "-> d/f"}.build(t, up)
	when := time.Unix(1_000_000_000, 123_456_789)
	for _, p := range []string{"d/f", "d"} {
		must(t, os.Chtimes(filepath.Join(up, p), when, when))
	}
	far := []unix.Timespec{{}, {Sec: 1 << 40, Nsec: 5}} // beyond what a calendar can print
	_ = unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(up, "l"), far, unix.AT_SYMLINK_NOFOLLOW)
	c := collectFrom(t, ws, up, filepath.Join(dir, "c"), CollectOptions{})
	apply(t, c, ApplyOptions{})
	for _, p := range []string{"d/f", "d"} {
		info, err := os.Stat(filepath.Join(ws, p))
		must(t, err)
		if !info.ModTime().Equal(when) {
			t.Errorf("%s: time %s", p, info.ModTime())
		}
	}
	if diff := cmp.Diff(spec{"d": "dir 0500", "d/f": "file 0400 x", "l": "-> d/f"}, snapshot(t, ws)); diff != "" {
		t.Error(diff)
	}
	must(t, os.Chmod(filepath.Join(ws, "d"), 0o700))
	must(t, os.Chmod(filepath.Join(up, "d"), 0o700))
}

// TestWithoutPermissions: what its owner closed to himself is collected and applied all the same by that owner, and closed again afterwards.
func TestWithoutPermissions(t *testing.T) {
	if !asUser(t) {
		return
	}
	c := collect(t,
		spec{"closed/keep": "file 0644 k", "closed/edit": "file 0400 old", "closed/gone": "file 0400 g", "closed": "dir 0500", "tree/a/b": "file 0444 b", "tree/a": "dir 0500", "tree": "dir 0500"},
		spec{"closed/edit": "file 0000 new", "closed/gone": "whiteout", "closed/add": "file 0644 a", "closed": "dir 0500", "tree": "whiteout",
			"new/sub/f": "file 0000 f", "new/sub": "dir 0000", "new": "dir 0100"})
	if len(c.Skipped()) != 0 {
		t.Errorf("skipped %v", c.Skipped())
	}
	apply(t, c, ApplyOptions{})
	for _, one := range []struct { // outer ones first: each is opened for the next
		path string
		want uint32
	}{{"closed", 0o500}, {"closed/edit", 0}, {"closed/add", 0o644}, {"new", 0o100}, {"new/sub", 0}, {"new/sub/f", 0}} {
		path, want := one.path, one.want
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(c.ws, path), &st))
		if st.Mode&modeBits != want {
			t.Errorf("%s has mode %04o, want %04o", path, st.Mode&modeBits, want)
		}
		must(t, os.Chmod(filepath.Join(c.ws, path), 0o700|os.FileMode(want)))
	}
	if diff := cmp.Diff(spec{"closed": "dir 0700", "closed/keep": "file 0644 k", "closed/edit": "file 0700 new", "closed/add": "file 0744 a",
		"new": "dir 0700", "new/sub": "dir 0700", "new/sub/f": "file 0700 f"}, snapshot(t, c.ws)); diff != "" {
		t.Error(diff)
	}
}

// TestApplyHardLink: a file of the workspace that has another name outside is never written in place, for contents and for modes.
func TestApplyHardLink(t *testing.T) {
	c := collect(t, spec{"content": "file 0644 old", "mode": "file 0600 old"}, spec{"content": "file 0644 new", "mode": "file 0777 old"})
	outside := t.TempDir()
	for _, name := range []string{"content", "mode"} {
		must(t, os.Link(filepath.Join(c.ws, name), filepath.Join(outside, name)))
	}
	apply(t, c, ApplyOptions{})
	if diff := cmp.Diff(spec{"content": "file 0644 old", "mode": "file 0600 old"}, snapshot(t, outside)); diff != "" {
		t.Errorf("outside changed:\n%s", diff)
	}
	if diff := cmp.Diff(spec{"content": "file 0644 new", "mode": "file 0777 old"}, snapshot(t, c.ws)); diff != "" {
		t.Error(diff)
	}
}

// TestApplySymlinkedParent: a directory that became a symlink since is not gone through, not even by force.
func TestApplySymlinkedParent(t *testing.T) {
	for _, force := range []Overwrite{RefuseConflicts, OverwriteConflicts} {
		c := collect(t, spec{"d/f": "file 0644 old", "d/g": "file 0644 g"}, spec{"d/f": "file 0644 new", "d/n": "file 0644 n", "d/g": "whiteout"})
		outside := t.TempDir()
		spec{"f": "file 0644 old", "g": "file 0644 g"}.build(t, outside)
		must(t, os.RemoveAll(filepath.Join(c.ws, "d")))
		must(t, os.Symlink(outside, filepath.Join(c.ws, "d")))
		if _, err := c.Apply(t.Context(), ApplyOptions{Overwrite: force, Dangerous: IncludeDangerous}); err == nil {
			t.Error("applied through a symlink")
		}
		if diff := cmp.Diff(spec{"f": "file 0644 old", "g": "file 0644 g"}, snapshot(t, outside)); diff != "" {
			t.Errorf("outside changed:\n%s", diff)
		}
	}
}

// TestApplyRace flips a directory with a symlink to the outside while changes are applied by force. Nothing outside may change, ever.
func TestApplyRace(t *testing.T) {
	outside := t.TempDir()
	want := spec{"f": "file 0644 outside", "sub": "dir", "sub/f": "file 0644 outside", "gone": "file 0644 outside"}
	want.build(t, outside)
	upper := spec{"d/f": "file 0777 new", "d/sub/f": "file 0777 new", "d/gone": "whiteout", "d/n/m": "file 0644 n", "d/l": "-> f", "d/sub": "dir 0777"}
	c := collect(t, spec{"d/f": "file 0644 old", "d/sub/f": "file 0644 old", "d/gone": "file 0644 old", "d/sub": "dir"}, upper)
	must(t, os.Symlink(outside, filepath.Join(c.ws, "evil")))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		a, b := filepath.Join(c.ws, "d"), filepath.Join(c.ws, "evil")
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
			}
		}
	})
	applied, refused := 0, 0
	for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); {
		if _, err := c.Apply(context.Background(), ApplyOptions{Overwrite: OverwriteConflicts, Dangerous: IncludeDangerous}); err == nil {
			applied++
		} else {
			refused++
		}
	}
	close(stop)
	wg.Wait()
	if diff := cmp.Diff(want, snapshot(t, outside)); diff != "" {
		t.Errorf("outside changed:\n%s", diff)
	}
	t.Logf("%d applied, %d refused", applied, refused)
	if applied == 0 || refused == 0 {
		t.Skip("the race was not met on this machine")
	}
}

func TestApplyRefusesMount(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	c := collect(t, spec{"m/f": "file 0644 old", "ok": "file 0644 old"}, spec{"m/f": "file 0644 new", "ok": "file 0644 new"})
	outside := t.TempDir()
	spec{"f": "file 0644 old"}.build(t, outside)
	must(t, unix.Mount(outside, filepath.Join(c.ws, "m"), "", unix.MS_BIND, ""))
	defer func() { must(t, unix.Unmount(filepath.Join(c.ws, "m"), unix.MNT_DETACH)) }()
	if _, err := c.Apply(t.Context(), ApplyOptions{Overwrite: OverwriteConflicts, Paths: []Name{"m"}}); err == nil {
		t.Error("applied into a mount")
	}
	apply(t, c, ApplyOptions{Paths: []Name{"ok"}})
	if diff := cmp.Diff(spec{"f": "file 0644 old"}, snapshot(t, outside)); diff != "" {
		t.Errorf("outside changed:\n%s", diff)
	}
}

// TestApplyChecksContent: stored bytes that are not those of the digest are not applied.
func TestApplyChecksContent(t *testing.T) {
	c := collect(t, spec{}, spec{"f": "file 0644 right"})
	sum := c.List()[0].Now.SHA256
	must(t, os.WriteFile(filepath.Join(c.dest, contentDir, sum), []byte("wrong"), 0o600))
	if _, err := c.Apply(t.Context(), ApplyOptions{}); err == nil || !strings.Contains(err.Error(), "not those that were collected") {
		t.Errorf("error = %v", err)
	}
	if got := snapshot(t, c.ws); len(got) != 0 {
		t.Errorf("left behind: %v", got)
	}
}

func TestApplyRecordsFirst(t *testing.T) {
	c := collect(t, spec{}, spec{"f": "file 0644 x"})
	full := errors.New("disk full")
	_, err := c.Apply(t.Context(), ApplyOptions{Record: func(r Report) error {
		if len(r.Applied) != 1 {
			t.Errorf("told of %d changes", len(r.Applied))
		}
		return full
	}})
	if !errors.Is(err, full) || len(snapshot(t, c.ws)) != 0 {
		t.Errorf("error %v, workspace %v", err, snapshot(t, c.ws))
	}
}

func TestDrop(t *testing.T) {
	c := collect(t, spec{"f": "file 0644 a"}, spec{"f": "file 0644 b"})
	must(t, c.Drop())
	if _, err := Open(c.dest, c.ws); fault.KindOf(err) != fault.NotFound {
		t.Errorf("error = %v", err)
	}
	if diff := cmp.Diff(spec{"f": "file 0644 a"}, snapshot(t, c.ws)); diff != "" {
		t.Error(diff)
	}
}
