package guest

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
)

// TestFindDisk finds disks by their numbers, and by their order where they have none.
func TestFindDisk(t *testing.T) {
	list := func(serials ...string) string {
		dir := t.TempDir()
		for i, serial := range serials {
			device := filepath.Join(dir, "vd"+string(rune('a'+i)))
			if err := errors.Join(os.Mkdir(device, 0o700), os.WriteFile(filepath.Join(device, "serial"), []byte(serial), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	for _, c := range []struct {
		dir   string
		index int
		want  string
	}{
		{list("disk1\n", "disk0\n"), 0, "/dev/vdb"}, {list("disk1", "disk0"), 1, "/dev/vda"}, {list("disk1", "disk0"), 2, ""}, {list("disk0", "other"), 1, ""},
		{list("", "x"), 1, "/dev/vdb"}, {list("", ""), 2, ""}, {list(), 0, ""},
	} {
		if got := findDisk(c.dir, c.index); got != c.want {
			t.Errorf("disk %d: %q, want %q", c.index, got, c.want)
		}
	}
}

// TestPieces sends files with few holes, many, and nothing else.
func TestPieces(t *testing.T) {
	dir := t.TempDir()
	const step = 1 << 20 // more than any file system's block
	for name, pieces := range map[string]int{"few": 2, "many": boot.MaxPieces + 1, "none": 0} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for i := range pieces {
			_, werr := f.WriteAt([]byte("data"), int64(i)*step)
			err = errors.Join(err, werr)
		}
		if err := errors.Join(err, f.Truncate(int64(boot.MaxPieces+1)*step), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	upper, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer upper.Close()
	r, w := io.Pipe()
	sent := make(chan error, 1)
	go func() {
		err := sendChanges(w, upper)
		_ = w.CloseWithError(err) // never fails
		sent <- err
	}()
	sizes, maps := map[string]int64{}, map[string]string{}
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		sizes[h.Name], maps[h.Name] = h.Size, h.PAXRecords[boot.Map]
	}
	_, _ = io.Copy(io.Discard, r) // the padding at the end
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if maps["none"] != "1074790400" || sizes["none"] != 0 || maps["many"] != "" || sizes["many"] != 1074790400 || !strings.HasPrefix(maps["few"], "1074790400,0,4096,1048576,4096") || sizes["few"] != 2*4096 {
		t.Errorf("sizes %v, maps %v", sizes, maps)
	}
}

// TestLongPath makes a path that no host takes. The changes are not sent, rather than without it.
func TestLongPath(t *testing.T) {
	dir := t.TempDir()
	upper, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer upper.Close()
	here, err := unix.Openat(int(upper.Fd()), ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for range maxPath/200 + 1 {
		name := strings.Repeat("n", 200)
		if err == nil {
			err = unix.Mkdirat(here, name, 0o700)
		}
		next, openErr := unix.Openat(here, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		err = errors.Join(err, openErr, unix.Close(here))
		here = next
	}
	if err := errors.Join(err, unix.Close(here)); err != nil {
		t.Fatal(err)
	}
	if err := sendChanges(&bytes.Buffer{}, upper); err == nil || !strings.Contains(err.Error(), "longer than 4095") {
		t.Errorf("a long path: %v", err)
	}
}
