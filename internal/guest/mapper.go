package guest

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Scratch that is larger than the machine's memory lies on a disk of the host's, encrypted in here: dm-crypt in its plain form, which writes nothing but ciphertext, no
// header, no key wrapped in another (Documentation/admin-guide/device-mapper/dm-crypt.rst). Nothing that could be unlocked later exists.
const (
	mapperControl = "/dev/mapper/control"
	mapperName    = "scratch"
	mapperTarget  = "crypt"
	cipher        = "aes-xts-plain64"
	keySize       = 64 // two keys of AES-256
	cryptSector   = 4096
	diskSector    = 512 // what tables count in, whatever the disk's own is
	// tableRoom is what the table's words may take besides the key, in bytes.
	tableRoom = 256
)

// mapEncrypted makes a block device over another one, of size bytes, that encrypts what is written to it under a key that is drawn here, and returns its path. The
// kernel's generator has been seeded for this machine alone before. After this only the kernel has the key, and nobody inside the sandbox can ask it.
func mapEncrypted(device string, size int64) (path string, err error) {
	control, err := os.OpenFile(mapperControl, os.O_RDWR, 0)
	if err != nil {
		return "", fmt.Errorf("the device mapper: %w", err)
	}
	defer control.Close()
	// A page of its own: never moved or copied by Go, and in no swap, of which there is none yet.
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANONYMOUS|unix.MAP_PRIVATE)
	if err != nil {
		return "", fmt.Errorf("make room for a key: %w", err)
	}
	defer func() {
		clear(page)
		err = errors.Join(err, unix.Munmap(page))
	}()
	if err := unix.Mlock(page); err != nil {
		return "", fmt.Errorf("lock a key into memory: %w", err)
	}
	made := mapperRequest(page, unix.SizeofDmIoctl)
	if err := mapperCall(control, unix.DM_DEV_CREATE, page); err != nil {
		return "", fmt.Errorf("make a mapped device: %w", err)
	}
	path = "/dev/dm-" + strconv.Itoa(int(unix.Minor(made.Dev)))
	length, err := cryptTable(page, device, size)
	if err != nil {
		return "", err
	}
	if err := mapperCall(control, unix.DM_TABLE_LOAD, page[:length]); err != nil {
		return "", fmt.Errorf("have %s encrypted: %w", device, err)
	}
	clear(page) // the kernel has wiped its copy of the request: DM_SECURE_DATA_FLAG
	mapperRequest(page, unix.SizeofDmIoctl)
	if err := mapperCall(control, unix.DM_DEV_SUSPEND, page); err != nil { // without its flag it resumes, which puts the table in force
		return "", fmt.Errorf("start the mapped device: %w", err)
	}
	return path, nil
}

// mapperRequest writes an empty request about the device at the start of a page.
func mapperRequest(page []byte, length int) *unix.DmIoctl {
	r := (*unix.DmIoctl)(unsafe.Pointer(&page[0]))
	*r = unix.DmIoctl{Version: [3]uint32{unix.DM_VERSION_MAJOR}, Data_size: uint32(length), Data_start: unix.SizeofDmIoctl}
	copy(r.Name[:], mapperName)
	return r
}

// cryptTable writes the request to load a table of one target, with a fresh key in it, and returns its length.
func cryptTable(page []byte, device string, size int64) (length int, err error) {
	const words = unix.SizeofDmIoctl + unix.SizeofDmTargetSpec
	before, after := cipher+" ", " 0 "+device+" 0 1 sector_size:"+strconv.Itoa(cryptSector)
	if len(before)+len(after) > tableRoom {
		return 0, fmt.Errorf("the name of %.50q is too long", device)
	}
	at := words + copy(page[words:], before)
	key := page[len(page)-keySize:]
	if n, err := unix.Getrandom(key, 0); err != nil || n != keySize {
		return 0, fmt.Errorf("draw a key: %d bytes: %w", n, err)
	}
	at += hex.Encode(page[at:], key)
	clear(key)
	at += copy(page[at:], after)
	length = at + 1 // the words end with a zero
	page[at] = 0
	r := mapperRequest(page, length)
	r.Target_count, r.Flags = 1, unix.DM_SECURE_DATA_FLAG
	target := (*unix.DmTargetSpec)(unsafe.Pointer(&page[unix.SizeofDmIoctl]))
	*target = unix.DmTargetSpec{Length: uint64(size / cryptSector * (cryptSector / diskSector))}
	copy(target.Target_type[:], mapperTarget)
	return length, nil
}

func mapperCall(control *os.File, request uintptr, page []byte) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), request, uintptr(unsafe.Pointer(&page[0]))); errno != 0 {
		return errno
	}
	return nil
}
