package workspace

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// TestCollectBoundsMemory: whatever the sandbox makes many of, or gives long names, counts before it is kept.
func TestCollectBoundsMemory(t *testing.T) {
	long := strings.Repeat("n", 200)
	for _, tt := range []struct {
		name         string
		lower, upper spec
		limits       Limits
	}{
		{"long names", nil, spec{long + "1": "file 0644 ", long + "2": "file 0644 "}, Limits{NameBytes: 300}},
		{"long parents", nil, spec{long + "/a": "file 0644 ", long + "/b": "file 0644 "}, Limits{NameBytes: 500}},
		{"long targets", nil, spec{"a": "-> " + long, "b": "-> " + long}, Limits{NameBytes: 300}},
		{"long targets replaced", spec{"a": "-> " + long, "b": "-> " + long}, spec{"a": "file 0644 ", "b": "whiteout"}, Limits{NameBytes: 300}},
		{"long names deleted", spec{"d/" + long + "1": "file 0644 ", "d/" + long + "2": "file 0644 "}, spec{"d": "whiteout"}, Limits{NameBytes: 300}},
		{"unchanged names", spec{"a": "dir", long: "dir"}, spec{"a": "dir", long: "dir"}, Limits{NameBytes: 150}},
		{"what is skipped", nil, spec{"a": "fifo", "b": "fifo", "c": "fifo"}, Limits{Changes: 2}},
		{"deletions", spec{"d/a": "file 0644 ", "d/b": "file 0644 "}, spec{"d": "whiteout"}, Limits{Changes: 2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			ws, up := filepath.Join(dir, "ws"), filepath.Join(dir, "up")
			must(t, os.Mkdir(ws, 0o755))
			must(t, os.Mkdir(up, 0o755))
			tt.lower.build(t, ws)
			tt.upper.build(t, up)
			upper, err := os.Open(up)
			must(t, err)
			defer upper.Close()
			_, err = Collect(t.Context(), CollectOptions{Upper: upper, Lower: ws, Dest: filepath.Join(dir, "c"), Limits: tt.limits})
			if fault.KindOf(err) != fault.TooMany {
				t.Errorf("error = %v, want too many", err)
			}
			collectFrom(t, ws, up, filepath.Join(dir, "c"), CollectOptions{}) // the defaults allow it
		})
	}
}

// TestManifestFits: what Collect may write, Open reads.
func TestManifestFits(t *testing.T) {
	worst := Node{Kind: Symlink, Mode: modeBits, UID: math.MaxUint32, GID: math.MaxUint32, Size: math.MaxInt64, SHA256: strings.Repeat("f", 64), Target: "x", MTime: math.MinInt64, Nsec: 999999999}
	data, err := json.Marshal(Change{Path: "x", Was: worst, Now: worst, Raced: true})
	must(t, err)
	const escaped = 3 // %XX for a byte
	if need := int64(DefaultLimits().Changes)*int64(len(data)+2) + escaped*DefaultLimits().NameBytes; need >= maxManifest {
		t.Errorf("a change list can be of %d bytes, and only %d are read", need, int64(maxManifest))
	}
}

// TestCollectSparseGiants: apparent size costs nothing, neither time nor disk, also where the workspace has a giant to compare with.
func TestCollectSparseGiants(t *testing.T) {
	dir := t.TempDir()
	ws, up := filepath.Join(dir, "ws"), filepath.Join(dir, "up")
	must(t, os.Mkdir(ws, 0o755))
	must(t, os.Mkdir(up, 0o755))
	const size = 16 << 30
	giant := func(path, data string, at, size int64) {
		t.Helper()
		f, err := os.Create(path)
		must(t, err)
		_, err = f.WriteAt([]byte(data), at)
		must(t, err)
		must(t, f.Truncate(size))
		must(t, f.Close())
	}
	giant(filepath.Join(up, "a"), "", 0, size)
	giant(filepath.Join(up, "b"), "in the middle", size/2+12345, size)
	giant(filepath.Join(up, "c"), "at the end", size-10, size)
	giant(filepath.Join(ws, "c"), "at the End", size-10, size)
	giant(filepath.Join(up, "over"), "", 0, size+1)
	started := time.Now()
	c := collectFrom(t, ws, up, filepath.Join(dir, "changes"), CollectOptions{})
	if took := time.Since(started); took > 2*time.Second { // some milliseconds, unless the machine is busy
		t.Errorf("collection took %v", took)
	}
	if got, want := ops(c.List()), "add file a\nadd file b\nmodify file c\n"; got != want || len(c.Skipped()) != 1 || c.Skipped()[0].Path != "over" {
		t.Fatalf("changes %q, want %q; skipped %v", got, want, c.Skipped())
	}
	started = time.Now()
	apply(t, c, ApplyOptions{})
	if took := time.Since(started); took > 4*time.Second {
		t.Errorf("apply took %v", took)
	}
	stored, err := filepath.Glob(filepath.Join(c.dest, contentDir, "*"))
	must(t, err)
	for _, path := range append(stored, filepath.Join(ws, "a"), filepath.Join(ws, "b"), filepath.Join(ws, "c")) {
		var st unix.Stat_t
		must(t, unix.Stat(path, &st))
		if st.Size != size || st.Blocks*512 > 1<<20 {
			t.Errorf("%s: size %d, %d bytes on disk", path, st.Size, st.Blocks*512)
		}
	}
	f, err := os.Open(filepath.Join(ws, "c"))
	must(t, err)
	defer f.Close()
	buf := make([]byte, 10)
	if _, err := f.ReadAt(buf, size-10); err != nil || string(buf) != "at the end" {
		t.Errorf("the end is %q, %v", buf, err)
	}
}

