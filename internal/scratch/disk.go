package scratch

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/receipt"
)

// disk is scratch on the host's disk:
//
//	file without a name ─► loop device ─► ext4 ─► one file, encrypted by fscrypt ─► loop device ─► ext4, which the sandbox sees
//
// The inner file system is there because fscrypt encrypts contents and names, but not extended attributes, sizes, times and owners: inside one encrypted file
// those are contents too. Nothing of it has a name or a mount point on the host, so that all of it goes with the last process that holds it.
type disk struct {
	backing      *os.File
	outer, inner *loop
	vault        *os.File // the root of the outer file system
	image        *os.File // the encrypted file; nil once the inner device has it
	key          unix.FscryptKeySpecifier
	shut         *os.File // a hold on the inner file system, to shut it down with
}

const (
	// vaultFiles is how many files the outer file system has room for: the formatter's own ten, the directory and the image.
	vaultFiles = 16
	// vaultSlack is what is left free in it, in blocks: the image's map, which grows while the image is written.
	vaultSlack = 64
	// inodeSize is what a file costs in the inner file system beyond its data, in bytes.
	inodeSize = 256
	// smallest is the least size in bytes with room for both file systems and something in them.
	smallest = 4 << 20
)

// OnDisk makes encrypted scratch of size bytes, the file system's own needs included, with room for files files, in a file without a name in the directory dir.
// The caller is root.
func OnDisk(dir string, size, files int64) (*Scratch, error) {
	program, err := findFormatter()
	if err != nil {
		return nil, fault.New(fault.Unsupported, "encrypted scratch needs %s", formatter).WithHint("install e2fsprogs, or use --scratch memory").Because(err)
	}
	if size < smallest || files*inodeSize > size/2 {
		return nil, fault.New(fault.Invalid, "%d bytes are too few for encrypted scratch with room for %d files", size, files).
			WithHint("raise --disk, or lower --files; a file takes %d bytes beyond its contents", inodeSize)
	}
	d := &disk{}
	tree, err := d.build(dir, program, size/blockSize*blockSize, files)
	if err != nil {
		_, _ = d.erase(time.Now()) // as far as it got; the first error is the one to tell
		return nil, explain(err)
	}
	return &Scratch{tree: tree, disk: d}, nil
}

// explain says what to do about an error.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		return fault.New(fault.Unavailable, "the disk has no room for the scratch that was asked for").WithHint("lower --disk, free some space, or use --scratch memory").Because(err)
	case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.ENODEV) || errors.Is(err, os.ErrNotExist):
		return fault.New(fault.Unsupported, "this machine cannot make encrypted scratch").
			WithHint("it takes loop devices, ext4 and a kernel with CONFIG_FS_ENCRYPTION; or use --scratch memory").Because(err)
	}
	if _, ok := errors.AsType[*exec.ExitError](err); ok {
		return fault.New(fault.Unsupported, "cannot format encrypted scratch").WithHint("use --scratch memory").Because(err)
	}
	return fault.New(fault.Unavailable, "cannot make encrypted scratch").WithHint("use --scratch memory").Because(err)
}

// build makes all of it, and returns the mount that the sandbox is to see.
func (d *disk) build(dir, program string, size, files int64) (tree *os.File, err error) {
	if d.backing, err = hidden(dir, size); err != nil {
		return nil, err
	}
	if err := format(d.backing, program, vaultFiles, "encrypt"); err != nil {
		return nil, err
	}
	if d.outer, tree, err = attach(d.backing); err != nil {
		return nil, err
	}
	d.vault, err = openAt(tree, ".", unix.O_RDONLY|unix.O_DIRECTORY) // an open directory holds the mount, and takes requests, which the mount's descriptor does not
	if err = errors.Join(err, tree.Close()); err != nil {
		return nil, err
	}
	if d.image, err = d.encrypted(); err != nil {
		return nil, err
	}
	if err := format(d.image, program, files); err != nil {
		return nil, err
	}
	d.inner, tree, err = attach(d.image)
	if err != nil {
		return nil, err
	}
	err = d.image.Close() // the device holds it
	d.image = nil
	if err != nil {
		return nil, errors.Join(err, tree.Close())
	}
	if d.shut, err = openAt(tree, ".", unix.O_RDONLY|unix.O_DIRECTORY); err == nil {
		return tree, nil
	}
	_ = tree.Close() // nothing was written
	return nil, err
}

