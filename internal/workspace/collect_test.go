package workspace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// TestOverlay does real work in a real overlay, collects it, applies all of it, and expects the workspace to be what the run saw.
func TestOverlay(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	ws := t.TempDir()
	spec{
		"same": "file 0644 unchanged", "touched": "file 0644 touched", "edited": "file 0644 one\ntwo\n", "gone": "file 0644 x", "script": "file 0644 #!",
		"dir/a": "file 0644 a", "dir/b": "file 0600 b", "dir/sub/c": "file 0644 c", "old/x": "file 0644 x", "old/y/z": "file 0644 z",
		"remade/keep": "file 0644 keep", "remade/lose": "file 0644 lose", "remade/sub/deep": "file 0644 deep", "wasdir/in": "file 0644 in",
		"wasfile": "file 0644 f", "link": "-> same", "link2": "-> dir", "perm": "dir 0700", "empty": "dir", "wasdir2/q": "file 0644 q",
		"bin": "file 0644 \x00\x01\xff",
	}.build(t, ws)
	merged, upper := overlay(t, ws)
	in := func(name string) string { return filepath.Join(merged, name) }
	for _, err := range []error{
		os.Chtimes(in("touched"), time.Unix(1, 0), time.Unix(1, 0)),
		os.WriteFile(in("edited"), []byte("one\n2\n"), 0o644),
		os.Remove(in("gone")),
		unix.Chmod(in("script"), 0o4755),
		os.RemoveAll(in("old")),
		os.RemoveAll(in("remade")), os.Mkdir(in("remade"), 0o755), os.WriteFile(in("remade/keep"), []byte("keep"), 0o644),
		os.Mkdir(in("remade/sub"), 0o755), os.WriteFile(in("remade/sub/deep"), []byte("other"), 0o644),
		os.RemoveAll(in("wasdir")), os.WriteFile(in("wasdir"), []byte("now a file"), 0o644),
		os.Remove(in("wasfile")), os.MkdirAll(in("wasfile/now/dir"), 0o755), os.WriteFile(in("wasfile/now/f"), nil, 0o400),
		os.Remove(in("link")), os.Symlink("../../etc/passwd", in("link")),
		os.Remove(in("link2")), os.Mkdir(in("link2"), 0o755), os.WriteFile(in("link2/f"), []byte("f"), 0o644),
		os.Chmod(in("perm"), 0o000), os.Remove(in("empty")), os.Mkdir(in("new empty"), 0o711),
		os.WriteFile(in("new\n\x1b[31m\xff"), []byte("hostile name"), 0o000),
		os.WriteFile(in("hard1"), []byte("linked"), 0o644), os.Link(in("hard1"), in("hard2")),
		os.RemoveAll(in("wasdir2")), os.Symlink("/nowhere", in("wasdir2")),
		unix.Mkfifo(in("pipe"), 0o644), os.WriteFile(in("bin"), []byte("\x00\x02\xff"), 0o644),
		os.Mkdir(in("closed"), 0o755), os.WriteFile(in("closed/f"), []byte("f"), 0o644), os.Chmod(in("closed"), 0o500),
		os.Rename(in("dir/b"), in("dir/moved")),
	} {
		must(t, err)
	}
	want := snapshot(t, merged)
	want["pipe"] = ""
	c := collectFrom(t, ws, upper, filepath.Join(t.TempDir(), "changes"), CollectOptions{})

	for _, name := range []Name{"same", "touched", "remade", "remade/keep", "remade/sub", "dir", "dir/a"} {
		if slices.ContainsFunc(c.List(), func(c Change) bool { return c.Path == name }) {
			t.Errorf("%s did not change and is listed", name)
		}
	}
	if got := fmt.Sprint(c.Skipped()); !strings.Contains(got, "pipe") || len(c.Skipped()) != 1 {
		t.Errorf("skipped = %s, want only the pipe", got)
	}
	must(t, unix.Unmount(merged, unix.MNT_DETACH))
	r := apply(t, c, ApplyOptions{Dangerous: IncludeDangerous})
	if len(r.Applied) != len(c.List()) {
		t.Errorf("applied %d of %d", len(r.Applied), len(c.List()))
	}
	got := snapshot(t, ws)
	got["pipe"] = ""
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("workspace after apply (-as the run saw it +as it is):\n%s", diff)
	}
	if again := apply(t, c, ApplyOptions{Dangerous: IncludeDangerous}); len(again.Applied) != 0 || again.Already != len(c.List()) {
		t.Errorf("second apply: %d applied, %d already", len(again.Applied), again.Already)
	}
}

