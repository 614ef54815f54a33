package vm

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/isolation/container"
	"github.com/cofferdam/cofferdam/internal/seccomp"
)

// UnpackName is argv[0] of the process that unpacks a machine's changes.
const UnpackName = "cofferdam-unpack"

// fdUpper is that process's directory, from which it cannot get out; descriptor 0 is the stream, and 1 takes its error.
const fdUpper = 3

// mostError bounds what it says in bytes.
const mostError = 1 << 10

// unpack has a process without rights on the host unpack a stream into a directory, whose owner is the first of the sandbox's ids.
func unpack(stream io.Reader, upper *os.File, uidBase uint32) error {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args, cmd.Env = []string{UnpackName}, []string{"GOMAXPROCS=1"}
	cmd.ExtraFiles = []*os.File{upper}
	cmd.Stdin = stream
	said := &strings.Builder{}
	cmd.Stdout = said
	ids := syscall.SysProcIDMap{HostID: os.Getuid(), Size: 1}
	gids := syscall.SysProcIDMap{HostID: os.Getgid(), Size: 1}
	privileged := os.Geteuid() == 0
	if privileged {
		ids = syscall.SysProcIDMap{HostID: int(uidBase), Size: container.IDCount}
		gids = ids
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		UidMappings: []syscall.SysProcIDMap{ids}, GidMappings: []syscall.SysProcIDMap{gids}, GidMappingsEnableSetgroups: privileged,
		Credential: &syscall.Credential{NoSetGroups: !privileged},
		Pdeathsig:  syscall.SIGKILL,
	}
	err := cmd.Run()
	if text := frame.Inert(said.String(), mostError); text != "" {
		return errors.New(text)
	}
	return err
}

// Unpack is the life of that process. It returns only if it succeeds.
func Unpack() {
	if err := unpackHere(); err != nil {
		text := err.Error()
		fmt.Print(text[:min(len(text), mostError)])
		os.Exit(1)
	}
}

func unpackHere() error {
	if err := errors.Join(unix.Fchdir(fdUpper), unix.Chroot("."), unix.Close(fdUpper)); err != nil {
		return fmt.Errorf("leave the host's files: %w", err)
	}
	unix.Umask(0)
	root, err := os.OpenRoot(".")
	if err != nil {
		return err
	}
	making := seccomp.Rule{Calls: []string{"mknodat", "fchownat", "fchmodat", "fchmodat2", "fsetxattr"}, Action: seccomp.Allow, Reason: "making files"}
	filter, err := seccomp.Compile(seccomp.Deciding(making, seccomp.Gateway(os.Getpid())), seccomp.Native())
	if err == nil {
		err = seccomp.InstallAll(filter)
	}
	if err != nil {
		return fmt.Errorf("restrict itself: %w", err)
	}
	return (&unpacker{root: root}).run(os.Stdin)
}

// unpacker makes an overlay's upper directory of a stream of boot/changes.go's form.
type unpacker struct{ root *os.Root }

func (u *unpacker) run(stream io.Reader) error {
	for entries := tar.NewReader(stream); ; {
		h, err := entries.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the changes: %w", err)
		}
		if err := u.entry(h, entries); err != nil {
			return fmt.Errorf("%q: %w", h.Name[:min(len(h.Name), 200)], err)
		}
	}
}

// entry makes one file, whatever it is.
func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	name := strings.TrimSuffix(h.Name, "/")
	if name != "." && (name == "" || path.IsAbs(name) || path.Clean(name) != name || name == ".." || strings.HasPrefix(name, "../")) {
		return errors.New("this is no name below the folder")
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return u.directory(name, h)
	case tar.TypeReg:
		return u.file(name, h, content)
	case tar.TypeSymlink:
		if err := u.root.Symlink(h.Linkname, name); err != nil {
			return err
		}
		return u.own(name, h)
	case tar.TypeLink:
		return u.root.Link(strings.TrimSuffix(h.Linkname, "/"), name)
	case tar.TypeChar:
		if h.Devmajor != 0 || h.Devminor != 0 {
			return errors.New("a device")
		}
		return u.node(name, unix.S_IFCHR)
	case tar.TypeFifo:
		return u.node(name, unix.S_IFIFO|0o600)
	}
	return fmt.Errorf("an entry of type %q", h.Typeflag)
}

func (u *unpacker) directory(name string, h *tar.Header) error {
	if name != "." {
		if err := u.root.Mkdir(name, 0o700); err != nil {
			return err
		}
	}
	if h.PAXRecords[boot.Opaque] == "y" {
		f, err := u.root.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := unix.Fsetxattr(int(f.Fd()), "user.overlay.opaque", []byte("y"), 0); err != nil {
			return fmt.Errorf("mark it as replaced: %w", err)
		}
	}
	return errors.Join(u.own(name, h), u.root.Chmod(name, mode(h)))
}

func (u *unpacker) file(name string, h *tar.Header, content io.Reader) error {
	f, err := u.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if pieces, ok := h.PAXRecords[boot.Map]; ok {
		err = sparse(f, pieces, h.Size, content)
	} else {
		_, err = io.Copy(f, content)
	}
	return errors.Join(err, f.Close(), u.own(name, h), u.root.Chmod(name, mode(h)))
}

// sparse writes a file's pieces of data to their places.
func sparse(f *os.File, record string, size int64, content io.Reader) error {
	fields := strings.Split(record, ",")
	numbers := make([]int64, len(fields))
	for i, field := range fields {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil || n < 0 {
			return errors.New("its map of data is not one")
		}
		numbers[i] = n
	}
	length, end, sum := numbers[0], int64(0), int64(0)
	pieces := numbers[1:]
	if len(pieces)%2 != 0 || len(pieces) > 2*boot.MaxPieces {
		return errors.New("its map of data is not one")
	}
	for ; len(pieces) > 0; pieces = pieces[2:] {
		offset, n := pieces[0], pieces[1]
		if offset < end || n > length-offset {
			return errors.New("its map of data goes beyond the file")
		}
		if _, err := io.CopyN(io.NewOffsetWriter(f, offset), content, n); err != nil {
			return err
		}
		end, sum = offset+n, sum+n
	}
	if sum != size {
		return errors.New("its map of data does not cover it")
	}
	return f.Truncate(length)
}

// own gives a file to the id inside that it belonged to, where there are others than root.
func (u *unpacker) own(name string, h *tar.Header) error {
	uid, gid := id(h.Uid), id(h.Gid)
	err := u.root.Lchown(name, uid, gid)
	if errors.Is(err, unix.EINVAL) { // an ordinary user's sandbox has root only
		return nil
	}
	return err
}

// id bounds an id to those that a sandbox has.
func id(n int) int {
	if n < 0 || n >= container.IDCount {
		return container.IDCount - 1
	}
	return n
}

func mode(h *tar.Header) os.FileMode {
	return h.FileInfo().Mode() & (os.ModePerm | os.ModeSetuid | os.ModeSetgid | os.ModeSticky)
}

// node makes what is neither file, directory nor link.
func (u *unpacker) node(name string, kind uint32) error {
	dir, err := u.root.OpenFile(path.Dir(name), os.O_RDONLY|unix.O_DIRECTORY, 0) // a FIFO would have it wait for ever
	if err != nil {
		return err
	}
	defer dir.Close()
	return unix.Mknodat(int(dir.Fd()), path.Base(name), kind, 0)
}
