package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
)

// disksAt is where disks are mounted, by their numbers.
const disksAt = "/disks"

// diskFormat is the one file system that is mounted from a disk: one made to be only read.
const diskFormat = "erofs"

func diskPath(index int) string { return filepath.Join(disksAt, strconv.Itoa(index)) }

// mountDisks mounts every disk that the sandbox is built of, but for the root.
func mountDisks(b boot.Boot) error {
	wanted := map[int]bool{}
	if b.Workspace != nil {
		wanted[b.Workspace.Disk] = true
	}
	for _, m := range b.Mounts {
		wanted[m.Disk] = true
	}
	delete(wanted, b.Root) // it is there
	for index := range wanted {
		if err := mountDisk(index); err != nil {
			return err
		}
	}
	return nil
}

// awaitDisk waits for a disk's device.
func awaitDisk(index int) (device string, err error) {
	err = await("it", func() bool {
		device = findDisk("/sys/block", index)
		return device != ""
	})
	return device, err
}

func mountDisk(index int) error {
	device, err := awaitDisk(index)
	if err != nil {
		return fmt.Errorf("disk %d: %w", index, err)
	}
	if err := forget(device); err != nil {
		return err
	}
	if err := os.MkdirAll(diskPath(index), 0o700); err != nil {
		return err
	}
	if err := unix.Mount(device, diskPath(index), diskFormat, unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("mount %s: %w", device, err)
	}
	return nil
}

// findDisk returns the device of a disk, "" while there is none; dir is where the kernel lists block devices.
func findDisk(dir string, index int) string {
	devices, _ := filepath.Glob(filepath.Join(dir, "vd*")) // the pattern is ours
	slices.Sort(devices)
	numbered := false
	for _, d := range devices {
		serial, err := os.ReadFile(filepath.Join(d, "serial"))
		if err != nil {
			continue
		}
		number := strings.TrimSpace(string(serial))
		numbered = numbered || number == boot.DiskSerial(0)
		if number == boot.DiskSerial(index) {
			return "/dev/" + filepath.Base(d)
		}
	}
	if numbered || index >= len(devices) {
		return ""
	}
	return "/dev/" + filepath.Base(devices[index])
}

// forget has the kernel drop what it read of a disk at its start, where it looks for partitions: in a prepared machine nothing was on it then.
func forget(device string) error {
	f, err := os.Open(device)
	if err != nil {
		return err
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKFLSBUF, 0)
	if errno != 0 {
		return errors.Join(fmt.Errorf("drop what was read of %s: %w", device, errno), f.Close())
	}
	return f.Close()
}
