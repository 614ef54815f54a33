package workspace

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// beneath makes the kernel refuse any path that would leave the tree: through dot-dot, a symlink, a magic link of /proc, or a mount.
// A mount inside the workspace was not visible in the overlay, so what the run did below it has no counterpart there.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

// tree is an open directory whose inside is reached only through file descriptors. It is not closed by its methods.
type tree struct{ root *os.File }

// openTree opens the directory at a path that the caller trusts.
func openTree(path string) (tree, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return tree{}, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return tree{os.NewFile(uintptr(fd), path)}, nil
}

// resolve opens one path of the tree; the last component is never followed either.
func (t tree) resolve(p Name, flags uint64) (*os.File, error) {
	path := string(p)
	if p == "" {
		path = "."
	}
	for {
		fd, err := unix.Openat2(int(t.root.Fd()), path, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: beneath})
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", p, err)
		}
		return os.NewFile(uintptr(fd), p.String()), nil
	}
}

// list opens a directory for reading its names.
func (t tree) list(p Name) (*os.File, error) {
	return t.resolve(p, unix.O_RDONLY|unix.O_DIRECTORY)
}

// hold opens a directory as an anchor for operations on its entries; that needs no permission to read it.
func (t tree) hold(p Name) (*os.File, error) {
	return t.resolve(p, unix.O_PATH|unix.O_DIRECTORY)
}

// stat describes one entry of an open directory without following it.
func stat(dir *os.File, name string) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st, err
}

// mountOf identifies the mount that one entry of an open directory lies in, or the directory itself if name is empty. The device number would not do: a
// folder of the same file system can be mounted, and a file system can have several.
func mountOf(dir *os.File, name string) (uint64, error) {
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	var st unix.Statx_t
	if err := unix.Statx(int(dir.Fd()), name, flags, unix.STATX_MNT_ID, &st); err != nil {
		return 0, err
	}
	if st.Mask&unix.STATX_MNT_ID == 0 {
		return 0, errors.New("the kernel does not tell mounts apart")
	}
	return st.Mnt_id, nil
}

func fstat(f *os.File) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	return st, err
}

// isGone says that nothing is at the path: it, or a directory on the way, does not exist, is no directory, or is a symlink.
func isGone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// openFile opens a regular file of an open directory for reading. Neither a symlink nor a pipe that was put there in the meantime is opened or waited for.
func openFile(dir *os.File, name string) (*os.File, unix.Stat_t, error) {
	f, err := tree{dir}.resolve(Name(name), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil, unix.Stat_t{}, err
	}
	st, err := fstat(f)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errors.New("is no regular file any more")
	}
	if err != nil {
		f.Close()
		return nil, unix.Stat_t{}, err
	}
	return f, st, nil
}

// chmodAt sets the mode of one entry, which must be of the given type: through a descriptor that holds the node itself, so that a symlink put
// in its place is not followed. It works for files without any permission, unlike opening them.
func chmodAt(dir *os.File, name string, format, mode uint32) error {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != format {
		return errors.New("is of another kind now")
	}
	return chmodHeld(fd, mode)
}

// chmodHeld changes the mode of a node held by an O_PATH descriptor, which fchmod refuses.
func chmodHeld(fd int, mode uint32) error {
	return unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), mode)
}

// readLink reads the target of a symlink of an open directory.
func readLink(dir *os.File, name string) (Name, error) {
	buf := make([]byte, maxPath+1)
	n, err := unix.Readlinkat(int(dir.Fd()), name, buf)
	if err != nil {
		return "", err
	}
	if n > maxPath {
		return "", errors.New("symlink target is too long")
	}
	return Name(buf[:n]), nil
}

// kindOf returns the kind for a mode, and a reason if that kind cannot be collected.
func kindOf(mode uint32) (Kind, string) {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return File, ""
	case unix.S_IFDIR:
		return Dir, ""
	case unix.S_IFLNK:
		return Symlink, ""
	case unix.S_IFSOCK:
		return Absent, "a socket exists only while its program runs"
	case unix.S_IFIFO:
		return Absent, "a named pipe is not carried out of a sandbox"
	case unix.S_IFCHR, unix.S_IFBLK:
		return Absent, "a device node is not carried out of a sandbox"
	}
	return Absent, "unknown kind of file"
}

// nodeOf makes a Node of what stat said; digest and target are added by the caller.
func nodeOf(st unix.Stat_t) (Node, string) {
	kind, reason := kindOf(st.Mode)
	n := Node{Kind: kind, Mode: st.Mode & modeBits, UID: st.Uid, GID: st.Gid, MTime: st.Mtim.Sec, Nsec: st.Mtim.Nsec}
	if kind == File {
		n.Size = st.Size
	}
	if kind == Symlink {
		n.Mode = permBits // Linux keeps no mode for symlinks
	}
	return n, reason
}
