package netns

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// SetupTap builds the room for a sandbox that is a virtual machine, in the calling process's network namespace, which must be new. The returned file is the machine's
// end: whoever holds it reads and writes whole frames, each after a struct virtio_net_hdr, and the device goes with its last hold.
func SetupTap(cfg Config) (l Listeners, wire *os.File, err error) {
	if wire, err = tap(); err != nil {
		return l, nil, fmt.Errorf("make the machine's network device (needs /dev/net/tun): %w", err)
	}
	cfg.device = true
	if l, err = Setup(cfg); err != nil {
		_ = wire.Close() // the device goes with it
		return l, nil, err
	}
	return l, wire, nil
}

// tap makes the room's end, with the number and the address that SetupDevice gives its own.
func tap() (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	wire := os.NewFile(uintptr(fd), "tap")
	index := int32(deviceIndex)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETIFINDEX, uintptr(unsafe.Pointer(&index))); errno != 0 {
		return nil, closing(wire, fmt.Errorf("choose its number: %w", errno))
	}
	request, err := unix.NewIfreq(DoorName)
	if err != nil {
		return nil, closing(wire, err)
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return nil, closing(wire, err)
	}
	body := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(body[4:], deviceIndex)
	body = attribute(body, unix.IFLA_ADDRESS, doorMAC)
	if err := converse([]step{{"give the device its address", message(unix.RTM_NEWLINK, 0, body)}}); err != nil {
		return nil, closing(wire, err)
	}
	return wire, nil
}

// LeaveTap leaves a tap in the room for a program of a user that attaches to it by its name, without any right of its own, and lets go of it. It goes with the room.
func LeaveTap(wire *os.File, user int) error {
	defer wire.Close()
	fd := int(wire.Fd())
	if err := unix.IoctlSetInt(fd, unix.TUNSETOWNER, user); err != nil {
		return fmt.Errorf("give the machine's network device to user %d: %w", user, err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("keep the machine's network device: %w", err)
	}
	return nil
}

// InsideMAC is the address of the sandbox's own end, which the machine's network device must have: the room asks nobody for it.
func InsideMAC() string { return net.HardwareAddr(insideMAC).String() }
