package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
)

// spill lets scratch, which is a file system in memory, go out to an encrypted disk as far as it does not fit into memory. Without such a disk nothing does: a machine has
// no swap otherwise.
func spill(s boot.Scratch) error {
	if s.Disk == nil {
		return nil
	}
	device, err := awaitDisk(*s.Disk)
	if err != nil {
		return fmt.Errorf("disk %d: %w", *s.Disk, err)
	}
	size, err := sizeOf(device)
	if err != nil {
		return err
	}
	if size < boot.SwapSize(s.Bytes) {
		return fmt.Errorf("disk %d holds %d bytes, too few for scratch of %d", *s.Disk, size, s.Bytes)
	}
	encrypted, err := mapEncrypted(device, size)
	if err != nil {
		return err
	}
	if err := sign(encrypted, size); err != nil {
		return err
	}
	return swapOn(encrypted)
}

// sizeOf asks for a block device's size in bytes.
func sizeOf(device string) (int64, error) {
	f, err := os.Open(device)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var size uint64
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&size))); errno != 0 {
		return 0, fmt.Errorf("ask for the size of %s: %w", device, errno)
	}
	return int64(size), nil
}

// sign writes what the kernel knows swap by.
func sign(device string, size int64) error {
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(signature(size), 0)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("sign the swap: %w", err)
	}
	return nil
}

// signature is the first page of swap (include/linux/swap.h, union swap_header).
func signature(size int64) []byte {
	const (
		version  = 1024 // where the header is, behind what is left to boot loaders
		lastPage = version + 4
		magic    = "SWAPSPACE2"
	)
	page := make([]byte, boot.SwapPage)
	binary.NativeEndian.PutUint32(page[version:], 1)
	binary.NativeEndian.PutUint32(page[lastPage:], uint32(size/boot.SwapPage-1))
	copy(page[len(page)-len(magic):], magic)
	return page
}

func swapOn(device string) error {
	path, err := unix.BytePtrFromString(device)
	if err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_SWAPON, uintptr(unsafe.Pointer(path)), 0, 0); errno != 0 {
		return fmt.Errorf("swap to the encrypted disk: %w", errno)
	}
	return nil
}
