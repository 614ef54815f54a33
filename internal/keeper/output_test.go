package keeper

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"sync"
	"testing"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// pattern is n bytes of an output whose byte at i is known.
func pattern(from, n int64) []byte {
	b := make([]byte, n)
	for i := range b {
		at := from + int64(i)
		b[i] = byte(at ^ at>>8 ^ at>>16)
	}
	return b
}

func TestOutput(t *testing.T) {
	for _, test := range []struct {
		name          string
		written       int64
		offset        int64
		most          int
		next, skipped int64
	}{
		{"nothing yet", 0, 0, 100, 0, 0},
		{"all", 90, 0, 100, 90, 0},
		{"some", 90, 10, 20, 30, 0},
		{"the end", 90, 90, 20, 90, 0},
		{"beyond the end", 90, 1000, 20, 90, 0},
		{"both files", 150, 0, 1000, 150, 0},
		{"across the files", 150, 95, 10, 105, 0},
		{"the older file is full", 200, 0, 1000, 200, 0},
		{"a part is gone", 201, 0, 1000, 201, 100},
		{"a part is gone from the middle", 250, 40, 10, 110, 60},
		{"long gone", 1050, 3, 1000, 1050, 897},
	} {
		dir := t.TempDir()
		l, err := openOutput(dir, 100)
		if err != nil {
			t.Fatal(err)
		}
		for at := int64(0); at < test.written; at += 7 {
			if _, err := l.Write(pattern(at, min(7, test.written-at))); err != nil {
				t.Fatal(err)
			}
		}
		data, next, skipped, err := readOutput(dir, test.offset, test.most)
		if err != nil || next != test.next || skipped != test.skipped {
			t.Errorf("%s: next %d, skipped %d, %v", test.name, next, skipped, err)
		}
		if want := pattern(next-int64(len(data)), int64(len(data))); !bytes.Equal(data, want) || int64(len(data)) != max(0, next-test.offset-skipped) {
			t.Errorf("%s: %x, want %x", test.name, data, want)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A reader that runs behind a writer never gets a byte that was not at its offset.
func TestOutputWhileWritten(t *testing.T) {
	dir := t.TempDir()
	l, err := openOutput(dir, 1000)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const total = 2_000_000
	var writing sync.WaitGroup
	writing.Go(func() {
		for at := int64(0); at < total; at += 100 {
			if _, err := l.Write(pattern(at, 100)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	defer writing.Wait()
	for offset := int64(0); offset < total; {
		data, next, skipped, err := readOutput(dir, offset, 300)
		if fault.KindOf(err) == fault.Unavailable {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if want := pattern(offset+skipped, int64(len(data))); !bytes.Equal(data, want) {
			t.Fatalf("at %d, skipped %d: %x, want %x", offset, skipped, data, want)
		}
		offset = next
	}
}

func TestOutputAbsent(t *testing.T) {
	if _, _, _, err := readOutput(t.TempDir(), 0, 10); fault.KindOf(err) != fault.NotFound {
		t.Error(err)
	}
	dir := t.TempDir()
	if l, err := OpenOutput(dir); err != nil || l.Close() != nil {
		t.Fatal(err)
	}
	if _, err := OpenOutput(dir); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second log in one place: %v", err)
	}
	if err := os.WriteFile(outputFile(dir, 0), []byte("half a h"), 0o600); err != nil { // a crash at the worst time
		t.Fatal(err)
	}
	if data, next, skipped, err := readOutput(dir, 5, 10); len(data) != 0 || next != 5 || skipped != 0 || err != nil {
		t.Errorf("%q, %d, %d, %v", data, next, skipped, err)
	}
}
