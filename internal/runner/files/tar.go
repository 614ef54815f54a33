package files

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"
	"time"
)

// pack writes what a directory holds as a tar stream, names relative to it; of a file, the one entry. Pipes, sockets and devices are left out.
func pack(out io.Writer, name string) error {
	fi, err := os.Stat(name)
	if err != nil {
		return err
	}
	only := ""
	if !fi.IsDir() {
		name, only = filepath.Split(name)
		if name == "" {
			name = "."
		}
	}
	root, err := os.OpenRoot(name)
	if err != nil {
		return err
	}
	defer root.Close() // opened for reading
	p := packer{root: root, w: tar.NewWriter(out)}
	if only != "" {
		if err := regular(fi, nil); err != nil {
			return named(only, err)
		}
		err = p.add(only, fi)
	} else {
		err = fs.WalkDir(root.FS(), ".", p.visit)
	}
	if err != nil {
		return err
	}
	return p.w.Close()
}

type packer struct {
	root *os.Root
	w    *tar.Writer
}

func (p *packer) visit(name string, d fs.DirEntry, err error) error {
	if errors.Is(err, fs.ErrNotExist) && name != "." { // removed meanwhile
		return nil
	}
	if err != nil || name == "." {
		return err
	}
	fi, err := d.Info()
	if err == nil {
		err = p.add(name, fi)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// add writes one entry. fs.ErrNotExist comes only before anything of it is written.
func (p *packer) add(name string, fi fs.FileInfo) error {
	h := &tar.Header{Name: name, Mode: int64(fi.Mode().Perm()), ModTime: fi.ModTime()}
	if uid, gid, ok := owner(fi); ok {
		h.Uid, h.Gid = uid, gid
	}
	switch fi.Mode().Type() {
	case fs.ModeDir:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
		return p.w.WriteHeader(h)
	case fs.ModeSymlink:
		target, err := p.root.Readlink(name)
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
		return p.w.WriteHeader(h)
	case 0:
		h.Typeflag = tar.TypeReg
		return p.addFile(h, name)
	}
	return nil
}

// addFile writes as many bytes as the file had when it was opened: one that shrinks meanwhile is filled up with zeros, as GNU tar does.
func (p *packer) addFile(h *tar.Header, name string) error {
	f, err := p.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer f.Close() // opened for reading
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return nil // something else was put in its place
	}
	h.Size = fi.Size()
	if err := p.w.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(p.w, io.LimitReader(f, h.Size))
	if err != nil {
		return err
	}
	_, err = io.Copy(p.w, io.LimitReader(zeros{}, h.Size-n))
	return err
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// unpack fills a directory from a tar stream. It refuses names and links that lead out, and everything that is neither file, directory nor link; what lies in
// the way of a file or link is replaced. What was unpacked before an error stays.
func unpack(in io.Reader, name string) error {
	root, err := os.OpenRoot(name)
	if err != nil {
		return err
	}
	defer root.Close() // nothing is buffered
	u := unpacker{root: root}
	r := tar.NewReader(in)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return u.finish()
		}
		if err != nil {
			return fmt.Errorf("tar stream: %w", err)
		}
		if err := u.entry(h, r); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
}

type unpacker struct {
	root *os.Root
	dirs []made
}

// made is a directory whose mode and time are set last, when nothing is put into it any more.
type made struct {
	name string
	mode fs.FileMode
	time time.Time
}

func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader { // facts about the stream, such as git's commit
		return nil
	}
	name := path.Clean(h.Name)
	if !filepath.IsLocal(name) {
		return errors.New("the name leads out of the directory")
	}
	if name != "." {
		if err := u.root.MkdirAll(path.Dir(name), dirMode); err != nil {
			return err
		}
	}
	mode := fs.FileMode(h.Mode).Perm()
	switch h.Typeflag {
	case tar.TypeDir:
		if err := u.root.MkdirAll(name, dirMode); err != nil {
			return err
		}
		if name != "." {
			u.dirs = append(u.dirs, made{name, mode, h.ModTime})
		}
		return nil
	case tar.TypeReg:
		return u.file(name, mode, h.ModTime, content)
	case tar.TypeSymlink:
		if h.Linkname == "" || path.IsAbs(h.Linkname) || !filepath.IsLocal(path.Join(path.Dir(name), h.Linkname)) {
			return errors.New("the link leads out of the directory")
		}
		if err := u.clear(name); err != nil {
			return err
		}
		return u.root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		target := path.Clean(h.Linkname)
		if !filepath.IsLocal(target) {
			return errors.New("the link leads out of the directory")
		}
		if target == name {
			return nil
		}
		if err := u.clear(name); err != nil {
			return err
		}
		return u.root.Link(target, name)
	default:
		return errors.New("is neither file, directory nor link")
	}
}

// file writes a new file: one that lay there is not written into, since it may be somebody's under another name.
func (u *unpacker) file(name string, mode fs.FileMode, modified time.Time, content io.Reader) error {
	if err := u.clear(name); err != nil {
		return err
	}
	f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return u.root.Chtimes(name, modified, modified)
}

// clear removes what lies in the way, unless it is a directory that holds something.
func (u *unpacker) clear(name string) error {
	if name == "." {
		return errors.New("is the directory itself")
	}
	if err := u.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// finish sets modes and times of directories, the innermost first: who may not write into one may still change what it holds.
func (u *unpacker) finish() error {
	for i := len(u.dirs) - 1; i >= 0; i-- {
		d := u.dirs[i]
		if fi, err := u.root.Lstat(d.name); err != nil || !fi.IsDir() {
			continue // a later entry has taken its place
		}
		if err := u.root.Chmod(d.name, d.mode); err != nil {
			return err
		}
		if err := u.root.Chtimes(d.name, d.time, d.time); err != nil {
			return err
		}
	}
	return nil
}
