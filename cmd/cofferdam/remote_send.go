package main

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/client"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/workspace"
)

// The bounds of a folder that is sent to a server, and of what comes back.
const (
	maxSent     = 1 << 30 // bytes
	maxReturned = 4 << 30 // bytes, holes included
	maxEntries  = 400_000
	maxDepth    = 256
	maxPath     = 4095
	// maxOutward is how many links that lead out of the folder are made at once.
	maxOutward = 500
)

// entry is what one path of a folder was when it was sent. Links are kept as links and never followed.
type entry struct {
	kind   workspace.Kind
	mode   uint32 // permission bits
	size   int64
	sha256 string
	target string
}

// parcel is a folder that is about to be sent.
type parcel struct {
	dir     string
	paths   []string // a directory before what is in it
	infos   []fs.FileInfo
	bytes   int64
	outward []string            // links that lead out of the folder, which a stream may not hold
	left    map[string][]string // what is not sent, by reason
}

// survey looks at a folder and refuses one that is too large before anything is made for it.
func survey(ctx context.Context, dir string) (*parcel, error) {
	p := &parcel{dir: dir, left: map[string][]string{}}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fault.New(fault.Invalid, "cannot read the folder %s", dir).Because(err)
	}
	defer root.Close() // opened for reading
	top, err := root.Stat(".")
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", dir, err)
	}
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case name == ".":
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, fs.ErrNotExist): // gone meanwhile
			return nil
		case err != nil:
			return p.leave(name, "cannot be read", d)
		}
		info, err := d.Info()
		if err != nil {
			return p.leave(name, "cannot be read", d)
		}
		return p.add(root, name, info, device(info) != device(top), d)
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// device is which file system a path lies on.
func device(info fs.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Dev
	}
	return 0
}

func (p *parcel) add(root *os.Root, name string, info fs.FileInfo, elsewhere bool, d fs.DirEntry) error {
	switch {
	case elsewhere:
		return p.leave(name, "is mounted there from elsewhere", d)
	case len(name) > maxPath || strings.Count(name, "/") >= maxDepth:
		return p.leave(name, "lies too deep", d)
	}
	switch info.Mode().Type() {
	case 0:
		p.bytes += info.Size()
	case fs.ModeDir:
	case fs.ModeSymlink:
		target, err := root.Readlink(name)
		if err != nil {
			return p.leave(name, "cannot be read", d)
		}
		if leadsOut(name, target) {
			p.outward = append(p.outward, name)
			return nil
		}
	default:
		return p.leave(name, "is a socket, a pipe or a device", d)
	}
	if p.bytes > maxSent {
		return fault.New(fault.TooMany, "the folder %s holds more than 1 GiB, which is not sent", p.dir).
			WithHint("send a part of it with --workspace DIR, none with --workspace none, or keep it in a workspace of the server")
	}
	if len(p.paths) >= maxEntries {
		return fault.New(fault.TooMany, "the folder %s holds more than %d entries, which are not sent", p.dir, maxEntries).WithHint("send a part of it with --workspace DIR, or none with --workspace none")
	}
	p.paths, p.infos = append(p.paths, name), append(p.infos, info)
	return nil
}

// leave notes what is not sent.
func (p *parcel) leave(name, why string, d fs.DirEntry) error {
	p.left[why] = append(p.left[why], name)
	if d != nil && d.IsDir() {
		return fs.SkipDir
	}
	return nil
}

// notes says what is not sent.
func (p *parcel) notes() []string {
	var list []string
	for _, why := range []string{"is a socket, a pipe or a device", "is mounted there from elsewhere", "cannot be read", "lies too deep"} {
		names := p.left[why]
		if len(names) == 1 {
			list = append(list, fmt.Sprintf("not sent: %s %s", inert(names[0], 200), why))
		} else if len(names) > 1 {
			list = append(list, fmt.Sprintf("not sent: %s %s, and %d more like it", inert(names[0], 200), why, len(names)-1))
		}
	}
	return list
}

// leadsOut says whether a link's target lies outside the folder, by its name alone.
func leadsOut(name, target string) bool {
	return target == "" || path.IsAbs(target) || !filepath.IsLocal(path.Join(path.Dir(name), target))
}

