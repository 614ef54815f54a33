package rootfs

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// manyProcs is how many mounts may lie over each other at /proc: two for each run that a view had.
const manyProcs = 1 << 10

// Continue enters the mount namespace of a view whose programs are all gone, and makes it one of another run: with a /proc of the caller's process namespace, and with the
// identity and the authorities that cfg names. Everything else stays as it was left. What is mounted here is seen in a copy of the namespace, which the caller stays in.
//
// The caller is root of a machine of its own, and the view holds whatever the programs wrote: no path in it is followed but below mount points, which they could not move, and by
// [os.Root], which leads nowhere else.
//
// The calling goroutine's thread stays there, locked.
func Continue(cfg Config, namespace *os.File) error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // threads that share their root directory cannot change namespaces (setns(2))
		return fmt.Errorf("stand alone: %w", err)
	}
	if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter the view's namespace: %w", err)
	}
	if err := errors.Join(unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Chdir("/")); err != nil {
		return fmt.Errorf("make a copy of the view's namespace: %w", err)
	}
	b := builder{cfg: cfg, view: &View{root: "/"}}
	if err := b.procAnew(); err != nil {
		return fmt.Errorf("mount /proc anew: %w", err)
	}
	root, err := os.OpenRoot("/")
	if err != nil {
		return err
	}
	defer root.Close()
	for _, f := range b.identity() {
		if err := replaceFile(root, strings.TrimPrefix(f.path, "/"), f.content); err != nil {
			return fmt.Errorf("make %s anew: %w", f.path, err)
		}
	}
	return b.trusting(listing{"/", ""}, func(path string, data []byte) error {
		err := replaceFile(root, strings.TrimPrefix(path, "/"), string(data))
		if errors.Is(err, unix.EROFS) {
			return nil // what is mounted there read-only had no authorities added before either
		}
		return err
	})
}

// procAnew puts a /proc of the caller's process namespace in the place of the one that the view had, whose processes are gone. The kernel tells the same id of its start
// (random(4), boot_id) in every copy of a machine, so that file is covered by another.
func (b *builder) procAnew() error {
	const place = "/proc"
	for n := 0; unix.Unmount(place, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil; n++ {
		if n > manyProcs {
			return errors.New("too much is mounted there")
		}
	}
	// Where nothing can be written once /proc lies over it.
	if err := unix.Mount("nothing", place, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0555,size=64k,nr_inodes=16"); err != nil {
		return err
	}
	if err := errors.Join(makeEmpty(place+"/nothing"), os.WriteFile(place+"/boot_id", []byte(newUUID()+"\n"), 0o444)); err != nil {
		return err
	}
	var covers []*os.File
	for _, path := range []string{"/nothing", "/nothing.file", "/boot_id"} {
		f, err := straight(place + path)
		if err != nil {
			return err
		}
		defer f.Close()
		covers = append(covers, f)
	}
	if err := b.proc(name(covers[0]), name(covers[1])); err != nil {
		return err
	}
	return bindReadOnly(name(covers[2]), place+"/sys/kernel/random/boot_id")
}

// newUUID makes a random identifier of RFC 9562's form.
func newUUID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // crypto/rand.Read never fails since Go 1.24
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}
