package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestHalves(t *testing.T) {
	first, whole := halves(series{name: "x", values: []float64{1, 10, 2, 20}})
	if !slices.Equal(first.values, []float64{1, 2}) || !slices.Equal(whole.values, []float64{10, 20}) || first.name != "x" || whole.name != "x" {
		t.Errorf("%+v, %+v", first, whole)
	}
}

func TestBoth(t *testing.T) {
	b := &bench{dir: t.TempDir()}
	if err := os.MkdirAll(b.workspace(), 0o755); err != nil {
		t.Fatal(err)
	}
	values, err := b.both(nil, "/bin/sh", "-c", "echo a; /bin/sleep 0.2")(t.Context())
	if err != nil || len(values) != 2 || values[1]-values[0] < 150 {
		t.Errorf("%v, %v: want the first byte about 200 ms before the end", values, err)
	}
	for _, line := range []string{"exit 0", "echo a; exit 3"} { // one that says nothing, one that fails
		if values, err := b.both(nil, "/bin/sh", "-c", line)(t.Context()); err == nil {
			t.Errorf("%s: %v", line, values)
		}
	}
}

func TestAwaitText(t *testing.T) {
	r := bufio.NewReader(strings.NewReader("# echo rea\"\"dy\r\nready\r\nmore"))
	if err := errors.Join(awaitText(r, ""), awaitText(r, "# "), awaitText(r, "ready")); err != nil {
		t.Error(err)
	}
	if rest, _ := io.ReadAll(r); string(rest) != "\r\nmore" {
		t.Errorf("%q is left", rest)
	}
	if awaitText(bufio.NewReader(strings.NewReader("rea")), "ready") == nil {
		t.Error("found what does not come")
	}
}

func TestFitting(t *testing.T) {
	for _, c := range []struct{ first, each, want float64 }{{8 << 10, 1, 1}, {8<<10 + 1, 1, 0}, {92, 100, 82}, {100, 0, 80921}} {
		if got := fitting(c.first, c.each); got != c.want {
			t.Errorf("fitting(%v, %v) = %v, want %v", c.first, c.each, got, c.want)
		}
	}
}

func TestRunTask(t *testing.T) {
	dir := t.TempDir()
	values, err := task{Run: &runTask{Argv: []string{"/bin/sh", "-c", "echo $WORD > here"}, Dir: dir, Env: []string{"WORD=said"}}}.carryOut()
	said, _ := os.ReadFile(filepath.Join(dir, "here"))
	if err != nil || len(values) != 1 || values[0] <= 0 || string(said) != "said\n" {
		t.Errorf("%v, %v, %q", values, err, said)
	}
	if _, err := (task{Run: &runTask{Argv: []string{"/bin/sh", "-c", "echo why >&2; exit 1"}}}).carryOut(); err == nil || !strings.Contains(err.Error(), "why") {
		t.Errorf("a failure: %v", err)
	}
	if _, err := (task{Run: &runTask{}}).carryOut(); err == nil {
		t.Error("nothing was run, and counts")
	}
}

// TestWithTree holds the archive to another reader of the format.
func TestWithTree(t *testing.T) {
	cpio, err := exec.LookPath("cpio")
	if err != nil {
		t.Skip("needs cpio")
	}
	dir := t.TempDir()
	tree, first, whole := filepath.Join(dir, "tree"), filepath.Join(dir, "first"), filepath.Join(dir, "whole")
	err = errors.Join(os.MkdirAll(filepath.Join(tree, "bin"), 0o755), os.WriteFile(filepath.Join(tree, "bin", "a"), []byte("12345"), 0o755), os.WriteFile(first, nil, 0o644), withTree(whole, first, tree))
	if err != nil {
		t.Fatal(err)
	}
	archive, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(cpio, "-i", "--to-stdout", "--quiet")
	cmd.Stdin = bytes.NewReader(archive)
	if out, err := cmd.Output(); err != nil || string(out) != "12345" {
		t.Errorf("%q, %v", out, err)
	}
}

// TestLayer makes sure that a layer is what its digest says and has the size that the table states.
func TestLayer(t *testing.T) {
	blob, diff, err := layer(0)
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(blob))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(z)
	if err != nil || digestOf(plain) != diff {
		t.Errorf("%v, %s", err, diff)
	}
	files, size := 0, int64(0)
	for r := tar.NewReader(bytes.NewReader(plain)); ; files++ {
		h, err := r.Next()
		if err != nil {
			break
		}
		size += h.Size
	}
	if files != layerFiles || size*imageLayers != 500<<20 {
		t.Errorf("%d files of %d bytes", files, size)
	}
}
