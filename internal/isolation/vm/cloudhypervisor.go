package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/netns"
)

// cloudHypervisor drives Cloud Hypervisor 52.0 and later, as its documents describe it: it has not been run on hardware yet.
//
// The machine is on the command line. Its API is one connection that is made before it starts, to a socket that has no name any more: nobody else can speak to it.
type cloudHypervisor struct{ program string }

// cloudHypervisorLeast is the first release that can have the network as an open device from another network namespace; older ones end when they cannot ask that for
// its largest frame. It has the fixes of CVE-2026-45782 (use after free in virtio-block, fixed in 51.2 and 52.0) and of CVE-2026-27211 (files of the host read
// through disk images, fixed in 51.0).
var cloudHypervisorLeast = release{52, 0, 0}

func (c cloudHypervisor) needs() needs { return needs{sockets: placeSockets, port: placePort} }

func (c cloudHypervisor) name() string { return "Cloud Hypervisor" }

func (c cloudHypervisor) version(ctx context.Context) (string, error) {
	return askRelease(ctx, c.program, c.name(), "cloud-hypervisor v", cloudHypervisorLeast)
}

func (c cloudHypervisor) launch(h hardware) (launch, error) {
	l, err := launchStatic(c.program, h)
	if err != nil {
		return launch{}, err
	}
	l.Args = c.arguments(h)
	return l, nil
}

// arguments is the command line: everything that a machine has is in this table. Its own Landlock rules are not asked for: they are made of paths, and it sees no file
// that it has no business with; that it writes to none, the jail's rules see to.
func (c cloudHypervisor) arguments(h hardware) []string {
	args := []string{
		"cloud-hypervisor", "--api-socket", "fd=" + h.control.String(), "--seccomp", "true",
		"--cpus", "boot=" + strconv.Itoa(h.cpus), "--memory", fmt.Sprintf("size=%dM", h.memory>>20),
		"--kernel", placeKernel, "--initramfs", placeInitram, "--cmdline", "console=ttyS0 " + boot.KernelArguments + " " + boot.VsockArgument,
		"--serial", "tty", "--console", "off", "--rng", "src=/dev/urandom",
	}
	for i, d := range h.disks {
		// The type is named, since one that is guessed from what the guest could have written made CVE-2026-27211.
		args = append(args, "--disk", "path="+inherited(d)+",readonly=on,image_type=raw,serial="+boot.DiskSerial(i))
	}
	return append(args, "--net", "fd=["+h.wire.String()+"],mac="+netns.InsideMAC(), "--vsock", fmt.Sprintf("cid=%d,socket=%s", boot.VsockGuest, placeVsock))
}

// attend waits until Cloud Hypervisor answers, and takes it at its own word about its version: what answers must be what was chosen.
func (c cloudHypervisor) attend(ctx context.Context, control io.ReadWriteCloser) (monitor, error) {
	api := newAPI(control)
	var pong struct {
		Version string `json:"version"`
	}
	if err := api.do(ctx, "GET", "vmm.ping", &pong); err != nil {
		return nil, err
	}
	got, err := parseRelease(strings.TrimPrefix(pong.Version, "v"))
	if err != nil {
		return nil, err
	}
	if got.less(cloudHypervisorLeast) {
		return nil, fmt.Errorf("version %s of Cloud Hypervisor was started, and %s is the least", got, cloudHypervisorLeast)
	}
	return cloudMonitor{api}, nil
}

// cloudMonitor speaks to Cloud Hypervisor.
type cloudMonitor struct{ api *api }

func (m cloudMonitor) pause(ctx context.Context) error { return m.api.do(ctx, "PUT", "vm.pause", nil) }
func (m cloudMonitor) resume(ctx context.Context) error {
	return m.api.do(ctx, "PUT", "vm.resume", nil)
}

// save would write the machine's memory as a whole, and reset the connection that is its port; so would load.
func (m cloudMonitor) save(context.Context, *os.File) error   { return errNoCopies() }
func (m cloudMonitor) load(context.Context, descriptor) error { return errNoCopies() }

func errNoCopies() error {
	return fault.New(fault.Unsupported, "machines of Cloud Hypervisor are not copied")
}

// ends are the two sides of what a machine is spoken to by. A side that there is none of is nil.
type ends struct {
	control, port *os.File   // ours
	theirs        []*os.File // the machine's, of the control connection and of the port
}

// endsFor makes them. Where a program connects to a port in its jail, there is none before it has.
func endsFor(d driver) (e ends, err error) {
	defer func() {
		if err != nil {
			e.close()
		}
	}()
	var theirs *os.File
	switch d.(type) {
	case firecracker:
		return e, nil
	case cloudHypervisor:
		e.control, theirs, err = plug()
		e.theirs = []*os.File{theirs}
		return e, err
	}
	for _, ours := range []**os.File{&e.control, &e.port} {
		if *ours, theirs, err = pair(); err != nil {
			return e, err
		}
		e.theirs = append(e.theirs, theirs)
	}
	return e, nil
}

func (e ends) close() {
	for _, f := range append([]*os.File{e.control, e.port}, e.theirs...) {
		if f != nil {
			_ = f.Close() // nothing was said yet
		}
	}
}

// plug makes a listening socket to hand on, and the one connection to it that there will ever be: its name is gone when this returns.
func plug() (ours, theirs *os.File, err error) {
	dir, err := os.MkdirTemp("", "cofferdam-plug") // which nobody else may enter
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(dir) // what is made of it is open
	d, err := os.Open(dir)
	if err != nil {
		return nil, nil, err
	}
	defer d.Close()
	address := &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/api", d.Fd())} // however long the directory's own name is
	var made []*os.File
	for range 2 {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return nil, nil, errors.Join(fmt.Errorf("make a socket: %w", err), closeAll(made))
		}
		made = append(made, os.NewFile(uintptr(fd), "machine"))
	}
	theirs, ours = made[0], made[1]
	if err := onSocket(theirs, func(fd int) error { return errors.Join(unix.Bind(fd, address), unix.Listen(fd, 1)) }); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("listen: %w", err), closeAll(made))
	}
	if err := onSocket(ours, func(fd int) error { return unix.Connect(fd, address) }); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("connect: %w", err), closeAll(made))
	}
	return ours, theirs, nil
}

func closeAll(files []*os.File) error {
	var all []error
	for _, f := range files {
		all = append(all, f.Close())
	}
	return errors.Join(all...)
}

// onSocket does something to a socket without making it one that blocks, as Fd does.
func onSocket(f *os.File, do func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var done error
	return errors.Join(raw.Control(func(fd uintptr) { done = do(int(fd)) }), done)
}

// takePort waits until a machine's program connects to the listener that stands for the host's port, or is gone, and takes that connection as the port. There is no second
// one: the listener is closed.
func takePort(ctx context.Context, listener *os.File, gone <-chan struct{}) (*os.File, error) {
	defer listener.Close()
	l, err := net.FileListener(listener)
	if err != nil {
		return nil, fmt.Errorf("take the machine's port: %w", err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel(nil)
	watch.Go(func() {
		select {
		case <-gone:
			cancel(errors.New("the machine's program ended"))
		case <-ctx.Done():
		}
	})
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	conn, err := l.Accept()
	if err != nil {
		return nil, fmt.Errorf("wait for the machine to connect to its port: %w", errors.Join(context.Cause(ctx), err))
	}
	defer conn.Close()
	stream, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, errors.New("the machine's port is no Unix socket")
	}
	return stream.File()
}
