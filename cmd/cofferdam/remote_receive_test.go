package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/workspace"
)

// folder makes a folder with one of each kind.
func folder(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "work")
	err := errors.Join(os.MkdirAll(dir+"/sub/deep", 0o755), os.Mkdir(dir+"/empty", 0o700), os.Mkdir(dir+"/old", 0o755), os.Mkdir(dir+"/.git", 0o755))
	for name, mode := range map[string]os.FileMode{"a": 0o644, "script": 0o755, "sub/deep/b": 0o600, "old/1": 0o644, "old/2": 0o644, ".git/HEAD": 0o644, "bad\xffname": 0o644} {
		err = errors.Join(err, os.WriteFile(dir+"/"+name, []byte("content of "+name), mode), os.Chmod(dir+"/"+name, mode))
	}
	err = errors.Join(err, os.Symlink("a", dir+"/link"), os.Symlink("/usr/bin/python3", dir+"/python"), os.Symlink("../../etc", dir+"/up"), syscall.Mkfifo(dir+"/pipe", 0o600))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// packed is a folder as it is sent.
func packed(t *testing.T, dir string) ([]byte, map[string]entry, *parcel) {
	t.Helper()
	p, err := survey(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var b bytes.Buffer
	k := &packer{root: root, w: tar.NewWriter(&b), sent: map[string]entry{}, buf: make([]byte, 4096)}
	if err := k.all(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), k.sent, p
}

func TestSurvey(t *testing.T) {
	_, sent, p := packed(t, folder(t))
	var names []string
	for name := range sent {
		names = append(names, name)
	}
	slices.Sort(names)
	if want := []string{".git", ".git/HEAD", "a", "bad\xffname", "empty", "link", "old", "old/1", "old/2", "script", "sub", "sub/deep", "sub/deep/b"}; !slices.Equal(names, want) {
		t.Errorf("sent %q", names)
	}
	if want := []string{"python", "up"}; !slices.Equal(p.outward, want) {
		t.Errorf("links that lead out: %q", p.outward)
	}
	if notes := p.notes(); len(notes) != 1 || !strings.Contains(notes[0], "pipe") {
		t.Errorf("notes %q", notes)
	}
	big := t.TempDir()
	if err := errors.Join(os.WriteFile(big+"/hole", nil, 0o600), os.Truncate(big+"/hole", maxSent+1)); err != nil {
		t.Fatal(err)
	}
	if _, err := survey(t.Context(), big); err == nil || !strings.Contains(err.Error(), "1 GiB") {
		t.Errorf("a folder that is too large: %v", err)
	}
}

// collected receives a folder and collects its changes.
func collected(t *testing.T, dir string, stream []byte, sent map[string]entry) []string {
	t.Helper()
	base := t.TempDir()
	upper := base + "/upper"
	if err := os.Mkdir(upper, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := receive(t.Context(), bytes.NewReader(stream), upper, sent); err != nil {
		t.Fatal(err)
	}
	tree, err := os.Open(upper)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	if _, err := workspace.Collect(t.Context(), workspace.CollectOptions{Upper: tree, Lower: dir, Dest: base + "/changes", IDShift: uint32(os.Geteuid()) + 1, Started: time.Now()}); err != nil {
		t.Fatal(err)
	}
	c, err := workspace.Open(base+"/changes", dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, one := range c.List() {
		list = append(list, string(one.Op())+" "+string(one.Path))
	}
	return list
}

// What comes back as it was sent changes nothing, whatever a person did to the folder meanwhile; what differs is a change like any run's.
func TestThereAndBack(t *testing.T) {
	dir := folder(t)
	stream, sent, _ := packed(t, dir)
	if err := errors.Join(os.WriteFile(dir+"/a", []byte("a person wrote this"), 0o644), os.RemoveAll(dir+"/sub"), os.WriteFile(dir+"/mine", nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if got := collected(t, dir, stream, sent); len(got) != 0 {
		t.Errorf("nothing was changed inside, and collected was %q", got)
	}

	dir = folder(t)
	_, sent, _ = packed(t, dir)
	inside := folder(t)
	err := errors.Join(
		os.WriteFile(inside+"/a", []byte("changed"), 0o644), os.Chmod(inside+"/script", 0o700), os.RemoveAll(inside+"/old"), os.Remove(inside+"/sub/deep/b"),
		os.Remove(inside+"/link"), os.Symlink("script", inside+"/link"), os.Remove(inside+"/empty"), os.WriteFile(inside+"/empty", []byte("a file now"), 0o644),
		os.MkdirAll(inside+"/new/dir", 0o755), os.WriteFile(inside+"/new/dir/f", nil, 0o644), os.Symlink("/etc/passwd", inside+"/new/evil"), os.WriteFile(inside+"/.git/config", nil, 0o644),
	)
	if err != nil {
		t.Fatal(err)
	}
	stream, _, _ = packed(t, inside)
	want := []string{
		"add .git/config", "modify a", "modify empty", "modify link", "add new", "add new/dir", "add new/dir/f", "delete old", "delete old/1", "delete old/2", "modify script", "delete sub/deep/b",
	}
	if got := collected(t, dir, stream, sent); !slices.Equal(got, want) {
		t.Errorf("collected\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// stream writes entries as they are given.
func stream(t *testing.T, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, strings.Repeat("x", int(h.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Nothing of a stream leaves the directory, and what no packer of ours writes is refused.
func TestHostileStream(t *testing.T) {
	file := func(name string) tar.Header {
		return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o6755, Size: 4}
	}
	dir := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o7755} }
	link := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
	}
	tests := []struct {
		name    string
		entries []tar.Header
		says    string // "" if it is taken
	}{
		{"plain", []tar.Header{dir("d"), file("d/f"), file("g"), link("l", "/etc/passwd"), link("d/up", "../..")}, ""},
		{"above", []tar.Header{file("../f")}, "no folder"},
		{"above, later", []tar.Header{dir("d"), file("d/../../f")}, "no folder"},
		{"absolute", []tar.Header{file("/tmp/f")}, "no folder"},
		{"dots inside", []tar.Header{dir("d"), file("d/../f")}, "no folder"},
		{"itself", []tar.Header{dir(".")}, "no folder"},
		{"empty name", []tar.Header{{Typeflag: tar.TypeReg, Name: "", Size: 4}}, "no folder"},
		{"through a link", []tar.Header{link("l", ".."), file("l/f")}, "does not lie in a folder"},
		{"through a link inside", []tar.Header{dir("d"), link("l", "d"), file("l/f")}, "does not lie in a folder"},
		{"link, then folder", []tar.Header{link("l", ".."), dir("l"), file("l/f")}, "two entries"},
		{"folder, then link", []tar.Header{dir("l"), link("l", "..")}, "two entries"},
		{"file twice", []tar.Header{file("f"), file("f")}, "two entries"},
		{"below a file", []tar.Header{file("f"), file("f/g")}, "does not lie in a folder"},
		{"without its folder", []tar.Header{file("d/f")}, "does not lie in a folder"},
		{"hard link", []tar.Header{file("f"), {Typeflag: tar.TypeLink, Name: "h", Linkname: "f"}}, "neither"},
		{"hard link out", []tar.Header{{Typeflag: tar.TypeLink, Name: "h", Linkname: "../secret"}}, "neither"},
		{"device", []tar.Header{{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3}}, "neither"},
		{"whiteout", []tar.Header{{Typeflag: tar.TypeChar, Name: "w"}}, "neither"},
		{"block device", []tar.Header{{Typeflag: tar.TypeBlock, Name: "sda", Devmajor: 8}}, "neither"},
		{"pipe", []tar.Header{{Typeflag: tar.TypeFifo, Name: "p"}}, "neither"},
		{"long component", []tar.Header{file(strings.Repeat("n", 256))}, "no folder"},
		{"deep", []tar.Header{file(strings.Repeat("d/", maxDepth) + "f")}, "a path of"},
		{"link to nothing", []tar.Header{link("l", "")}, "target"},
		{"huge", []tar.Header{{Typeflag: tar.TypeReg, Name: "f", Size: 0, Format: tar.FormatGNU}}, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			base := t.TempDir()
			to := base + "/to"
			if err := errors.Join(os.Mkdir(to, 0o700), os.WriteFile(base+"/secret", []byte("kept"), 0o600)); err != nil {
				t.Fatal(err)
			}
			_, err := receive(t.Context(), bytes.NewReader(stream(t, test.entries...)), to, nil)
			if (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want %q", err, test.says)
			}
			names, rerr := os.ReadDir(base)
			if secret, serr := os.ReadFile(base + "/secret"); errors.Join(rerr, serr) != nil || len(names) != 2 || string(secret) != "kept" {
				t.Errorf("outside: %v %q %v %v", names, secret, rerr, serr)
			}
			if test.name == "plain" {
				if info, err := os.Lstat(to + "/d/f"); err != nil || info.Mode() != 0o755 {
					t.Errorf("set-id bits came along: %v %v", info, err)
				}
			}
		})
	}
}

// A stream that claims more than it may hold is refused before anything of it is written, and one that was cut off deletes nothing.
func TestHostileSizes(t *testing.T) {
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "f", Size: maxReturned + 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := receive(t.Context(), &b, t.TempDir(), nil); err == nil || !strings.Contains(err.Error(), "4 GiB") {
		t.Errorf("a huge file: %v", err)
	}
	whole := stream(t, tar.Header{Typeflag: tar.TypeReg, Name: "a", Size: 4}, tar.Header{Typeflag: tar.TypeReg, Name: "b", Size: 4})
	sent := map[string]entry{"a": {kind: workspace.File}, "b": {kind: workspace.File}, "c": {kind: workspace.File}}
	for _, n := range []int{0, 100, 512, 600, 1024, 1536, 2048, 2048 + 512} {
		to := t.TempDir()
		if _, err := receive(t.Context(), bytes.NewReader(whole[:n]), to, sent); err == nil {
			t.Errorf("cut off after %d bytes, and taken", n)
		}
		if _, err := os.Lstat(to + "/c"); err == nil {
			t.Errorf("cut off after %d bytes: something counts as deleted", n)
		}
	}
	if _, err := receive(t.Context(), bytes.NewReader(whole), t.TempDir(), sent); err != nil {
		t.Errorf("the whole: %v", err)
	}
	if _, err := receive(t.Context(), io.MultiReader(bytes.NewReader(whole), failing{}), t.TempDir(), sent); err == nil {
		t.Error("an error after the end is not told")
	}
	if _, err := receive(t.Context(), strings.NewReader(strings.Repeat("no tar ", 200)), t.TempDir(), nil); err == nil {
		t.Error("garbage was taken")
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("the connection broke") }

func FuzzReceive(f *testing.F) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := range 3 {
		_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprint("f", i), Size: 2})
		_, _ = io.WriteString(w, "hi")
	}
	_ = w.Close()
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		base := t.TempDir()
		if err := os.Mkdir(base+"/to", 0o700); err != nil {
			t.Fatal(err)
		}
		_, _ = receive(t.Context(), bytes.NewReader(data), base+"/to", map[string]entry{"f1": {kind: workspace.File, size: 2}})
		if names, err := os.ReadDir(base); err != nil || len(names) != 1 {
			t.Errorf("outside: %v %v", names, err)
		}
	})
}