// TestOverlayDirectoryRename: the kernel copies where it cannot redirect, so a rename is a deletion and an addition, and protection goes by the new name.
func TestOverlayDirectoryRename(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	ws := t.TempDir()
	spec{".git/config": "file 0644 [core]", ".git/HEAD": "file 0644 ref: x", ".git/objects/aa": "file 0644 o", ".git/refs/h": "file 0644 r", "ci/build.yml": "file 0644 x"}.build(t, ws)
	merged, upper := overlay(t, ws)
	move := func(from, to string) {
		t.Helper()
		from, to = filepath.Join(merged, from), filepath.Join(merged, to)
		if err := os.Rename(from, to); err != nil { // EXDEV, as mv sees it
			must(t, os.CopyFS(to, os.DirFS(from)))
			must(t, os.RemoveAll(from))
		}
	}
	move(".git", "moved")
	must(t, os.WriteFile(filepath.Join(merged, "moved/config"), []byte("[core] fsmonitor=evil"), 0o644))
	must(t, os.Mkdir(filepath.Join(merged, ".github"), 0o755))
	move("ci", ".github/workflows")
	c := collectFrom(t, ws, upper, filepath.Join(t.TempDir(), "changes"), CollectOptions{})
	for _, change := range c.List() {
		if change.Danger.Rule == "" && change.Path != "ci" && change.Path != "ci/build.yml" && change.Path != ".github" && change.Path != "moved" {
			t.Errorf("%s %s is not set apart", change.Op(), change.Path)
		}
	}
}

func TestCollectWhiteoutForms(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	ws, up := t.TempDir(), t.TempDir()
	must(t, unix.Mount("tmpfs", up, "tmpfs", 0, ""))
	defer func() { must(t, unix.Unmount(up, unix.MNT_DETACH)) }()
	spec{"x/attr": "file 0644 a", "x/stays": "file 0644 b", "y/hidden/deep": "file 0644 c", "y/seen": "file 0644 d", "dev": "file 0644 e"}.build(t, ws)
	spec{"x/attr": "file 0644 ", "y/seen": "file 0644 d", "dev": "whiteout", "nothing": "whiteout"}.build(t, up)
	must(t, unix.Setxattr(filepath.Join(up, "x/attr"), "user.overlay.whiteout", []byte("y"), 0))
	must(t, unix.Setxattr(filepath.Join(up, "x"), "user.overlay.opaque", []byte("x"), 0)) // marks whiteouts by attribute, does not hide
	must(t, unix.Setxattr(filepath.Join(up, "y"), "user.overlay.opaque", []byte("y"), 0))
	c := collectFrom(t, ws, up, filepath.Join(t.TempDir(), "c"), CollectOptions{})
	want := "delete file dev\ndelete file x/attr\ndelete dir y/hidden\ndelete file y/hidden/deep\n"
	if got := ops(c.List()); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestCollectOwners(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	ws, up := filepath.Join(dir, "ws"), filepath.Join(dir, "up")
	spec{"kept": "file 0644 a", "edited": "file 0644 a", "given": "file 0644 a"}.build(t, ws)
	spec{"kept": "file 0644 a", "edited": "file 0644 b", "given": "file 0644 a", "new": "file 0644 n", "newdir/33": "file 0644 n"}.build(t, up)
	for path, id := range map[string]int{
		"ws": 1000, "ws/kept": 1000, "ws/edited": 1007, "ws/given": 1000,
		"up/kept": 100000, "up/edited": 100000, "up/given": 100033, "up/new": 100000, "up/newdir": 100000, "up/newdir/33": 100033,
	} {
		must(t, os.Lchown(filepath.Join(dir, path), id, id))
	}
	c := collectFrom(t, ws, up, filepath.Join(dir, "c"), CollectOptions{IDShift: 100000})
	if got, want := paths(c.List()), "edited given new newdir newdir/33"; got != want {
		t.Fatalf("changes %q, want %q", got, want)
	}
	apply(t, c, ApplyOptions{})
	for path, want := range map[string]uint32{"kept": 1000, "edited": 1007, "given": 33, "new": 1000, "newdir": 1000, "newdir/33": 33} {
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(ws, path), &st))
		if st.Uid != want || st.Gid != want {
			t.Errorf("%s belongs to %d:%d, want %d", path, st.Uid, st.Gid, want)
		}
	}
}

