package guest

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
)

// patience bounds waits for what the kernel makes in the background, and for a host that is not connected: one that has saved a machine is connected anew.
const patience = 5 * time.Second

// port is the open virtio-serial port. Reads and writes block their thread.
type port struct{ fd int }

// openPort finds the port by its name.
func openPort() (port, error) {
	if overVsock() {
		return openVsock()
	}
	var device string
	err := await("port "+boot.PortName, func() bool {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name") // the pattern is ours
		for _, path := range names {
			name, err := os.ReadFile(path)
			if err == nil && strings.TrimSpace(string(name)) == boot.PortName {
				device = filepath.Join("/dev", filepath.Base(filepath.Dir(path)))
				return true
			}
		}
		return false
	})
	if err != nil {
		return port{}, err
	}
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return port{}, fmt.Errorf("open %s: %w", device, err)
	}
	return port{fd}, nil
}

// await tries again until something is there.
func await(what string, there func() bool) error {
	for until := time.Now().Add(patience); !there(); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			return fmt.Errorf("%s does not appear", what)
		}
	}
	return nil
}

// Read implements io.Reader. The kernel reports the end of the stream while nobody is connected at the other end; it is believed after a while.
func (p port) Read(b []byte) (int, error) {
	var alone time.Time // since when nobody is connected
	for {
		n, err := unix.Read(p.fd, b)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, fmt.Errorf("read from the host: %w", err)
		case n > 0:
			return n, nil
		case alone.IsZero():
			alone = time.Now()
		case time.Since(alone) > patience:
			return 0, io.EOF
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Write implements io.Writer.
func (p port) Write(b []byte) (int, error) {
	written := 0
	for written < len(b) {
		n, err := unix.Write(p.fd, b[written:])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return written, fmt.Errorf("write to the host: %w", err)
		}
		written += n
	}
	return written, nil
}
