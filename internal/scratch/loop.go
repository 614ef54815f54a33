package scratch

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// loop is a block device over a file. The kernel takes it away with its last user, whoever dies first, because of LO_FLAGS_AUTOCLEAR; it then lets go of the file too.
type loop struct {
	device *os.File
	path   string
	mark   [unix.LO_NAME_SIZE]uint8 // what its state calls it: the device's number is somebody else's soon after
}

// loopTries is how often another free device is asked for, when somebody else was quicker.
const loopTries = 64

// openLoop makes a block device over a file that is open for reading and writing.
func openLoop(backing *os.File) (*loop, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	var mark [unix.LO_NAME_SIZE]uint8
	copy(mark[:], "cofferdam scratch "+rand.Text())
	for range loopTries {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		path := "/dev/loop" + strconv.Itoa(n)
		device, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(backing.Fd()), Size: blockSize, Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR, File_name: mark}}
		err = unix.IoctlLoopConfigure(int(device.Fd()), &config)
		if err == nil {
			return &loop{device: device, path: path, mark: mark}, nil
		}
		_ = device.Close() // it is somebody else's
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("set up %s: %w", path, err)
		}
	}
	return nil, errors.New("every free loop device was taken by somebody else")
}

// blockSize is that of both file systems and their devices, in bytes.
const blockSize = 4096

// close lets go of the device, which a file system that is mounted from it goes on to hold.
func (l *loop) close() {
	_ = l.device.Close() // what was written to it matters to nobody
}

// gone says whether the device is over another file, or none.
func (l *loop) gone() (bool, error) {
	device, err := os.Open(l.path)
	if err != nil {
		return false, err
	}
	defer device.Close()
	info, err := unix.IoctlLoopGetStatus64(int(device.Fd()))
	if errors.Is(err, unix.ENXIO) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("ask for the state of %s: %w", l.path, err)
	}
	return info.File_name != l.mark, nil
}
