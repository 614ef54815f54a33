package guest

import (
	"errors"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
)

func TestTellsVsock(t *testing.T) {
	for line, want := range map[string]bool{
		"console=ttyS0 " + boot.KernelArguments + " " + boot.VsockArgument + "\n": true, boot.VsockArgument: true,
		"console=ttyS0 " + boot.KernelArguments: false, "": false, "x" + boot.VsockArgument: false, boot.VsockArgument + "x": false, "cofferdam.port=": false,
	} {
		if tellsVsock(line) != want {
			t.Errorf("%q: %v", line, !want)
		}
	}
	if line, err := os.ReadFile("/proc/cmdline"); err != nil || overVsock() != tellsVsock(string(line)) {
		t.Errorf("this kernel: %v", err)
	}
}

// TestPortOverStream has the port be a stream socket, as it is over vsock: what is written arrives, and the end of the other side is the end.
func TestPortOverStream(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	p, host := port{fds[0]}, os.NewFile(uintptr(fds[1]), "host")
	defer unix.Close(p.fd)
	if _, err := p.Write([]byte("ready")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(host, got); err != nil || string(got) != "ready" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := io.WriteString(host, "boot"); err != nil {
		t.Fatal(err)
	}
	if err := host.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := p.Read(got); err != nil || string(got[:n]) != "boot" {
		t.Errorf("%q, %v", got[:n], err)
	}
	if _, err := p.Read(got); !errors.Is(err, io.EOF) {
		t.Errorf("after the host's end: %v", err)
	}
	if _, err := p.Write([]byte("x")); err == nil {
		t.Error("written to nobody")
	}
}