// send sends a folder into a directory of a sandbox, and returns what was sent.
func send(ctx context.Context, r *remote, sandbox, to string, p *parcel) (map[string]entry, error) {
	root, err := os.OpenRoot(p.dir)
	if err != nil {
		return nil, fault.New(fault.Invalid, "cannot read the folder %s", p.dir).Because(err)
	}
	defer root.Close() // opened for reading
	from, into := io.Pipe()
	k := &packer{root: root, w: tar.NewWriter(into), sent: map[string]entry{}, buf: make([]byte, 128<<10)}
	packed := make(chan error, 1)
	go func() {
		err := k.all(ctx, p)
		into.CloseWithError(err)
		packed <- err
	}()
	err = r.WriteFile(ctx, sandbox, to, "", client.Tar, from)
	_ = from.CloseWithError(errors.Join(err, io.ErrClosedPipe)) // whoever packs stops if nobody takes it
	if packErr := <-packed; packErr != nil && (err == nil || !errors.Is(packErr, io.ErrClosedPipe)) {
		return nil, packErr
	}
	if err != nil {
		return nil, err
	}
	return k.sent, k.outward(ctx, r, sandbox, to, p)
}

// packer writes a folder as a tar stream and notes what was written, with digests: what comes back is compared with that.
type packer struct {
	root *os.Root
	w    *tar.Writer
	sent map[string]entry
	buf  []byte
}

func (k *packer) all(ctx context.Context, p *parcel) error {
	for i, name := range p.paths {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := k.one(name, p.infos[i]); err != nil {
			return fmt.Errorf("send %s: %w", name, err)
		}
	}
	return k.w.Close()
}

func (k *packer) one(name string, info fs.FileInfo) error {
	h := &tar.Header{Name: name, Mode: int64(info.Mode().Perm()), ModTime: info.ModTime(), Format: tar.FormatPAX}
	e := entry{mode: uint32(info.Mode().Perm())}
	switch info.Mode().Type() {
	case fs.ModeDir:
		h.Typeflag, h.Name, e.kind = tar.TypeDir, name+"/", workspace.Dir
	case fs.ModeSymlink:
		target, err := k.root.Readlink(name)
		if errors.Is(err, fs.ErrNotExist) || err == nil && leadsOut(name, target) {
			return nil // it has changed meanwhile
		}
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
		e.kind, e.target = workspace.Symlink, target
	default:
		return k.file(name, h, e)
	}
	k.sent[name] = e
	return k.w.WriteHeader(h)
}

// file writes as many bytes as the file has when it is opened: one that shrinks meanwhile is filled up with zeros.
func (k *packer) file(name string, h *tar.Header, e entry) error {
	f, err := k.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil // gone, or not for us: what comes back at its path is compared with what is there then
	}
	if err != nil {
		return err
	}
	defer f.Close() // opened for reading
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return nil // something else was put in its place
	}
	h.Typeflag, h.Size = tar.TypeReg, info.Size()
	if err := k.w.WriteHeader(h); err != nil {
		return err
	}
	digest := sha256.New()
	both := io.MultiWriter(k.w, digest)
	n, err := io.CopyBuffer(both, io.LimitReader(f, h.Size), k.buf)
	if err != nil {
		return err
	}
	if err := fillUp(both, h.Size-n, k.buf); err != nil {
		return err
	}
	e.kind, e.size, e.sha256 = workspace.File, h.Size, digestText(digest)
	k.sent[name] = e
	return nil
}

func fillUp(w io.Writer, n int64, buf []byte) error {
	clear(buf)
	for n > 0 {
		m, err := w.Write(buf[:min(n, int64(len(buf)))])
		if err != nil {
			return err
		}
		n -= int64(m)
	}
	return nil
}

func digestText(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// makeLinks makes links from its arguments, which come in pairs: target, name.
const makeLinks = `while [ $# -gt 1 ]; do ln -s -- "$1" "$2" || exit 1; shift 2; done`

// outward makes the links that lead out of the folder, as /usr/bin/python3 in many a virtual environment. They mean whatever lies there inside; no stream may
// hold them, so the sandbox's own ln makes them. Where that fails they are missing inside, and that is no change.
func (k *packer) outward(ctx context.Context, r *remote, sandbox, to string, p *parcel) error {
	links := map[string]string{}
	args := []string{"/bin/sh", "-c", makeLinks, "sh"}
	for _, name := range p.outward[:min(len(p.outward), maxOutward)] {
		if target, err := k.root.Readlink(name); err == nil && target != "" {
			links[name] = target
			args = append(args, target, "./"+name)
		}
	}
	if len(links) == 0 {
		return nil
	}
	out, err := r.ExecWait(ctx, sandbox, api.Exec{Command: args, Dir: to})
	if err != nil || out.ExitCode != 0 || out.Signal != 0 || out.Error != "" {
		return ctx.Err()
	}
	for name, target := range links {
		k.sent[name] = entry{kind: workspace.Symlink, mode: 0o777, target: target}
	}
	return nil
}
