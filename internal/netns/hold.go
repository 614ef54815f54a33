package netns

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Hold is a hold of a room, by which its end of the wire to a sandbox with a network stack of its own is looked for.
type Hold struct{ socket *os.File }

// HoldRoom takes a hold of the room of planted sockets.
func HoldRoom(l Listeners) (*Hold, error) {
	fd, err := unix.FcntlInt(l.DNSPacket.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("keep a hold of the room: %w", err)
	}
	return &Hold{os.NewFile(uintptr(fd), "room")}, nil
}

// holdPatience bounds the wait for the kernel to take a device away, which it does in the background.
const holdPatience = 5 * time.Second

// Gone waits until the room's end is gone, which goes when nobody has the other, and lets go of the room. It is called once.
func (h *Hold) Gone() error {
	defer h.Close()
	name, err := unix.NewIfreq(DoorName)
	if err != nil {
		return err
	}
	for end := time.Now().Add(holdPatience); ; time.Sleep(time.Millisecond) {
		switch err := unix.IoctlIfreq(int(h.socket.Fd()), unix.SIOCGIFINDEX, name); {
		case err == unix.ENODEV:
			return nil
		case err != nil:
			return fmt.Errorf("look for the way to the sandbox's network: %w", err)
		case time.Now().After(end):
			return fmt.Errorf("the way to the sandbox's network is still there after %v", holdPatience)
		}
	}
}

// Close lets go of the room.
func (h *Hold) Close() { _ = h.socket.Close() } // only asked
