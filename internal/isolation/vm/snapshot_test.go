package vm

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// snapshotPlace is a place for a snapshot.
func snapshotPlace(t *testing.T) *call.Snapshot {
	t.Helper()
	dir := t.TempDir()
	p := &call.Snapshot{Making: filepath.Join(dir, "making"), Dir: filepath.Join(dir, "ready")}
	if err := os.Mkdir(p.Making, 0o700); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestSnapshot keeps a machine that has worked and starts two copies of it at once, of which one is kept again.
func TestSnapshot(t *testing.T) {
	folder := machines(t)
	spec, token := specification(t)
	spec.Snapshot, spec.RootDisk = snapshotPlace(t), filepath.Join(t.TempDir(), "disk")
	began := time.Now()
	s, err := Start(t.Context(), folder, spec, optionsFor(spec))
	if err != nil {
		t.Fatal(err)
	}
	first := run(t, s, token, "the-first-was-here")
	kept := s.Kept()
	if kept == nil || kept.Error != "" || kept.Bytes < 1<<20 {
		t.Fatalf("kept: %+v", kept)
	}
	t.Logf("started, ran and kept in %v: %d MiB; it said %q", time.Since(began), kept.Bytes>>20, first)
	if _, err := os.Stat(spec.Snapshot.Making); err == nil {
		t.Error("where it was made is there still")
	}
	memory, err := os.ReadFile(filepath.Join(spec.Snapshot.Dir, ramName))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(memory, []byte("the-first-was-here")) {
		t.Error("the file that it wrote is not in the memory that was kept")
	}

	if err := os.Remove(spec.RootDisk); err != nil { // the image may go
		t.Fatal(err)
	}
	again := snapshotPlace(t)
	said := append([]string{first}, twoCopies(t, folder, spec.Snapshot.Dir, again)...)
	distinct(t, said, []string{`""`, `"the-first-was-here"`, `"the-first-was-here"`})
	next, token := specification(t)
	next.RootFS, next.From = "", again.Dir
	if s, err = Start(t.Context(), folder, next, optionsFor(next)); err != nil {
		t.Fatal(err)
	}
	distinct(t, append(said, run(t, s, token, "three")), []string{`""`, `"the-first-was-here"`, `"the-first-was-here"`, `"the-first-was-heretwo"`})
	refused(t, folder, spec.Snapshot.Dir)
}

// twoCopies starts two copies of a snapshot at once, of which the second is kept again, and returns what they say.
func twoCopies(t *testing.T, folder, dir string, again *call.Snapshot) []string {
	t.Helper()
	said := make([]string, 2)
	var all sync.WaitGroup
	var last *Sandbox
	for i := range said {
		spec, token := specification(t)
		spec.RootFS, spec.From, spec.UIDBase = "", dir, spec.UIDBase+uint32(i)<<16
		if i == 1 {
			spec.Snapshot = again
		}
		began := time.Now()
		s, err := Start(t.Context(), folder, spec, optionsFor(spec))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("a copy was started in %v", time.Since(began))
		last = s
		all.Go(func() { said[i] = run(t, s, token, "two") })
	}
	all.Wait()
	if kept := last.Kept(); kept == nil || kept.Error != "" {
		t.Errorf("a copy of the copy: %+v", kept)
	}
	return said
}

// distinct looks at what inside said in several runs: what was left for each, and that no two have anything random in common.
func distinct(t *testing.T, said, left []string) {
	t.Helper()
	words := map[string]int{}
	for i, line := range said {
		fields := strings.Fields(line)
		if len(fields) != 6 {
			t.Fatalf("%d: %q", i, line)
		}
		if fields[1] != left[i] {
			t.Errorf("%d found %s, want %s", i, fields[1], left[i])
		}
		for _, word := range []string{fields[0], fields[3], fields[5]} {
			words[word]++
		}
		if at, err := time.Parse(time.RFC3339, fields[4]); err != nil || time.Since(at).Abs() > 2*time.Minute {
			t.Errorf("%d: its clock says %s, %v", i, fields[4], err)
		}
	}
	if len(words) != 3*len(said) {
		t.Errorf("something random is the same in two of them: %q", said)
	}
}

// refused starts what does not fit a snapshot, and what is not as it was written.
func refused(t *testing.T, folder, dir string) {
	t.Helper()
	for name, c := range map[string]struct {
		spoil func(spec *call.Create, dir string) error
		kind  fault.Kind
	}{
		"another size":    {func(s *call.Create, _ string) error { s.Limits.Memory *= 2; return nil }, fault.Conflict},
		"more processors": {func(s *call.Create, _ string) error { s.Limits.MilliCPUs = 2000; return nil }, fault.Conflict},
		"another scratch": {func(s *call.Create, _ string) error { s.Limits.Disk *= 2; return nil }, fault.Conflict},
		"memory":          {func(_ *call.Create, dir string) error { return flip(filepath.Join(dir, ramName)) }, fault.Unavailable},
		"state":           {func(_ *call.Create, dir string) error { return flip(filepath.Join(dir, stateName)) }, fault.Unavailable},
		"disk":            {func(_ *call.Create, dir string) error { return flip(filepath.Join(dir, diskName(0))) }, fault.Unavailable},
		"short":           {func(_ *call.Create, dir string) error { return os.Truncate(filepath.Join(dir, ramName), 4096) }, fault.Unavailable},
		"no state":        {func(_ *call.Create, dir string) error { return os.Remove(filepath.Join(dir, stateName)) }, fault.Unavailable},
		"a link": {func(_ *call.Create, dir string) error {
			return os.Rename(filepath.Join(dir, stateName), filepath.Join(dir, "x"))
		}, fault.Unavailable},
		"no machine.json": {func(_ *call.Create, dir string) error { return os.Remove(filepath.Join(dir, machineName)) }, fault.Unavailable},
		"other words": {func(_ *call.Create, dir string) error {
			return os.WriteFile(filepath.Join(dir, machineName), []byte(`{"x":1}`), 0o600)
		}, fault.Unavailable},
	} {
		copied := t.TempDir()
		for _, file := range []string{machineName, ramName, stateName, diskName(0)} {
			copySparse(t, filepath.Join(dir, file), filepath.Join(copied, file))
		}
		spec, _ := specification(t)
		spec.RootFS, spec.From = "", copied
		if err := c.spoil(&spec, copied); err != nil {
			t.Fatal(err)
		}
		if s, err := Start(t.Context(), folder, spec, optionsFor(spec)); fault.KindOf(err) != c.kind || err == nil {
			t.Errorf("%s: %v", name, err)
			if err == nil {
				s.Hurry()
				<-s.Done()
			}
		}
	}
}

func copySparse(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	info, err := in.Stat()
	if err == nil {
		_, _, err = copyBlocks(t.Context(), out, in, info.Size())
	}
	if err := errors.Join(err, out.Truncate(info.Size())); err != nil {
		t.Fatal(err)
	}
}

// flip changes one bit of a file, in the first block that holds something.
func flip(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, block)
	for at := int64(0); ; at += block {
		n, err := f.ReadAt(b, at)
		if i := slices.IndexFunc(b[:n], func(x byte) bool { return x != 0 }); i >= 0 {
			_, err = f.WriteAt([]byte{b[i] ^ 1}, at+int64(i))
			return err
		}
		if err != nil {
			return err
		}
	}
}
