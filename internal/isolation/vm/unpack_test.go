package vm

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// entry is one file of a stream; its header's size is its content's.
type entry struct {
	tar.Header
	content string
}

func stream(t *testing.T, entries ...entry) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		e.Format = tar.FormatPAX
		e.Size = int64(len(e.content))
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// upper makes a directory that belongs to the first id of a sandbox, and opens it.
func upper(t *testing.T) (dir *os.File, outside string) {
	t.Helper()
	testenv.Need(t, "userns")
	outside = t.TempDir()
	path := filepath.Join(outside, "upper")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(path, testBase, testBase); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dir.Close() })
	return dir, outside
}

const testBase = 0x70000000

func TestUnpack(t *testing.T) {
	dir, _ := upper(t)
	err := unpack(stream(t,
		entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755}},
		entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o750, PAXRecords: map[string]string{boot.Opaque: "y"}}},
		entry{tar.Header{Typeflag: tar.TypeReg, Name: "d/f", Mode: 0o4644, Uid: 0, Gid: 0}, "content"},
		entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: "d/again", Linkname: "d/f"}},
		entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "out", Linkname: "/etc/passwd"}},
		entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "gone"}},
		entry{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "pipe"}},
		entry{tar.Header{Typeflag: tar.TypeReg, Name: "holes", Mode: 0o600, PAXRecords: map[string]string{boot.Map: "1000000,10,3,999997,3"}}, "abcxyz"},
		entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "closed", Mode: 0}},
	), dir, testBase)
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(dir.Name(), name) }
	if data, err := os.ReadFile(at("d/again")); err != nil || string(data) != "content" {
		t.Errorf("%q, %v", data, err)
	}
	var s unix.Stat_t
	if err := unix.Lstat(at("d/f"), &s); err != nil || s.Nlink != 2 || s.Mode&0o7777 != 0o4644 {
		t.Errorf("%+v, %v", s, err)
	}
	if want := map[bool]uint32{true: testBase, false: uint32(os.Getuid())}[os.Geteuid() == 0]; s.Uid != want || s.Gid != want && os.Geteuid() == 0 {
		t.Errorf("owner %d:%d, want %d", s.Uid, s.Gid, want)
	}
	mark := make([]byte, 8)
	if n, err := unix.Getxattr(at("d"), "user.overlay.opaque", mark); err != nil || string(mark[:n]) != "y" {
		t.Errorf("mark %q, %v", mark[:max(n, 0)], err)
	}
	if err := unix.Lstat(at("gone"), &s); err != nil || s.Mode&unix.S_IFMT != unix.S_IFCHR || s.Rdev != 0 {
		t.Errorf("a deletion: %+v, %v", s, err)
	}
	if err := unix.Lstat(at("pipe"), &s); err != nil || s.Mode&unix.S_IFMT != unix.S_IFIFO {
		t.Errorf("a FIFO: %+v, %v", s, err)
	}
	if target, err := os.Readlink(at("out")); err != nil || target != "/etc/passwd" {
		t.Errorf("%q, %v", target, err)
	}
	want := make([]byte, 1000000)
	copy(want[10:], "abc")
	copy(want[999997:], "xyz")
	if data, err := os.ReadFile(at("holes")); err != nil || !bytes.Equal(data, want) {
		t.Errorf("a file with holes: %d bytes, %v", len(data), err)
	}
	if err := unix.Lstat(at("holes"), &s); err != nil || s.Blocks > 100 {
		t.Errorf("its holes are filled: %d blocks, %v", s.Blocks, err)
	}
}

