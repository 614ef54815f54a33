package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// kernel puts in place what the sandbox's kernel shows as files, or, if that is its own, the places for it.
func (b *builder) kernel(devices map[string]*os.File) error {
	if !b.cfg.OwnKernel {
		empty := stage + "/nothing"
		if err := makeEmpty(empty); err != nil {
			return err
		}
		return errors.Join(b.proc(empty, empty+".file"), b.dev(devices))
	}
	for _, dir := range []string{"/proc", "/dev", "/sys", "/tmp"} {
		if _, err := b.mountPoint(dir); err != nil {
			return err
		}
	}
	return nil
}

// makeEmpty makes an empty directory, and an empty file of that name with .file behind it.
func makeEmpty(path string) error {
	return errors.Join(os.Mkdir(path, 0o555), os.WriteFile(path+".file", nil, 0o444))
}

// proc mounts a fresh /proc for the sandbox's process namespace, empties what tells about the host and freezes what could change it. The paths of an empty directory
// and of an empty file are looked up when /proc is there.
func (b *builder) proc(emptyDir, emptyFile string) error {
	at, err := b.mountPoint("/proc")
	if err != nil {
		return err
	}
	if err := unix.Mount("proc", at, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	// The sandbox may send ICMP echo through unprivileged sockets: the kernel refuses the packet and reports it, instead of refusing the socket unseen.
	_ = os.WriteFile(at+"/sys/net/ipv4/ping_group_range", []byte("0 0"), 0) // without it such sockets are refused, which is as good
	for _, name := range ReadOnlyProc() {
		path := filepath.Join(at, name)
		err := unix.Mount(path, path, "", unix.MS_BIND|unix.MS_REC, "")
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err == nil {
			err = unix.MountSetattr(unix.AT_FDCWD, path, unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
		}
		if err != nil {
			return fmt.Errorf("make %s read-only: %w", name, err)
		}
	}
	for _, name := range HiddenProc() {
		path := filepath.Join(at, name)
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		source := emptyFile
		if info.IsDir() {
			source = emptyDir
		}
		if err := bindReadOnly(source, path); err != nil {
			return fmt.Errorf("hide %s: %w", name, err)
		}
	}
	return nil
}

func bindReadOnly(source, target string) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	return unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
}

// deviceNames are the host's device files that a sandbox has; /dev/ptmx is the sandbox's own.
var deviceNames = []string{"null", "zero", "full", "random", "urandom", "tty"}

// openDevices opens device files of the host's, before scratch covers anything.
func openDevices(names []string) (map[string]*os.File, error) {
	devices := map[string]*os.File{}
	for _, name := range names {
		tree, err := Tree("/dev/"+name, false, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, -1)
		if err != nil {
			return nil, err
		}
		devices[name] = tree
	}
	return devices, nil
}

// dev composes /dev: the devices, terminals of its own, shared memory on scratch.
func (b *builder) dev(devices map[string]*os.File) error {
	at, err := b.mountPoint("/dev")
	if err != nil {
		return err
	}
	source := stage + "/dev"
	if err := os.Mkdir(source, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, at, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	for _, name := range deviceNames {
		path := filepath.Join(at, name)
		if err := os.WriteFile(path, nil, 0o666); err != nil {
			return err
		}
		if err := attach(devices[name], path); err != nil {
			return err
		}
	}
	if err := errors.Join(os.Mkdir(at+"/pts", 0o755), mkdirMode(at+"/shm", 0o1777)); err != nil {
		return err
	}
	if err := unix.Mount("devpts", at+"/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"); err != nil {
		return fmt.Errorf("terminals: %w", err)
	}
	for name, target := range map[string]string{"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(target, filepath.Join(at, name)); err != nil {
			return err
		}
	}
	return nil
}
