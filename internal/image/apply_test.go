package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// unpack applies layers to a new tree, beside which lies what no layer may touch.
func unpack(t testing.TB, layers ...[]byte) (dir string, a *applier, err error) {
	t.Helper()
	above := t.TempDir()
	dir = filepath.Join(above, "tree")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(above, "outside"), []byte("outside"), 0o644), os.Mkdir(filepath.Join(above, "outdir"), 0o755)); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, above)
	a, err = newApplier(dir, Bounds{Unpacked: 1 << 20, Files: 200})
	if err != nil {
		t.Fatal(err)
	}
	left := a.bounds.Unpacked
	for _, l := range layers {
		if _, _, err = a.applyLayer(context.Background(), bytes.NewReader(l), "", "", &left); err != nil {
			break
		}
	}
	if err == nil {
		_, err = a.finishTree()
	} else {
		_ = a.close() // refused already
	}
	after := snapshot(t, above)
	for name := range after {
		if name == "tree" || strings.HasPrefix(name, "tree/") {
			delete(after, name)
		}
	}
	delete(before, "tree")
	same(t, "outside", after, before)
	return dir, a, err
}

// TestEscapes applies layers that try to leave. Each ends inside or is refused; unpack looks outside.
func TestEscapes(t *testing.T) {
	up := strings.Repeat("../", 20)
	for _, c := range []struct {
		name    string
		entries []entry
		says    string            // refused with these words
		tree    map[string]string // or taken, and then these are there
	}{
		{"name that leads upwards", []entry{{name: "../outside", content: "x"}}, "leads upwards", nil},
		{"name that leads upwards later", []entry{{name: "a/../../outside", content: "x"}}, "leads upwards", nil},
		{"absolute name", []entry{{name: "/outside", content: "x"}}, "", map[string]string{"outside": `-rw-r--r-- "x"`}},
		{"directory that leads upwards", []entry{{name: "../outdir/", kind: tar.TypeDir, mode: 0o777}}, "leads upwards", nil},
		{"link upwards, then through it", []entry{{name: "a", kind: tar.TypeSymlink, link: up}, {name: "a/outside", content: "x"}}, "", map[string]string{"outside": `-rw-r--r-- "x"`}},
		{"absolute link, then through it", []entry{{name: "a", kind: tar.TypeSymlink, link: "/etc"}, {name: "etc/", kind: tar.TypeDir}, {name: "a/passwd", content: "x"}}, "", map[string]string{"etc/passwd": `-rw-r--r-- "x"`}},
		{"link to nothing, then through it", []entry{{name: "a", kind: tar.TypeSymlink, link: "/nowhere"}, {name: "a/file", content: "x"}}, "no directory", nil},
		{"link to a file outside, then the same name", []entry{{name: "a", kind: tar.TypeSymlink, link: "../outside"}, {name: "a", content: "x"}}, "", map[string]string{"a": `-rw-r--r-- "x"`}},
		{"link in a circle", []entry{{name: "a", kind: tar.TypeSymlink, link: "a"}, {name: "a/file", content: "x"}}, "no directory", nil},
		{"chain of links", []entry{{name: "a", kind: tar.TypeSymlink, link: "b"}, {name: "b", kind: tar.TypeSymlink, link: "../../outdir"}, {name: "outdir/", kind: tar.TypeDir}, {name: "a/file", content: "x"}}, "", map[string]string{"outdir/file": `-rw-r--r-- "x"`}},
		{"link to /proc/self/root", []entry{{name: "a", kind: tar.TypeSymlink, link: "/proc/self/root"}, {name: "a/file", content: "x"}}, "no directory", nil},
		{"hard link out", []entry{{name: "a", kind: tar.TypeLink, link: "../outside"}}, "leads upwards", nil},
		{"absolute hard link", []entry{{name: "a", kind: tar.TypeLink, link: "/etc/passwd"}}, "not in the image", nil},
		{"hard link through a link", []entry{{name: "l", kind: tar.TypeSymlink, link: up + "etc"}, {name: "a", kind: tar.TypeLink, link: "l/passwd"}}, "not in the image", nil},
		{"hard link to a link", []entry{{name: "l", kind: tar.TypeSymlink, link: "../outside"}, {name: "a", kind: tar.TypeLink, link: "l"}}, "", map[string]string{"a": "Lrwxrwxrwx -> ../outside", "l": "Lrwxrwxrwx -> ../outside"}},
		{"hard link to a link, then the same name", []entry{{name: "l", kind: tar.TypeSymlink, link: "../outside"}, {name: "a", kind: tar.TypeLink, link: "l"}, {name: "a", content: "x"}}, "", map[string]string{"a": `-rw-r--r-- "x"`, "l": "Lrwxrwxrwx -> ../outside"}},
		{"hard link to a directory", []entry{{name: "d/", kind: tar.TypeDir}, {name: "a", kind: tar.TypeLink, link: "d"}}, "no file of the image", nil},
		{"hard link to itself", []entry{{name: "a", content: "x"}, {name: "a", kind: tar.TypeLink, link: "./a"}}, "to itself", nil},
		{"hard link to the root", []entry{{name: "a", kind: tar.TypeLink, link: "/"}}, "to itself or to the root", nil},
		{"hard link in place of its own directory", []entry{{name: "d/f", content: "x"}, {name: "d", kind: tar.TypeLink, link: "d/f"}}, "cannot unpack", nil},
		{"whiteout of ..", []entry{{name: ".wh..."}}, "which is no file", nil},
		{"whiteout of .", []entry{{name: ".wh.."}}, "which is no file", nil},
		{"whiteout of nothing", []entry{{name: ".wh."}}, "which is no file", nil},
		{"whiteout through a link", []entry{{name: "a", kind: tar.TypeSymlink, link: ".."}, {name: "a/.wh.outside"}}, "", map[string]string{"a": "Lrwxrwxrwx -> .."}},
		{"whiteout that leads upwards", []entry{{name: "../.wh.outside"}}, "leads upwards", nil},
		{"opaque through a link", []entry{{name: "a", kind: tar.TypeSymlink, link: ".."}, {name: "a/.wh..wh..opq"}}, "", map[string]string{"a": "Lrwxrwxrwx -> .."}},
		{"name below a whiteout", []entry{{name: ".wh.a/b", content: "x"}}, "below a removed", nil},
		{"device", []entry{{name: "sda", kind: tar.TypeBlock}, {name: "null", kind: tar.TypeChar}, {name: "pipe", kind: tar.TypeFifo}}, "", map[string]string{}},
		{"device in place of a file", []entry{{name: "a", content: "x"}, {name: "a", kind: tar.TypeChar}}, "", map[string]string{}},
		{"file in place of the root", []entry{{name: ".", content: "x"}}, "root directory", nil},
		{"file in place of a directory", []entry{{name: "a/b/c", content: "x"}, {name: "a", content: "y"}, {name: "a/d", content: "z"}}, "no directory", nil},
		{"directory in place of a link", []entry{{name: "a", kind: tar.TypeSymlink, link: "../outdir"}, {name: "a/", kind: tar.TypeDir}, {name: "a/f", content: "x"}}, "", map[string]string{"a": "drwxr-xr-x", "a/f": `-rw-r--r-- "x"`}},
		{"link swapped under a cached name", []entry{{name: "d/f", content: "x"}, {name: "d", kind: tar.TypeSymlink, link: "/etc"}, {name: "d/g", content: "y"}}, "no directory", nil},
		{"link without a target", []entry{{name: "a", kind: tar.TypeSymlink, link: strings.Repeat("a", 5000)}}, "leads nowhere", nil},
		{"name that is too long", []entry{{name: strings.Repeat("a", 300), content: "x"}}, "cannot unpack", nil},
		{"path that is too long", []entry{{name: strings.Repeat("a/", 2500) + "x", content: "x"}}, "no file can have", nil},
		{"too deep", []entry{{name: strings.Repeat("a/", 300) + "x", content: "x"}}, "directories deep", nil},
		{"twice", []entry{{name: "a", content: "x", mode: 0o400}, {name: "./a", content: "y"}}, "", map[string]string{"a": `-rw-r--r-- "y"`}},
		{"set-id bits", []entry{{name: "a", content: "x", mode: 0o6755}, {name: "d/", kind: tar.TypeDir, mode: 0o3777}}, "", map[string]string{"a": `-rwxr-xr-x "x"`, "d": "dtrwxrwxrwx"}},
		{"case", []entry{{name: "a", content: "x"}, {name: "A", content: "y"}}, "", map[string]string{"a": `-rw-r--r-- "x"`, "A": `-rw-r--r-- "y"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, _, err := unpack(t, archive(t, c.entries...))
			if c.says != "" {
				if err == nil || !strings.Contains(err.Error(), c.says) || fault.KindOf(err) == fault.Internal {
					t.Errorf("%v: %v, want %q", fault.KindOf(err), err, c.says)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := snapshot(t, dir)
			if len(c.tree) == 0 && len(got) != 1 {
				t.Errorf("there is %v", got)
			}
			for name, want := range c.tree {
				if got[name] != want {
					t.Errorf("%s is %q, want %q", name, got[name], want)
				}
			}
		})
	}
}

// TestWhiteouts removes what lies below and nothing of the same layer, wherever the mark stands.
func TestWhiteouts(t *testing.T) {
	below := archive(t, entry{name: "d/old", content: "o"}, entry{name: "d/sub/old", content: "o"}, entry{name: "d/sub/deep/old", content: "o"}, entry{name: "f", content: "o"}, entry{name: "keep", content: "k"},
		entry{name: "l", kind: tar.TypeSymlink, link: "d"})
	for _, c := range []struct {
		name    string
		entries []entry
		want    string
	}{
		{"file", []entry{{name: ".wh.f"}}, ". d d/old d/sub d/sub/deep d/sub/deep/old d/sub/old keep l"},
		{"directory", []entry{{name: ".wh.d"}}, ". f keep l"},
		{"link, not what it leads to", []entry{{name: ".wh.l"}}, ". d d/old d/sub d/sub/deep d/sub/deep/old d/sub/old f keep"},
		{"through a link", []entry{{name: "l/.wh.old"}}, ". d d/sub d/sub/deep d/sub/deep/old d/sub/old f keep l"},
		{"of what the layer brings, before", []entry{{name: ".wh.f"}, {name: "f", content: "n"}}, ". d d/old d/sub d/sub/deep d/sub/deep/old d/sub/old f keep l"},
		{"of what the layer brings, after", []entry{{name: "f", content: "n"}, {name: ".wh.f"}}, ". d d/old d/sub d/sub/deep d/sub/deep/old d/sub/old f keep l"},
		{"opaque before", []entry{{name: "d/.wh..wh..opq"}, {name: "d/new", content: "n"}}, ". d d/new f keep l"},
		{"opaque after", []entry{{name: "d/new", content: "n"}, {name: "d/sub/deep/new", content: "n"}, {name: "d/.wh..wh..opq"}}, ". d d/new d/sub d/sub/deep d/sub/deep/new f keep l"},
		{"opaque root", []entry{{name: "new", content: "n"}, {name: ".wh..wh..opq"}}, ". new"},
		{"of what is not there", []entry{{name: "x/.wh.y"}}, ". d d/old d/sub d/sub/deep d/sub/deep/old d/sub/old f keep l x"},
		{"what AUFS kept", []entry{{name: ".wh..wh.aufs"}, {name: ".wh..wh.plnk", kind: tar.TypeDir}}, ". d d/old d/sub d/sub/deep d/sub/deep/old d/sub/old f keep l"},
		{"then a file for a directory", []entry{{name: ".wh.d"}, {name: "d", content: "n"}}, ". d f keep l"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, _, err := unpack(t, below, archive(t, c.entries...))
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, _ error) error {
				rel, _ := filepath.Rel(dir, path)
				names = append(names, rel)
				return nil
			})
			if got := strings.Join(names, " "); got != c.want {
				t.Errorf("there is %s, want %s", got, c.want)
			}
			if data, err := os.ReadFile(filepath.Join(dir, "f")); strings.HasPrefix(c.name, "of what the layer brings") && (err != nil || string(data) != "n") {
				t.Errorf("f holds %q, %v", data, err)
			}
		})
	}
}

// TestBounds ends layers that are too much, however small they are.
func TestBounds(t *testing.T) {
	var many []entry
	for i := range 201 {
		many = append(many, entry{name: fmt.Sprint(i)})
	}
	if _, _, err := unpack(t, archive(t, many...)); fault.KindOf(err) != fault.TooMany || !strings.Contains(fault.HintOf(err), "--max-files") {
		t.Errorf("201 files: %v", err)
	}
	if _, _, err := unpack(t, archive(t, many[:101]...), archive(t, many[100:]...)); fault.KindOf(err) != fault.TooMany {
		t.Errorf("202 files in two layers: %v", err)
	}
	half := strings.Repeat("a", 600<<10)
	if _, _, err := unpack(t, archive(t, entry{name: "a", content: half}), archive(t, entry{name: "a", content: half})); fault.KindOf(err) != fault.TooMany || !strings.Contains(fault.HintOf(err), "--max-size") {
		t.Errorf("two halves: %v", err)
	}
	if _, _, err := unpack(t, sparse()); fault.KindOf(err) != fault.TooMany {
		t.Errorf("sparse file: %v", err)
	}
	if _, _, err := unpack(t, archive(t, entry{name: "a", content: half})[:2000]); fault.KindOf(err) != fault.Invalid {
		t.Errorf("half an archive: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	a, err := newApplier(t.TempDir(), Bounds{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	if err := a.layer(ctx, bytes.NewReader(archive(t, many...))); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
}

// sparse is an archive of one block that stands for a file of 8 TiB: GNU's old form, with one hole.
func sparse() []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	_ = w.WriteHeader(&tar.Header{Name: "sparse", Typeflag: tar.TypeReg, Mode: 0o644, Format: tar.FormatGNU}) // into memory
	_ = w.Close()
	b := out.Bytes()
	b[156] = tar.TypeGNUSparse
	copy(b[386:], "00000000000\x0000000000000\x00")              // one part: at 0, of no bytes
	copy(b[483:], []byte{0x80, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0}) // the real size, in base 256
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// TestOwners keeps owners as root, and times and attributes as anybody.
func TestOwners(t *testing.T) {
	dir, a, err := unpack(t, archive(t,
		entry{name: "d/", kind: tar.TypeDir, uid: 1000, mode: 0o500}, entry{name: "d/f", content: "x", uid: 1000, mode: 0o040},
		entry{name: "d/same", kind: tar.TypeLink, link: "d/f"}, entry{name: "far", content: "x", uid: 1_000_000},
		entry{name: "x", content: "x", pax: map[string]string{"SCHILY.xattr.user.note": "kept", "SCHILY.xattr.user.overlay.redirect": "no", "SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.security.capability": "no"}}))
	if err != nil {
		t.Fatal(err)
	}
	if a.left.foreign != 1 || a.left.xattrs < 3 {
		t.Errorf("left out: %+v", a.left)
	}
	for name, uid := range map[string]uint32{"d": 1000, "d/f": 1000, "far": maxID, "x": 0} {
		info, err := os.Lstat(filepath.Join(dir, name))
		if os.Geteuid() != 0 {
			uid = uint32(os.Geteuid())
		}
		if err != nil || info.Sys().(*syscall.Stat_t).Uid != uid || !info.ModTime().Equal(time.Unix(1_700_000_000, 0)) {
			t.Errorf("%s: %+v, %v", name, info, err)
		}
	}
	value := make([]byte, 100)
	n, err := unix.Getxattr(filepath.Join(dir, "x"), "user.note", value)
	if err != nil && !errors.Is(err, unix.ENOTSUP) || err == nil && string(value[:n]) != "kept" {
		t.Errorf("%q, %v", value[:max(n, 0)], err)
	}
	list := make([]byte, 1000)
	if n, err := unix.Listxattr(filepath.Join(dir, "x"), list); err != nil || bytes.Contains(list[:n], []byte("overlay")) || bytes.Contains(list[:n], []byte("capability")) {
		t.Errorf("%q, %v", list[:max(n, 0)], err)
	}
	if err := removeAll(dir); err != nil {
		t.Errorf("remove: %v", err)
	}
}

// TestRemoveClosed removes trees whose directories their owner may not enter.
func TestRemoveClosed(t *testing.T) {
	dir, _, err := unpack(t, archive(t, entry{name: "a/", kind: tar.TypeDir, mode: 0o1}, entry{name: "a/b/", kind: tar.TypeDir, mode: 0o1}, entry{name: "a/b/c", content: "x"}, entry{name: "r/", kind: tar.TypeDir, mode: 0o555}, entry{name: "r/f", content: "x"}))
	if err != nil {
		t.Fatal(err)
	}
	if err := removeAll(dir); err != nil {
		t.Error(err)
	}
}

// FuzzApply throws bytes at the applier: nothing outside is touched, and whatever comes of it, the tree holds files, directories and links only, none of them set-id.
func FuzzApply(f *testing.F) {
	f.Add(base(f), more(f))
	f.Add(sparse(), []byte{})
	f.Add(archive(f, entry{name: "a", kind: tar.TypeSymlink, link: "../.."}, entry{name: "a/outside", content: "x"}), archive(f, entry{name: "a/.wh.outside"}, entry{name: ".wh..wh..opq"}))
	f.Add(archive(f, entry{name: "d/f", content: "x", uid: 5}, entry{name: "d", kind: tar.TypeLink, link: "d/f"}), archive(f, entry{name: "c", kind: tar.TypeChar}, entry{name: "s", mode: 0o7777, content: "x"}))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		dir, _, err := unpack(t, first, second)
		if err != nil && fault.KindOf(err) == fault.Internal {
			t.Errorf("not a word for people: %v", err)
		}
		checkTree(t, dir)
		if err := removeAll(dir); err != nil {
			t.Errorf("remove: %v", err)
		}
	})
}

// FuzzEntries does the same with archives that are whole, of entries that get in each other's way: three bytes choose one.
func FuzzEntries(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, 3, 9, 0, 4, 0, 3, 5, 1, 9, 9, 9})
	f.Add([]byte{2, 0, 8, 0, 5, 0, 1, 0, 0, 0, 5, 0, 0, 12, 0, 0, 13, 0, 3, 1, 5})
	kinds := []byte{0, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeChar, tar.TypeFifo}
	names := []string{"a", "b", "c", "a/b", "a/c", "b/a", "a/b/c", "c/a/b", ".", "..", "/", "../outside", ".wh.a", "a/.wh.b", ".wh..wh..opq", "a/.wh..wh..opq", "b/.wh.outside", "a/../b", "/a", "./a",
		"c/outside", "../../outdir", "/etc", "b/..", ".wh..wh.x", "a/b/.wh.c"}
	f.Fuzz(func(t *testing.T, data []byte) {
		var layers [2][]entry
		for i := 0; i+2 < min(len(data), 300); i += 3 {
			kind := kinds[int(data[i])%len(kinds)]
			e := entry{name: names[int(data[i+1])%len(names)], kind: kind, mode: int64(data[i+2])<<4 | 0o4, uid: int(data[i+2])}
			switch kind {
			case 0:
				e.content = "x"
			case tar.TypeSymlink, tar.TypeLink:
				e.link = names[int(data[i+2])%len(names)]
			}
			if kind != tar.TypeDir {
				e.name = strings.TrimSuffix(e.name, "/")
			}
			if e.name != "" {
				layers[min(i/150, 1)] = append(layers[min(i/150, 1)], e)
			}
		}
		dir, _, err := unpack(t, archive(t, layers[0]...), archive(t, layers[1]...))
		if err != nil && fault.KindOf(err) == fault.Internal {
			t.Errorf("not a word for people: %v", err)
		}
		checkTree(t, dir)
		if err := removeAll(dir); err != nil {
			t.Errorf("remove: %v", err)
		}
	})
}

func checkTree(t *testing.T, dir string) {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrPermission) {
			return nil
		}
		if err != nil {
			return err
		}
		if d.Type()&^(fs.ModeDir|fs.ModeSymlink) != 0 {
			t.Errorf("%q is %v", path, d.Type())
		}
		if info, err := d.Info(); err == nil && info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
			t.Errorf("%q is %v", path, info.Mode())
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestApplyAsUser does all of it as an ordinary user.
func TestApplyAsUser(t *testing.T) {
	testenv.Need(t, "root")
	asUser(t, "TestEscapes|TestWhiteouts|TestOwners|TestRemoveClosed|TestPull$|TestTagMoves|TestImport")
}
