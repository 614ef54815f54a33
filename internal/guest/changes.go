package guest

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
)

// The bounds of what is sent: those of package workspace, which collects nothing beyond. A directory at the greatest depth is sent without what is in it.
const (
	maxPath  = 4095
	maxDepth = 256
)

// opaqueMark is overlayfs's attribute of a directory that hides what lies below it (overlayfs.rst), where root of the machine has mounted it.
const opaqueMark = "trusted.overlay.opaque"

// sender writes an overlay's upper directory as the stream that boot describes. Every process that could write there is gone, so what is looked at stays as it is.
type sender struct {
	tree  *os.Root
	out   *tar.Writer
	names map[uint64]string // files with several names that were sent, by their number
	todo  []string          // directories that were sent and not looked into
}

// sendChanges writes the stream and does not close out.
func sendChanges(out io.Writer, upper *os.File) error {
	tree, err := os.OpenRoot("/proc/self/fd/" + strconv.Itoa(int(upper.Fd())))
	if err != nil {
		return err
	}
	defer tree.Close()
	chunks := bufio.NewWriterSize(out, boot.MaxChunk)
	s := sender{tree: tree, out: tar.NewWriter(chunks), names: map[uint64]string{}}
	if err := s.entry(upper, ".", "."); err != nil {
		return err
	}
	for len(s.todo) > 0 {
		dir := s.todo[len(s.todo)-1]
		s.todo = s.todo[:len(s.todo)-1]
		if err := s.directory(dir); err != nil {
			return err
		}
	}
	return errors.Join(s.out.Close(), chunks.Flush())
}

// directory sends what is in a directory, some names at a time.
func (s *sender) directory(dir string) error {
	d, err := s.tree.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	for {
		names, err := d.Readdirnames(512)
		for _, name := range names {
			if err := s.entry(d, path.Join(dir, name), name); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// entry sends one path, which is base in an open directory, and notes it if there is more in it.
func (s *sender) entry(dir *os.File, name, base string) error {
	if len(name) > maxPath {
		return fmt.Errorf("a path of %d bytes is longer than %d", len(name), maxPath)
	}
	h, err := s.header(int(dir.Fd()), name, base)
	if err != nil {
		return err
	}
	switch {
	case h.Typeflag == tar.TypeReg:
		return s.file(h, int(dir.Fd()), base)
	case h.Typeflag == tar.TypeDir && strings.Count(name, "/") < maxDepth:
		s.todo = append(s.todo, name)
	}
	return s.out.WriteHeader(h)
}

// header describes a path, all but a file's bytes.
func (s *sender) header(dir int, name, base string) (*tar.Header, error) {
	var stat unix.Stat_t
	if err := unix.Fstatat(dir, base, &stat, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, fmt.Errorf("look at %q: %w", name, err)
	}
	h := &tar.Header{
		Format: tar.FormatPAX, Name: name, Mode: int64(stat.Mode & 0o7777), Uid: int(stat.Uid), Gid: int(stat.Gid), ModTime: time.Unix(stat.Mtim.Unix()),
		PAXRecords: map[string]string{},
	}
	switch stat.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, stat.Size
		if first, sent := s.names[stat.Ino]; sent && stat.Nlink > 1 {
			h.Typeflag, h.Size, h.Linkname = tar.TypeLink, 0, first
		} else if stat.Nlink > 1 {
			s.names[stat.Ino] = name
		}
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
		return h, opaque(dir, base, h)
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		target := make([]byte, maxPath+1)
		n, err := unix.Readlinkat(dir, base, target)
		h.Linkname = string(target[:max(n, 0)])
		return h, err
	case unix.S_IFCHR:
		h.Typeflag = tar.TypeChar
		h.Devmajor, h.Devminor = int64(unix.Major(stat.Rdev)), int64(unix.Minor(stat.Rdev))
	default: // FIFOs and sockets; nothing inside can make a device
		h.Typeflag = tar.TypeFifo
	}
	return h, nil
}

// opaque adds the record of a directory that hides what the workspace has in its place.
func opaque(dir int, base string, h *tar.Header) error {
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var value [1]byte
	n, err := unix.Fgetxattr(fd, opaqueMark, value[:])
	if err == nil && n == 1 && value[0] == 'y' {
		h.PAXRecords[boot.Opaque] = "y"
	}
	return nil // no mark, or one that hides nothing
}

// file sends a file with its bytes, without its holes where it has some.
func (s *sender) file(h *tar.Header, dir int, base string) error {
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	all := []piece{{0, h.Size}}
	if p, err := pieces(fd, h.Size); err == nil && len(p) <= boot.MaxPieces && total(p) < h.Size {
		all = p
		h.PAXRecords[boot.Map] = describe(h.Size, p)
		h.Size = total(p)
	}
	if err := s.out.WriteHeader(h); err != nil {
		return err
	}
	for _, p := range all {
		if _, err := io.Copy(s.out, io.NewSectionReader(f, p.offset, p.length)); err != nil {
			return err
		}
	}
	return nil
}

// piece is a part of a file that holds data.
type piece struct{ offset, length int64 }

// pieces returns the parts of a file that are not holes (lseek(2)), one more than boot.MaxPieces at most.
func pieces(fd int, size int64) ([]piece, error) {
	var all []piece
	for at := int64(0); at < size && len(all) <= boot.MaxPieces; {
		start, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // the rest is a hole
		}
		if err != nil {
			return nil, err
		}
		if at, err = unix.Seek(fd, start, unix.SEEK_HOLE); err != nil {
			return nil, err
		}
		all = append(all, piece{start, min(at, size) - start})
	}
	return all, nil
}

func total(all []piece) int64 {
	sum := int64(0)
	for _, p := range all {
		sum += p.length
	}
	return sum
}

// describe is the record boot.Map.
func describe(size int64, all []piece) string {
	var b strings.Builder
	b.WriteString(strconv.FormatInt(size, 10))
	for _, p := range all {
		fmt.Fprintf(&b, ",%d,%d", p.offset, p.length)
	}
	return b.String()
}
