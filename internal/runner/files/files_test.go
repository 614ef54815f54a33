package files

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// call runs the service and returns what it wrote, its complaint and its status.
func call(t *testing.T, in string, args ...string) (out, complaint string, status int) {
	t.Helper()
	var o, c bytes.Buffer
	done := make(chan int, 1)
	go func() { done <- Run(t.Context(), args, strings.NewReader(in), &o, &c) }()
	select {
	case status = <-done:
	case <-time.After(10 * time.Second):
		t.Fatalf("%v hangs", args)
	}
	if (status == 0) != (c.Len() == 0) || strings.Count(c.String(), "\n") > 1 {
		t.Errorf("%v: status %d with the complaint %q", args, status, &c)
	}
	return o.String(), c.String(), status
}

func put(t *testing.T, name, content string, mode fs.FileMode) {
	t.Helper()
	if err := errors.Join(os.WriteFile(name, []byte(content), 0o600), os.Chmod(name, mode)); err != nil {
		t.Fatal(err)
	}
}

// tree is a directory with one of each kind.
func tree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	put(t, dir+"/a file", "0123456789", 0o640)
	put(t, dir+"/script", "#!", 0o755|fs.ModeSetuid)
	put(t, dir+"/bad\xffname", "", 0o600)
	if err := errors.Join(os.Mkdir(dir+"/sub", 0o700), os.Symlink("a file", dir+"/link"), os.Symlink("nowhere", dir+"/dangling"), syscall.Mkfifo(dir+"/fifo", 0o600)); err != nil {
		t.Fatal(err)
	}
	put(t, dir+"/sub/inner", "inside", 0o644)
	when := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	if err := os.Chtimes(dir+"/a file", when, when); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestList(t *testing.T) {
	dir := tree(t)
	out, _, status := call(t, "", "list", dir)
	if status != 0 {
		t.Fatalf("status %d", status)
	}
	got := map[string]entry{}
	for line := range strings.Lines(out) {
		var e entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if _, err := time.Parse(time.RFC3339, e.Modified); err != nil {
			t.Errorf("%s: %v", e.Name, err)
		}
		got[e.Name] = e
	}
	for _, want := range []entry{
		{Name: "a file", Type: "file", Size: 10, Mode: "-rw-r-----", Modified: "2024-05-06T07:08:09Z"},
		{Name: "script", Type: "file", Size: 2, Mode: "-rwsr-xr-x"},
		{Name: "bad\ufffdname", Type: "file", Mode: "-rw-------", Raw: base64.StdEncoding.EncodeToString([]byte("bad\xffname"))},
		{Name: "sub", Type: "dir", Mode: "drwx------"},
		{Name: "link", Type: "link", Size: 6, Mode: "lrwxrwxrwx", Target: "a file"},
		{Name: "dangling", Type: "link", Size: 7, Mode: "lrwxrwxrwx", Target: "nowhere"},
		{Name: "fifo", Type: "other", Mode: "prw-------"},
	} {
		g := got[want.Name]
		if want.Modified == "" {
			g.Modified = ""
		}
		if want.Type == "dir" {
			g.Size = 0
		}
		if g != want {
			t.Errorf("got %+v, want %+v", g, want)
		}
	}
	if len(got) != 7 {
		t.Errorf("%d entries", len(got))
	}
	out, _, _ = call(t, "", "stat", dir+"/link")
	if !strings.Contains(out, `"name":"link","type":"file","size":10,`) {
		t.Errorf("stat of a link: %s", out)
	}
}

func TestLongListIsCut(t *testing.T) {
	dir := t.TempDir()
	for i := range maxEntries + 1 {
		put(t, fmt.Sprintf("%s/%d", dir, i), "", 0o600)
	}
	out, _, _ := call(t, "", "list", dir)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != maxEntries+1 || lines[maxEntries] != `{"truncated":true}` {
		t.Errorf("%d lines, the last %s", len(lines), lines[len(lines)-1])
	}
	if err := os.Remove(dir + "/7"); err != nil {
		t.Fatal(err)
	}
	if out, _, _ := call(t, "", "list", dir); strings.Count(out, "\n") != maxEntries || strings.Contains(out, "truncated") {
		t.Errorf("%d lines", strings.Count(out, "\n"))
	}
}

