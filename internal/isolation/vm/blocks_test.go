package vm

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestCopyBlocks reads files that are the same and lie differently, and some that differ in one thing.
func TestCopyBlocks(t *testing.T) {
	const size = 10*block + 100
	content := make([]byte, size)
	content[3*block+7], content[size-1] = 1, 2
	write := func(spoil func(f *os.File) error) string {
		t.Helper()
		f, err := os.Create(filepath.Join(t.TempDir(), "f"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := spoil(f); err != nil {
			t.Fatal(err)
		}
		out, err := os.Create(filepath.Join(t.TempDir(), "out"))
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		sum, n, err := copyBlocks(t.Context(), out, f, size)
		if err != nil || n > size {
			t.Fatalf("%d bytes, %v", n, err)
		}
		want, got := make([]byte, size), make([]byte, size)
		_, _ = f.ReadAt(want, 0) // what is beyond the end is zero
		_, _ = out.ReadAt(got, 0)
		if !bytes.Equal(want, got) {
			t.Error("the copy is not what was read")
		}
		return sum
	}
	whole := write(func(f *os.File) error { _, err := f.WriteAt(content, 0); return err })
	for name, c := range map[string]struct {
		same  bool
		spoil func(f *os.File) error
	}{
		"with holes": {true, func(f *os.File) error {
			_, err1 := f.WriteAt([]byte{1}, 3*block+7)
			_, err2 := f.WriteAt([]byte{2}, size-1)
			return errors.Join(err1, err2)
		}},
		"longer":        {true, func(f *os.File) error { _, err := f.WriteAt(append(bytes.Clone(content), 3), 0); return err }},
		"one bit":       {false, func(f *os.File) error { c := bytes.Clone(content); c[0] = 1; _, err := f.WriteAt(c, 0); return err }},
		"another place": {false, func(f *os.File) error { _, err := f.WriteAt(append([]byte{0}, content[:size-1]...), 0); return err }},
		"another block": {false, func(f *os.File) error {
			_, err := f.WriteAt(append(make([]byte, block), content[:size-block]...), 0)
			return err
		}},
		"shorter": {false, func(f *os.File) error { _, err := f.WriteAt(content[:5*block], 0); return err }},
		"empty":   {false, func(*os.File) error { return nil }},
	} {
		if got := write(c.spoil); (got == whole) != c.same {
			t.Errorf("%s: the digest is the same: %v", name, got == whole)
		}
	}
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := copyBlocks(ctx, nil, f, size); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
}