// countdown is a context that ends after so many questions.
type countdown struct {
	context.Context
	left atomic.Int64
}

func (c *countdown) Err() error {
	if c.left.Add(-1) < 0 {
		return context.Canceled
	}
	return nil
}

// TestCollectCanBeStopped: between any two entries and any two pieces of a file.
func TestCollectCanBeStopped(t *testing.T) {
	const entries = 30
	upper, gone := spec{}, spec{}
	big := "file 0644 " + strings.Repeat("data", 1<<20)
	for i := range entries {
		upper[fmt.Sprint("new", i)] = "file 0644 "
		gone[fmt.Sprint("gone/", i)] = "file 0644 "
	}
	for name, tt := range map[string]struct {
		lower, upper spec
		atLeast      int64
	}{
		"new entries":     {spec{}, upper, entries},
		"deleted entries": {gone, spec{"gone": "whiteout"}, entries},
		"a large file":    {spec{}, spec{"big": big}, 16},
		"two to compare":  {spec{"big": big}, spec{"big": big}, 32},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			ws, up := filepath.Join(dir, "ws"), filepath.Join(dir, "up")
			must(t, os.Mkdir(ws, 0o755))
			must(t, os.Mkdir(up, 0o755))
			tt.lower.build(t, ws)
			tt.upper.build(t, up)
			run := func(n int64) error {
				upper, err := os.Open(up)
				must(t, err)
				defer upper.Close()
				ctx := &countdown{Context: t.Context()}
				ctx.left.Store(n)
				_, err = Collect(ctx, CollectOptions{Upper: upper, Lower: ws, Dest: filepath.Join(t.TempDir(), "c")})
				return err
			}
			if err := run(tt.atLeast - 1); err == nil {
				t.Errorf("fewer than %d looks at the context", tt.atLeast)
			}
			must(t, run(math.MaxInt64))
		})
	}
}

// TestMountInWorkspace: what is mounted in the folder on the host was not seen by the run. Its place is left alone, and the rest is applied.
func TestMountInWorkspace(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	ws, other := t.TempDir(), t.TempDir()
	spec{
		"tmp": "dir", "same": "dir", "gone": "dir", "deep/er/m": "dir", "deep/er/f": "file 0644 f", "deep/x": "file 0644 x", "file": "file 0644 f", "swap/m": "dir", "f": "file 0644 f",
	}.build(t, ws)
	spec{"theirs": "file 0644 theirs"}.build(t, other)
	merged, upper := overlay(t, ws)
	in := func(name string) string { return filepath.Join(merged, name) }
	for _, err := range []error{
		os.WriteFile(in("tmp/new"), nil, 0o644), os.Chmod(in("same"), 0o700), os.Remove(in("gone")), os.RemoveAll(in("deep")),
		os.WriteFile(in("file"), []byte("other"), 0o644), os.WriteFile(in("f"), []byte("other"), 0o644),
		os.RemoveAll(in("swap")), os.WriteFile(in("swap"), []byte("now a file"), 0o644),
	} {
		must(t, err)
	}
	mount := func(name, kind, source string, flags uintptr) {
		t.Helper()
		must(t, unix.Mount(source, filepath.Join(ws, name), kind, flags, ""))
		t.Cleanup(func() { must(t, unix.Unmount(filepath.Join(ws, name), unix.MNT_DETACH)) })
	}
	for _, name := range []string{"tmp", "gone", "deep/er/m", "swap/m"} {
		mount(name, "tmpfs", "tmpfs", 0)
	}
	mount("same", "", other, unix.MS_BIND) // the same file system as the workspace
	mount("file", "", filepath.Join(other, "theirs"), unix.MS_BIND)
	c := collectFrom(t, ws, upper, filepath.Join(t.TempDir(), "changes"), CollectOptions{})
	if got, want := ops(c.List()), "delete file deep/er/f\ndelete file deep/x\nmodify file f\n"; got != want {
		t.Errorf("changes\n%swant\n%s", got, want)
	}
	if c.sum.Deleted != 2 || c.sum.Modified != 1 || c.sum.Added != 0 || c.sum.Skipped != len(c.Skipped()) {
		t.Errorf("summary %+v, %d skipped", c.sum, len(c.Skipped()))
	}
	reasons := map[Name]string{}
	for _, s := range c.Skipped() {
		reasons[s.Path] = s.Reason
	}
	for _, name := range []Name{"tmp", "same", "gone", "deep/er/m", "file", "swap/m"} {
		if !strings.Contains(reasons[name], "mounted here") {
			t.Errorf("%s: reason %q", name, reasons[name])
		}
	}
	for _, name := range []Name{"deep", "deep/er", "swap"} {
		if !strings.Contains(reasons[name], "/m") {
			t.Errorf("%s: reason %q", name, reasons[name])
		}
	}
	apply(t, c, ApplyOptions{})
	if data, err := os.ReadFile(filepath.Join(ws, "f")); err != nil || string(data) != "other" {
		t.Errorf("the rest was not applied: %q, %v", data, err)
	}
	if data, err := os.ReadFile(filepath.Join(other, "theirs")); err != nil || string(data) != "theirs" {
		t.Errorf("a mounted file was written: %q, %v", data, err)
	}
}