func TestReadAndComplaints(t *testing.T) {
	dir := tree(t)
	tests := []struct {
		args   []string
		out    string
		status int
		says   string
	}{
		{[]string{"read", dir + "/a file"}, "0123456789", 0, ""},
		{[]string{"read", "--", dir + "/link"}, "0123456789", 0, ""},
		{[]string{"read", dir + "/a file", "3"}, "3456789", 0, ""},
		{[]string{"read", dir + "/a file", "3", "4"}, "3456", 0, ""},
		{[]string{"read", dir + "/a file", "3", "0"}, "", 0, ""},
		{[]string{"read", dir + "/a file", "30", "4"}, "", 0, ""},
		{[]string{"read", dir + "/a file", "-1"}, "", 1, "number of bytes"},
		{[]string{"read", dir + "/a file", "1", "x"}, "", 1, "number of bytes"},
		{[]string{"read", dir + "/a file", "1", "2", "3"}, "", 1, "usage"},
		{[]string{"read", dir + "/fifo"}, "", 1, "not a regular file"},
		{[]string{"read", "/dev/zero"}, "", 1, "not a regular file"},
		{[]string{"read", dir}, "", 1, "is a directory"},
		{[]string{"read", dir + "/dangling"}, "", 3, "no such file"},
		{[]string{"read", dir + "/a file/below"}, "", 3, "not a directory"},
		{[]string{"read", dir + "/line\nend"}, "", 3, "line?end"},
		{[]string{"read", ""}, "", 1, "usage"},
		{[]string{"read", "-p", dir + "/a file"}, "", 1, "usage"},
		{[]string{"read", "--", "-p"}, "", 3, "no such file"},
		{[]string{"list", dir + "/a file"}, "", 1, "not a directory"},
		{[]string{"list", dir + "/none"}, "", 3, "no such file"},
		{[]string{"list", dir, dir}, "", 1, "usage"},
		{[]string{"stat", dir + "/none"}, "", 3, "no such file"},
		{[]string{"write", dir}, "", 1, "is a directory"},
		{[]string{"write", dir + "/no/parent"}, "", 3, "no such file"},
		{[]string{"write", dir + "/x", "888"}, "", 1, "mode"},
		{[]string{"write", dir + "/x", "4755"}, "", 1, "mode"},
		{[]string{"remove", dir + "/a file"}, "", 1, "usage"},
		{[]string{"list"}, "", 1, "usage"},
		{nil, "", 1, "usage"},
	}
	for _, test := range tests {
		out, complaint, status := call(t, "", test.args...)
		if out != test.out || status != test.status || !strings.Contains(complaint, test.says) {
			t.Errorf("%q: %q, %q, %d; want %q, %q, %d", test.args, out, complaint, status, test.out, test.says, test.status)
		}
	}
}

func TestWrite(t *testing.T) {
	dir := tree(t)
	tests := []struct {
		args []string
		name string
		mode fs.FileMode
	}{
		{[]string{dir + "/new"}, "new", 0o644},
		{[]string{dir + "/private", "600"}, "private", 0o600},
		{[]string{dir + "/a file"}, "a file", 0o640},
		{[]string{dir + "/a file", "0755"}, "a file", 0o755},
		{[]string{"-p", dir + "/x/y/z"}, "x/y/z", 0o644},
		{[]string{dir + "/dangling"}, "dangling", 0o644},
		{[]string{dir + "/fifo"}, "fifo", 0o644},
	}
	for _, test := range tests {
		content := strings.Repeat(test.name, 10000)
		if _, complaint, _ := call(t, content, append([]string{"write"}, test.args...)...); complaint != "" {
			t.Errorf("%q: %s", test.args, complaint)
			continue
		}
		got, err := os.ReadFile(dir + "/" + test.name)
		fi, serr := os.Lstat(dir + "/" + test.name)
		if err = errors.Join(err, serr); err != nil || string(got) != content || fi.Mode() != test.mode {
			t.Errorf("%s: %d bytes, %v, %v", test.name, len(got), fi.Mode(), err)
		}
	}
	if _, err := os.Stat(dir + "/nowhere"); err == nil {
		t.Error("a link was followed")
	}
	leftovers(t, dir)
}

func leftovers(t *testing.T, dir string) {
	t.Helper()
	if names, _ := filepath.Glob(dir + "/.cofferdam-*"); len(names) != 0 {
		t.Errorf("left over: %q", names)
	}
}

// A write that is broken off leaves the file as it was.
func TestWriteBrokenOff(t *testing.T) {
	dir := tree(t)
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	status := make(chan int, 1)
	var complaint bytes.Buffer
	go func() { status <- Run(ctx, []string{"write", dir + "/a file"}, r, io.Discard, &complaint) }()
	if _, err := w.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	cancel()
	if got := <-status; got != statusError || !strings.Contains(complaint.String(), "canceled") {
		t.Errorf("status %d, %q", got, &complaint)
	}
	w.Close()
	r.Close()
	if got, err := os.ReadFile(dir + "/a file"); string(got) != "0123456789" {
		t.Errorf("%q, %v", got, err)
	}
	leftovers(t, dir)
}