// TestHostileStream is a machine that was taken over: nothing that it sends leaves the directory, and what is not of the form is refused.
func TestHostileStream(t *testing.T) {
	reg := func(name string) entry {
		return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, "evil"}
	}
	link := func(name, to string) entry {
		return entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}}
	}
	sparse := func(m, content string) entry {
		return entry{tar.Header{Typeflag: tar.TypeReg, Name: "f", Mode: 0o644, PAXRecords: map[string]string{boot.Map: m}}, content}
	}
	for name, entries := range map[string][]entry{
		"above":                     {reg("../escaped")},
		"above, hidden":             {reg("d/../../escaped")},
		"absolute":                  {reg("/tmp/escaped")},
		"no name":                   {reg("")},
		"the folder as a file":      {reg(".")},
		"through a link":            {link("l", ".."), reg("l/escaped")},
		"through an absolute link":  {link("l", "/tmp"), reg("l/escaped")},
		"over a link":               {link("l", "../escaped"), reg("l")},
		"the same name twice":       {reg("a"), reg("a")},
		"without its parent":        {reg("d/f")},
		"hard link above":           {{Header: tar.Header{Typeflag: tar.TypeLink, Name: "h", Linkname: "../outside"}}},
		"hard link to nothing":      {{Header: tar.Header{Typeflag: tar.TypeLink, Name: "h", Linkname: "nothing"}}},
		"a device":                  {{Header: tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3}}},
		"a disk":                    {{Header: tar.Header{Typeflag: tar.TypeBlock, Name: "sda", Devmajor: 8}}},
		"a map that is none":        {sparse("x", "")},
		"an empty map":              {sparse("", "")},
		"a map of negative numbers": {sparse("10,-1,3", "abc")},
		"a map beyond the file":     {sparse("10,8,3", "abc")},
		"a map that overflows":      {sparse("9223372036854775807,9223372036854775807,3", "abc")},
		"a map that goes back":      {sparse("10,5,3,4,2", "abcde")},
		"a map of too little":       {sparse("10,0,1", "abc")},
		"a map of too much":         {sparse("10,0,9", "abc")},
		"a map of odd length":       {sparse("10,0", "")},
		"a map of many pieces":      {sparse("100000"+strings.Repeat(",0,0", boot.MaxPieces+1), "")},
		"a file larger than all":    {sparse("9223372036854775807", "")},
	} {
		t.Run(name, func(t *testing.T) {
			dir, outside := upper(t)
			if err := os.WriteFile(filepath.Join(outside, "outside"), []byte("before"), 0o666); err != nil {
				t.Fatal(err)
			}
			err := unpack(stream(t, entries...), dir, testBase)
			if err == nil {
				t.Error("it was taken")
			}
			left, _ := os.ReadDir(outside) // the test's own directory
			if data, err := os.ReadFile(filepath.Join(outside, "outside")); err != nil || string(data) != "before" || len(left) != 2 {
				t.Errorf("outside: %q, %v, %v", data, left, err)
			}
			if _, err := os.Lstat("/tmp/escaped"); err == nil {
				t.Error("it escaped")
			}
		})
	}
	t.Run("noise", func(t *testing.T) {
		dir, _ := upper(t)
		if err := unpack(strings.NewReader(strings.Repeat("noise", 1000)), dir, testBase); err == nil {
			t.Error("noise was taken for changes")
		}
	})
}

// TestEndlessStream sends without end, and nothing at all.
func TestEndlessStream(t *testing.T) {
	b := &bounded{from: zeros{}, left: 1 << 20}
	if n, err := io.Copy(io.Discard, b); err == nil || n != 1<<20 {
		t.Errorf("%d bytes, %v", n, err)
	}
	ours, theirs, err := pair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	defer theirs.Close()
	time.AfterFunc(50*time.Millisecond, func() { _ = ours.SetReadDeadline(time.Now()) }) // as when silence is over
	if _, err := (&prompt{ours, ours, time.Now().Add(time.Hour)}).Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a silent machine: %v", err)
	}
	go func() { // a byte now and then, until the other end is closed
		for {
			if _, err := theirs.Write([]byte("x")); err != nil {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	if n, err := io.Copy(io.Discard, &prompt{ours, ours, time.Now().Add(50 * time.Millisecond)}); n == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a machine that does not come to an end: %d bytes, %v", n, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
