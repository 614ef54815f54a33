package guest

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
)

// overVsock says whether the host has told on the kernel's command line that the port is a connection over vsock.
func overVsock() bool {
	line, err := os.ReadFile("/proc/cmdline")
	return err == nil && tellsVsock(string(line))
}

func tellsVsock(commandLine string) bool {
	return slices.Contains(strings.Fields(commandLine), boot.VsockArgument)
}

// openVsock makes the connection that is the port.
func openVsock() (port, error) { return dialVsock(unix.VMADDR_CID_HOST, boot.VsockPort, patience) }

// dialVsock connects to a port. Until the driver has found its device there is no way to the host, and nobody may listen there yet: it tries again for a while.
func dialVsock(cid, number uint32, patience time.Duration) (port, error) {
	for until := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return port{}, fmt.Errorf("make a vsock socket: %w", err)
		}
		if err = unix.Connect(fd, &unix.SockaddrVM{CID: cid, Port: number}); err == nil {
			return port{fd}, nil
		}
		_ = unix.Close(fd) // not connected
		if time.Now().After(until) {
			return port{}, fmt.Errorf("connect to the host over vsock: %w", err)
		}
	}
}