func TestTarThereAndBack(t *testing.T) {
	dir, to := tree(t), t.TempDir()+"/deep/er"
	long := strings.Repeat("long", 50)
	put(t, dir+"/"+long, "x", 0o600)
	if err := os.Chmod(dir+"/sub", 0o500); err != nil {
		t.Fatal(err)
	}
	stream, _, status := call(t, "", "read", "--tar", dir)
	if status != 0 {
		t.Fatalf("status %d", status)
	}
	if _, complaint, status := call(t, stream, "write", "--tar", to); status != statusAbsent {
		t.Errorf("into nothing: %d, %s", status, complaint)
	}
	if _, complaint, _ := call(t, stream, "write", "-p", "--tar", to); complaint != "" {
		t.Fatal(complaint)
	}
	if _, complaint, _ := call(t, stream, "write", "--tar", to); complaint != "" { // over itself
		t.Fatal(complaint)
	}
	var names []string
	err := filepath.WalkDir(to, func(path string, _ fs.DirEntry, err error) error {
		names = append(names, strings.TrimPrefix(strings.TrimPrefix(path, to), "/"))
		return err
	})
	if want := []string{"", "a file", "bad\xffname", "dangling", "link", long, "script", "sub", "sub/inner"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("got %q, %v", names, err)
	}
	file, err := os.Stat(to + "/link")
	if err != nil || file.Size() != 10 || file.Mode() != 0o640 || file.ModTime().Unix() != time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC).Unix() {
		t.Errorf("%v, %v", file, err)
	}
	if sub, err := os.Stat(to + "/sub"); err != nil || sub.Mode().Perm() != 0o500 {
		t.Errorf("%v, %v", sub, err)
	}
	one, _, _ := call(t, "", "read", "--tar", dir+"/a file")
	h, err := tar.NewReader(strings.NewReader(one)).Next()
	if err != nil || h.Name != "a file" || h.Size != 10 {
		t.Errorf("%+v, %v", h, err)
	}
	for _, bad := range []string{dir + "/fifo", dir + "/none"} {
		if out, _, status := call(t, "", "read", "--tar", bad); status == 0 || out != "" {
			t.Errorf("%s: status %d, %d bytes", bad, status, len(out))
		}
	}
}

// Nothing that a stream names leads out of the directory, whatever came before it in the stream or lay there.
func TestHostileTar(t *testing.T) {
	file := func(name string) tar.Header {
		return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: 4}
	}
	link := func(name, target string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}
	}
	hard := func(name, target string) tar.Header {
		return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}
	}
	tests := []struct {
		name    string
		entries []tar.Header
		says    string // "" if it is taken
	}{
		{"plain", []tar.Header{file("a"), file("b/c/d"), {Typeflag: tar.TypeDir, Name: "./", Mode: 0o755}, {Typeflag: tar.TypeDir, Name: "b/c/", Mode: 0o755}}, ""},
		{"dots inside", []tar.Header{file("b/../a"), file("./c")}, ""},
		{"links inside", []tar.Header{file("a"), link("b/l", "../a"), hard("h", "a"), link("self", ".")}, ""},
		{"commit", []tar.Header{{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "x"}}, file("a")}, ""},
		{"replaced link", []tar.Header{link("a", "b"), file("a")}, ""},
		{"below", []tar.Header{file("../a")}, "leads out"},
		{"below, later", []tar.Header{file("x/../../a")}, "leads out"},
		{"absolute", []tar.Header{file("/tmp/a")}, "leads out"},
		{"absolute link", []tar.Header{link("l", "/etc")}, "leads out"},
		{"link below", []tar.Header{link("x/l", "../../etc")}, "leads out"},
		{"hard link below", []tar.Header{hard("l", "../secret")}, "leads out"},
		{"absolute hard link", []tar.Header{hard("l", "/etc/passwd")}, "leads out"},
		{"link of links", []tar.Header{{Typeflag: tar.TypeDir, Name: "d/e", Mode: 0o755}, link("d/e/up", "../.."), link("d/e/upup", "up/.."), file("d/e/upup/a")}, "escapes"},
		{"through a link that lay there", []tar.Header{file("out/a")}, "escapes"},
		{"hard link through it", []tar.Header{hard("l", "out/secret")}, "escapes"},
		{"device", []tar.Header{{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3}}, "neither"},
		{"pipe", []tar.Header{{Typeflag: tar.TypeFifo, Name: "p", Mode: 0o666}}, "neither"},
		{"the directory as a file", []tar.Header{file("x/..")}, "directory itself"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			base := t.TempDir()
			put(t, base+"/secret", "kept", 0o600)
			dir := base + "/dir"
			if err := errors.Join(os.Mkdir(dir, 0o755), os.Symlink("..", dir+"/out")); err != nil {
				t.Fatal(err)
			}
			var stream bytes.Buffer
			w := tar.NewWriter(&stream)
			for _, h := range test.entries {
				if err := w.WriteHeader(&h); err != nil {
					t.Fatal(err)
				}
				if _, err := w.Write([]byte("evil"[:h.Size])); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			_, complaint, status := call(t, stream.String(), "write", "--tar", dir)
			if (status == 0) != (test.says == "") || !strings.Contains(complaint, test.says) {
				t.Errorf("status %d, %q, want %q", status, complaint, test.says)
			}
			names, err := os.ReadDir(base)
			if secret, rerr := os.ReadFile(base + "/secret"); errors.Join(err, rerr) != nil || len(names) != 2 || string(secret) != "kept" {
				t.Errorf("outside: %v, %q, %v, %v", names, secret, err, rerr)
			}
		})
	}
	if _, complaint, status := call(t, strings.Repeat("no tar ", 200), "write", "--tar", t.TempDir()); status != statusError || !strings.Contains(complaint, "tar stream") {
		t.Errorf("garbage: %d, %q", status, complaint)
	}
}