// attach mounts a formatted file.
func attach(file *os.File) (*loop, *os.File, error) {
	l, err := openLoop(file)
	if err != nil {
		return nil, nil, err
	}
	// Nothing has to be on the disk at any time, so nothing waits for it ("nobarrier"), and what was never used is not zeroed in the background ("noinit_itable").
	tree, err := mount("ext4", []option{{"source", l.path}, {"nobarrier", ""}, {"noinit_itable", ""}, {"errors", "remount-ro"}})
	if err == nil {
		err = emptyRoot(tree)
	}
	if err != nil && tree != nil {
		_ = tree.Close() // nothing was written
	}
	if err != nil {
		l.close()
		return nil, nil, err
	}
	return l, tree, nil
}

// encrypted makes the encrypted file, as large as fits.
func (d *disk) encrypted() (*os.File, error) {
	var err error
	if d.key, err = addKey(d.vault); err != nil {
		return nil, err
	}
	if err := unix.Mkdirat(int(d.vault.Fd()), "v", 0o700); err != nil {
		return nil, fmt.Errorf("make the encrypted directory: %w", err)
	}
	dir, err := openAt(d.vault, "v", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if err := encrypt(dir, d.key); err != nil {
		return nil, err
	}
	image, err := openAt(dir, ".", unix.O_RDWR|unix.O_TMPFILE) // without a name, what waits to be encrypted is dropped at the end instead
	if err != nil {
		return nil, err
	}
	var s unix.Statfs_t
	if err := unix.Fstatfs(int(d.vault.Fd()), &s); err != nil {
		return nil, errors.Join(err, image.Close())
	}
	if err := reserve(image, (int64(s.Bavail)-vaultSlack)*blockSize); err != nil {
		return nil, errors.Join(err, image.Close())
	}
	return image, nil
}

// erase destroys it from the inside out: only when nothing holds the encrypted file any more does the kernel forget the key altogether.
func (d *disk) erase(deadline time.Time) ([]receipt.Item, error) {
	var items []receipt.Item
	var problems []error
	note := func(what, how string, err error) {
		items = append(items, receipt.Looked(what, how, err))
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", what, err))
		}
	}
	if d.shut != nil {
		_ = shutDown(d.shut) // else what waits to be written is written first, which takes longer and changes nothing
		_ = d.shut.Close()   // nothing is kept
	}
	if d.image != nil { // it got no device
		_ = d.image.Close() // nothing is kept
	}
	if d.inner != nil {
		d.inner.close()
		note("scratch file system", "its loop device was asked for its file: it has none, or another", awaitGone(d.inner, deadline))
	}
	if d.vault != nil && d.key.Type != 0 {
		note("scratch key", "removed from the kernel by FS_IOC_REMOVE_ENCRYPTION_KEY, then asked for by FS_IOC_GET_ENCRYPTION_KEY_STATUS: absent", d.forget(deadline))
	}
	if d.vault != nil {
		_ = d.vault.Close() // nothing is kept
	}
	if d.outer != nil {
		d.outer.close()
		note("scratch disk", "its loop device was asked for its file: it has none, or another; the file had no name, and was freed with the last hold", awaitGone(d.outer, deadline))
	}
	if d.backing != nil {
		_ = d.backing.Close() // the last hold of the file
	}
	return items, errors.Join(problems...)
}

// forget removes the key and asks for it.
func (d *disk) forget(deadline time.Time) error {
	if err := removeKey(d.vault, d.key); err != nil {
		return err
	}
	for {
		absent, err := keyAbsent(d.vault, d.key)
		if err != nil || absent {
			return err
		}
		if !wait(deadline) {
			return errors.New("the kernel still has it")
		}
	}
}

// awaitGone waits until a device has let go of its file.
func awaitGone(l *loop, deadline time.Time) error {
	for {
		gone, err := l.gone()
		if err != nil || gone {
			return err
		}
		if !wait(deadline) {
			return fmt.Errorf("%s still has it", l.path)
		}
	}
}

// wait sleeps a moment, and says whether there is time left.
func wait(deadline time.Time) bool {
	if !time.Now().Before(deadline) {
		return false
	}
	time.Sleep(time.Millisecond)
	return true
}