func TestCollectLimits(t *testing.T) {
	dir := t.TempDir()
	ws, up := filepath.Join(dir, "ws"), filepath.Join(dir, "up")
	must(t, os.Mkdir(ws, 0o755))
	spec{"a": "file 0644 12345", "b": "file 0644 6789", "c/d": "file 0644 x"}.build(t, up)
	for _, tt := range []struct {
		name   string
		limits Limits
		kind   fault.Kind
	}{
		{"enough", Limits{Entries: 4, Bytes: 10}, fault.Internal},
		{"too many paths", Limits{Entries: 3}, fault.TooMany},
		{"too many bytes", Limits{Bytes: 9}, fault.TooMany},
		{"enough changes", Limits{Changes: 4}, fault.Internal},
		{"too many changes", Limits{Changes: 3}, fault.TooMany},
		{"enough for names", Limits{NameBytes: 64}, fault.Internal},
		{"names too long", Limits{NameBytes: 5}, fault.TooMany},
	} {
		t.Run(tt.name, func(t *testing.T) {
			upper, err := os.Open(up)
			must(t, err)
			defer upper.Close()
			dest := filepath.Join(t.TempDir(), "c")
			_, err = Collect(t.Context(), CollectOptions{Upper: upper, Lower: ws, Dest: dest, Limits: tt.limits})
			if (err != nil) != (tt.kind != fault.Internal) || fault.KindOf(err) != tt.kind {
				t.Errorf("error = %v, want kind %s", err, tt.kind)
			}
			if _, statErr := os.Stat(dest); (statErr == nil) != (err == nil) {
				t.Errorf("collection exists: %t, error: %v", statErr == nil, err)
			}
			if _, err := os.Stat(dest + ".new"); err == nil {
				t.Error("an unfinished collection was left")
			}
		})
	}
	t.Run("one file too large", func(t *testing.T) {
		c := collectFrom(t, ws, up, filepath.Join(t.TempDir(), "c"), CollectOptions{Limits: Limits{FileBytes: 4}})
		if got := paths(c.List()); got != "b c c/d" || len(c.Skipped()) != 1 {
			t.Errorf("changes %q, skipped %v", got, c.Skipped())
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		upper, err := os.Open(up)
		must(t, err)
		defer upper.Close()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = Collect(ctx, CollectOptions{Upper: upper, Lower: ws, Dest: filepath.Join(t.TempDir(), "c")})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("error = %v", err)
		}
	})
}

