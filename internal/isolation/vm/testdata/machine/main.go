// Program machine stands for Firecracker or Cloud Hypervisor in tests, by the name that it is called by: it takes the same command line, configuration file and calls of the
// API, holds them against what those programs' documents say, and in place of a guest speaks the guest's wire itself. It tells what it was told on standard output.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/rights"
)

func main() {
	if err := run(os.Args); err != nil {
		fmt.Println("machine:", err)
		os.Exit(1)
	}
}

// root is the path of what lies elsewhere where a test has not put the program into a root of its own: FAKE_ROOT stands before it. FAKE_VERSION is what the program says that
// it is.
func root(path string) string { return os.Getenv("FAKE_ROOT") + path }

func run(args []string) error {
	name := filepath.Base(args[0])
	if len(args) == 2 && args[1] == "--version" {
		fmt.Println(os.Getenv("FAKE_VERSION"))
		return nil
	}
	var m machine
	var err error
	switch name {
	case "firecracker":
		m, err = firecracker(args[1:])
	case "cloud-hypervisor":
		m, err = cloudHypervisor(args[1:])
	default:
		err = fmt.Errorf("no program %q", name)
	}
	if err != nil {
		return err
	}
	if err := m.open(); err != nil {
		return err
	}
	return m.guest()
}

// machine is what both programs are told about one.
type machine struct {
	commandLine   string
	files         []string // read-only: kernel, initial file system, disks
	vsock         string
	tap           string // by name
	tapDescriptor int    // or open
}

// open opens what a machine consists of, as the programs do.
func (m machine) open() error {
	for _, path := range m.files {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		var first [1]byte
		if _, err := f.Read(first[:]); err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		_ = f.Close() // only its being there counts
	}
	if !strings.Contains(" "+m.commandLine+" ", " "+boot.VsockArgument+" ") {
		return fmt.Errorf("the guest would look for its port elsewhere: %s", m.commandLine)
	}
	if os.Getenv("FAKE_ROOT") != "" {
		return nil
	}
	if err := m.openTap(); err != nil {
		return err
	}
	return attack()
}

func (m machine) openTap() error {
	if m.tap == "" {
		request, err := unix.NewIfreq("")
		if err != nil {
			return err
		}
		return unix.IoctlIfreq(m.tapDescriptor, unix.TUNGETIFF, request)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	request, err := unix.NewIfreq(m.tap)
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return fmt.Errorf("attach to %s: %w", m.tap, err)
	}
	return nil
}

// attack does what a program that was taken over would do in its jail, and returns what it could.
func attack() error {
	for name, family := range map[string]int{"IPv4": unix.AF_INET, "IPv6": unix.AF_INET6, "netlink": unix.AF_NETLINK, "packet": unix.AF_PACKET, "vsock": unix.AF_VSOCK} {
		if _, err := unix.Socket(family, unix.SOCK_DGRAM, 0); err != unix.EPERM {
			return fmt.Errorf("a socket of %s: %v", name, err)
		}
	}
	tun, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		request, err := unix.NewIfreq("other")
		if err != nil {
			return err
		}
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(tun, unix.TUNSETIFF, request); err != unix.EPERM {
			return fmt.Errorf("another network device: %v", err)
		}
	}
	if rights.LandlockABI() == 0 {
		return nil
	}
	const dir = "/sockets"
	for name, err := range map[string]error{
		"a file": os.WriteFile(dir+"/file", []byte("x"), 0o600), "a directory": os.Mkdir(dir+"/dir", 0o700), "a link": os.Symlink("/", dir+"/link"),
		"a pipe": unix.Mkfifo(dir+"/pipe", 0o600), "the port removed": os.Remove(fmt.Sprintf("%s/vsock_%d", dir, boot.VsockPort)), "a file in the root": os.WriteFile("/file", nil, 0o600),
	} {
		if err == nil {
			return fmt.Errorf("%s in its jail", name)
		}
	}
	return nil
}

// guest listens for the host as vsock's device does, connects to the host's port, and is a guest whose runner ends at once.
func (m machine) guest() error {
	l, err := net.Listen("unix", m.vsock)
	if err != nil {
		return err
	}
	defer l.Close()
	conn, err := net.Dial("unix", fmt.Sprintf("%s_%d", m.vsock, boot.VsockPort))
	if err != nil {
		return err
	}
	g := boot.NewGuest(conn)
	if err := g.Ready("6.12.0"); err != nil {
		return err
	}
	order, err := g.Receive()
	if err != nil || order.Boot == nil {
		return fmt.Errorf("order %+v, %w", order, err)
	}
	tell("boot", order.Boot.Hostname)
	if err := g.Started(); err != nil {
		return err
	}
	if err := g.Ended(boot.Ended{Runner: "exit status 0"}); err != nil {
		return err
	}
	time.Sleep(time.Minute) // the supervisor ends what has said all
	return nil
}

// tell writes down what happened.
func tell(words ...any) { fmt.Println(append([]any{"told:"}, words...)...) }

// strict decodes JSON in which nothing unknown may be, as Firecracker does.
func strict(r io.Reader, into any) error {
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	return d.Decode(into)
}
