package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Shown is a detached tree, of one file or directory, and the absolute path at which it is seen.
type Shown struct {
	Target string
	Tree   *os.File
}

// bareSize bounds the file system of EnterBare, which holds nothing but places to mount at.
const bareSize = 1 << 20

// EnterBare makes an empty root for the calling process, in which only what is shown can be seen, and drops the old one. Nothing can be written but below own, if that is
// named: a directory of a user's, for a few sockets. With proc it has
// /proc as far as that shows the processes of its process namespace. The caller has the capabilities of the mount namespace's user namespace.
func EnterBare(shown []Shown, proc bool, own string, user int) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("bare", stage, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size="+strconv.Itoa(bareSize)); err != nil {
		return fmt.Errorf("mount an empty root: %w", err)
	}
	for _, s := range shown {
		if err := show(s); err != nil {
			return fmt.Errorf("show %s: %w", s.Target, err)
		}
	}
	if own != "" {
		if err := bareOwn(own, user); err != nil {
			return err
		}
	}
	if proc {
		if err := bareProc(); err != nil {
			return err
		}
	}
	if err := unix.Mount("", stage, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("make the root read-only: %w", err)
	}
	return (&View{root: stage}).Enter()
}

// bareOwn makes a directory in memory that belongs to a user and holds a few names and sockets, but hardly a byte.
func bareOwn(path string, user int) error {
	if err := os.Mkdir(stage+path, 0o755); err != nil {
		return err
	}
	options := fmt.Sprintf("mode=0700,uid=%d,gid=%d,size=4096,nr_inodes=16", user, user)
	if err := unix.Mount("own", stage+path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		return fmt.Errorf("mount %s: %w", path, err)
	}
	return nil
}

func bareProc() error {
	if err := os.Mkdir(stage+"/proc", 0o555); err != nil {
		return err
	}
	if err := unix.Mount("proc", stage+"/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RDONLY, "subset=pid"); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

// show makes a place for a tree and puts it there.
func show(s Shown) error {
	var stat unix.Stat_t
	if err := unix.Fstat(int(s.Tree.Fd()), &stat); err != nil {
		return err
	}
	target := stage + s.Target
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	if stat.Mode&unix.S_IFMT == unix.S_IFDIR {
		return errors.Join(os.Mkdir(target, 0o755), attach(s.Tree, target))
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), attach(s.Tree, target))
}

// Scratch makes a file system in memory, bounded in bytes and files, that has no place in any tree, and opens its root directory. It goes with the last hold of it.
// The caller has the capabilities of its mount namespace's user namespace, whose ids are those of the file system.
func Scratch(size, files int64) (*os.File, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open scratch memory: %w", err)
	}
	defer unix.Close(fs)
	for key, value := range map[string]string{"size": strconv.FormatInt(size, 10), "nr_inodes": strconv.FormatInt(files, 10), "mode": "0700"} {
		if err := unix.FsconfigSetString(fs, key, value); err != nil {
			return nil, fmt.Errorf("bound scratch memory: %s=%s: %w", key, value, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("make scratch memory: %w", err)
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, fmt.Errorf("mount scratch memory: %w", err)
	}
	defer unix.Close(mount)
	root, err := unix.Openat(mount, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open scratch memory: %w", err)
	}
	return os.NewFile(uintptr(root), "scratch"), nil
}
