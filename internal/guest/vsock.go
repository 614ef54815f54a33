package guest

import (
	"fmt"
	"os"
	"slices"
	"strings"

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

// openVsock makes the connection that is the port. Until the driver has found its device there is no way to the host.
func openVsock() (p port, err error) {
	var last error
	err = await("the host over vsock", func() bool {
		p, last = connectVsock()
		return last == nil
	})
	if err != nil {
		return port{}, fmt.Errorf("%w: %w", err, last)
	}
	return p, nil
}

func connectVsock() (port, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return port{}, fmt.Errorf("make a vsock socket: %w", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_HOST, Port: boot.VsockPort}); err != nil {
		_ = unix.Close(fd) // not connected
		return port{}, fmt.Errorf("connect: %w", err)
	}
	return port{fd}, nil
}
