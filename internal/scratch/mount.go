package scratch

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// option is one of a file system's; without a value it is a flag.
type option struct{ key, value string }

// mount makes a mount that is attached nowhere: whoever has the descriptor can reach it, by no path, and with the last descriptor and mount of it it is gone.
func mount(kind string, options []option) (*os.File, error) {
	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open a file system of type %s: %w", kind, err)
	}
	defer unix.Close(fs)
	for _, o := range options {
		if o.value == "" {
			err = unix.FsconfigSetFlag(fs, o.key)
		} else {
			err = unix.FsconfigSetString(fs, o.key, o.value)
		}
		if err != nil {
			return nil, fmt.Errorf("mount option %s: %w%s", o.key, err, words(fs))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("make a file system of type %s: %w%s", kind, err, words(fs))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOATIME)
	if err != nil {
		return nil, fmt.Errorf("mount a file system of type %s: %w", kind, err)
	}
	return os.NewFile(uintptr(fd), kind), nil
}

// words are what the kernel says about a mount that it refuses (fsopen(2), "The message retrieval interface").
func words(fs int) string {
	buf := make([]byte, 256)
	n, err := unix.Read(fs, buf)
	if err != nil || n <= 0 {
		return ""
	}
	return " (" + strings.TrimSpace(string(buf[:n])) + ")"
}

// formatter is the program that makes ext4 file systems.
const formatter = "mke2fs"

// format makes an ext4 file system in a file, with exactly the features named, whatever this machine's configuration of the formatter says. There is no
// journal: nobody will mount it again.
func format(file *os.File, program string, inodes int64, features ...string) error {
	list := append([]string{"none", "extent", "64bit", "flex_bg", "sparse_super", "filetype", "dir_index", "large_file", "huge_file", "uninit_bg", "dir_nlink", "extra_isize"}, features...)
	cmd := exec.Command(program, "-q", "-F", "-t", "ext4", "-b", strconv.Itoa(blockSize), "-I", "256", "-m", "0", "-N", strconv.FormatInt(inodes, 10),
		"-O", strings.Join(list, ","), "-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", "/proc/self/fd/3")
	cmd.Env = []string{"MKE2FS_CONFIG=/dev/null", "LC_ALL=C"}
	cmd.ExtraFiles = []*os.File{file}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %.500s", formatter, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// findFormatter looks for it where systems have it, which need not be in the search path of whoever called.
func findFormatter() (string, error) {
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/run/current-system/sw/bin"} {
		if path := dir + "/" + formatter; unix.Access(path, unix.X_OK) == nil {
			return path, nil
		}
	}
	return exec.LookPath(formatter)
}

// hidden makes a file without a name, which it can never get, of exactly size bytes, all of them reserved: a disk that is full is told now, and not as an input/output error in the
// middle of somebody's work. Where the file system cannot reserve, the file has holes.
func hidden(dir string, size int64) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_EXCL|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "make a file without a name in", Path: dir, Err: err}
	}
	f := os.NewFile(uintptr(fd), "scratch")
	if err := reserve(f, size); err != nil {
		_ = f.Close() // it is gone with that
		return nil, err
	}
	return f, nil
}

func reserve(f *os.File, size int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = f.Truncate(size)
	}
	if err != nil {
		return fmt.Errorf("reserve %d bytes: %w", size, err)
	}
	return nil
}

// emptyRoot removes what the formatter left in the root directory, and gives that the mode which a root has.
func emptyRoot(tree *os.File) error {
	if err := unix.Unlinkat(int(tree.Fd()), "lost+found", unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("empty a new file system: %w", err)
	}
	return nil
}

// openAt opens a directory or makes a file below one that is open.
func openAt(dir *os.File, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}