func TestCollectSparseAndHardLinks(t *testing.T) {
	dir := t.TempDir()
	ws, up := filepath.Join(dir, "ws"), filepath.Join(dir, "up")
	must(t, os.Mkdir(ws, 0o755))
	must(t, os.Mkdir(up, 0o755))
	const size = 1 << 30
	f, err := os.Create(filepath.Join(up, "sparse"))
	must(t, err)
	_, err = f.WriteAt([]byte("middle"), size/2)
	must(t, err)
	must(t, f.Truncate(size))
	must(t, f.Close())
	must(t, os.Link(filepath.Join(up, "sparse"), filepath.Join(up, "again")))
	c := collectFrom(t, ws, up, filepath.Join(dir, "c"), CollectOptions{})
	stored, err := os.ReadDir(filepath.Join(c.dest, contentDir))
	must(t, err)
	if len(stored) != 1 || c.sum.Bytes != 2*size {
		t.Errorf("%d contents stored, %d bytes counted", len(stored), c.sum.Bytes)
	}
	apply(t, c, ApplyOptions{})
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(ws, "again"), &st))
	if st.Size != size || st.Blocks*512 > 1<<20 || st.Nlink != 1 {
		t.Errorf("size %d, %d bytes on disk, %d links", st.Size, st.Blocks*512, st.Nlink)
	}
	buf := make([]byte, 6)
	g, err := os.Open(filepath.Join(ws, "again"))
	must(t, err)
	defer g.Close()
	if _, err := g.ReadAt(buf, size/2); err != nil || !bytes.Equal(buf, []byte("middle")) {
		t.Errorf("middle is %q, %v", buf, err)
	}
}

// TestCollectHostileTree: depth beyond any path, long names, loops, many files. Collection ends, with everything that can be applied.
func TestCollectHostileTree(t *testing.T) {
	dir := t.TempDir()
	ws, up := filepath.Join(dir, "ws"), filepath.Join(dir, "up")
	must(t, os.Mkdir(ws, 0o755))
	must(t, os.Mkdir(up, 0o755))
	deep, err := unix.Open(up, unix.O_PATH|unix.O_DIRECTORY, 0)
	must(t, err)
	for range 5000 {
		must(t, unix.Mkdirat(deep, "d", 0o755))
		next, err := unix.Openat(deep, "d", unix.O_PATH|unix.O_DIRECTORY, 0)
		must(t, err)
		unix.Close(deep)
		deep = next
	}
	unix.Close(deep)
	spec{
		strings.Repeat("n", 255): "file 0644 long", "loop": "-> loop", "self": "-> .", "far": "-> " + strings.Repeat("../", 1300) + "etc",
	}.build(t, up)
	const many = 5000
	must(t, os.Mkdir(filepath.Join(up, "many"), 0o755))
	for i := range many {
		must(t, os.WriteFile(filepath.Join(up, "many", fmt.Sprint(i)), nil, 0o644))
	}
	c := collectFrom(t, ws, up, filepath.Join(dir, "c"), CollectOptions{})
	if want := maxDepth + 4 + 1 + many; len(c.List()) != want || len(c.Skipped()) != 1 {
		t.Fatalf("%d changes, want %d; skipped %d", len(c.List()), want, len(c.Skipped()))
	}
	apply(t, c, ApplyOptions{})
	if _, err := os.Lstat(filepath.Join(ws, "far")); err == nil {
		t.Error("the symlink out of the workspace was applied")
	}
}

func TestCollectMarksRaces(t *testing.T) {
	dir := t.TempDir()
	ws, up := filepath.Join(dir, "ws"), filepath.Join(dir, "up")
	spec{"early": "file 0644 a", "late": "file 0644 a"}.build(t, ws)
	spec{"early": "file 0644 b", "late": "file 0644 b"}.build(t, up)
	time.Sleep(20 * time.Millisecond)
	started := time.Now()
	time.Sleep(20 * time.Millisecond)
	must(t, os.WriteFile(filepath.Join(ws, "late"), []byte("edited by a person"), 0o644))
	c := collectFrom(t, ws, up, filepath.Join(dir, "c"), CollectOptions{Started: started})
	r, err := c.Apply(t.Context(), ApplyOptions{})
	if fault.KindOf(err) != fault.Conflict || len(r.Conflicts) != 1 || r.Conflicts[0].Path != "late" {
		t.Errorf("conflicts %v, error %v", r.Conflicts, err)
	}
}
