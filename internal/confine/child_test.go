package confine

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/seccomp"
)

// task is what a test asks of its child, which is this test binary, started again since confinement is for good.
type task struct {
	Config   Config
	TCP, DNS string // servers of the parent on loopback
	Dir      string // writable to all
	Threads  int    // to hold during confinement
	Measure  bool   // no attempts, only the time
	Old      bool   // hide Landlock, as an old kernel would
}

// answer is what the child found.
type answer struct {
	Report        Report
	Took          time.Duration
	Err           string
	Kind          fault.Kind
	Before, After map[string]string // attempt -> error, "" for success
}

const taskEnv = "COFFERDAM_CONFINE_TASK"

func TestMain(m *testing.M) {
	if text := os.Getenv(taskEnv); text != "" {
		var t task
		if err := json.Unmarshal([]byte(text), &t); err != nil {
			panic(err)
		}
		if err := json.NewEncoder(os.Stdout).Encode(t.perform()); err != nil {
			panic(err)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func (t task) perform() (a answer) {
	open, err := os.OpenFile(filepath.Join(t.Dir, "open"), os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		panic(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	started := exec.Command("/bin/cat")
	input, err := started.StdinPipe()
	if err != nil {
		panic(err)
	}
	if err := started.Start(); err != nil {
		panic(err)
	}
	if t.Old {
		hideLandlock()
	}
	holdThreads(t.Threads)
	attempts := t.attempts(open, listener)
	if t.Measure {
		attempts = nil
	}
	a.Before = results(attempts)
	start := time.Now()
	a.Report, err = Self(t.Config)
	a.Took = time.Since(start)
	if err != nil {
		a.Err, a.Kind = err.Error(), fault.KindOf(err)
		_, _ = input.Close(), started.Wait()
		return a
	}
	a.After = results(attempts)
	_ = input.Close() // ends the child that was started before
	a.After["wait for a child"] = text(started.Wait())
	return a
}

func hideLandlock() {
	filter, err := seccomp.Compile(seccomp.Profile{Default: seccomp.Allow, Rules: []seccomp.Rule{
		{Calls: []string{"landlock_create_ruleset"}, Action: seccomp.Errno(unix.ENOSYS)},
	}}, seccomp.Native())
	if err == nil {
		err = seccomp.InstallAll(filter)
	}
	if err != nil {
		panic(err)
	}
}

// holdThreads keeps n threads of the Go runtime alive and busy in the kernel, so that confinement meets more than one.
func holdThreads(n int) {
	var ready sync.WaitGroup
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		panic(err)
	}
	for range n {
		ready.Add(1)
		go func() {
			runtime.LockOSThread()
			ready.Done()
			for { // nothing comes, but the signals by which the runtime preempts may end the call
				_, _ = unix.Read(pipe[0], make([]byte, 1))
			}
		}()
	}
	ready.Wait()
}

type attempt struct {
	name string
	do   func() error
}

func results(attempts []attempt) map[string]string {
	m := map[string]string{}
	for _, a := range attempts {
		m[a.name] = text(a.do())
	}
	return m
}

func text(err error) string {
	if err == nil {
		return ""
	}
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

func closing(c io.Closer, err error) error {
	if err == nil {
		_ = c.Close() // the attempt was to open it
	}
	return err
}

// attempts are made before and after confinement.
func (t task) attempts(open *os.File, listener net.Listener) []attempt {
	opening := func(path string, flags int) func() error {
		return func() error {
			f, err := os.OpenFile(path, flags, 0o600)
			return closing(f, err)
		}
	}
	socket := func(family, kind, protocol int) func() error {
		return func() error {
			fd, err := unix.Socket(family, kind, protocol)
			if err == nil {
				_ = unix.Close(fd)
			}
			return err
		}
	}
	return []attempt{
		{"start a program", func() error { return exec.Command("/bin/true").Run() }},
		{"read shadow", opening("/etc/shadow", os.O_RDONLY)},
		{"read a program", opening("/bin/true", os.O_RDONLY)},
		{"read own memory", opening("/proc/self/mem", os.O_RDWR)},
		{"read a service", opening("/etc/services", os.O_RDONLY)},
		{"read allowed", opening(filepath.Join(t.Dir, "readable", "file"), os.O_RDONLY)},
		{"write readable", opening(filepath.Join(t.Dir, "readable", "file"), os.O_WRONLY)},
		{"write allowed", func() error {
			name := filepath.Join(t.Dir, "writable", "new")
			if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
				return err
			}
			if err := os.Rename(name, name+"2"); err != nil {
				return err
			}
			return os.Remove(name + "2")
		}},
		{"write elsewhere", opening(filepath.Join(t.Dir, "elsewhere"), os.O_WRONLY|os.O_CREATE)},
		{"link out", func() error {
			link := filepath.Join(t.Dir, "link")
			if err := os.Symlink(filepath.Join(t.Dir, "open"), link); err != nil {
				return err
			}
			return os.Remove(link)
		}},
		{"start a process", func() error {
			pid, err := syscall.ForkExec("/bin/true", []string{"true"}, nil)
			if err != nil {
				return err
			}
			_, err = unix.Wait4(pid, nil, 0, nil)
			return err
		}},
		{"execute in place", func() error { // of something that is no program, so that the control survives
			if err := unix.Exec("/dev/null/x", nil, nil); !errors.Is(err, unix.ENOTDIR) {
				return err
			}
			return nil
		}},
		{"truncate elsewhere", func() error { return os.Truncate(filepath.Join(t.Dir, "open"), 0) }},
		{"use an open file", func() error {
			if _, err := open.WriteAt([]byte("abc"), 0); err != nil {
				return err
			}
			return errors.Join(open.Truncate(2), open.Sync())
		}},
		{"dial TCP", func() error { return t.exchange() }},
		{"resolve a name", func() error { return t.resolve() }},
		{"accept on an open listener", func() error { return accept(listener) }},
		{"open a listener", func() error {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			return closing(l, err)
		}},
		{"open a local socket", socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)},
		{"open a raw socket", socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)},
		{"list addresses", func() error { _, err := net.InterfaceAddrs(); return err }},
		{"signal the parent", func() error { return unix.Kill(os.Getppid(), 0) }},
		{"signal its group", func() error { return unix.Kill(0, 0) }},
		{"signal itself", signalSelf},
		{"become root", func() error { return syscall.Setuid(0) }},
		{"change its limits", func() error { var l unix.Rlimit; return unix.Getrlimit(unix.RLIMIT_NOFILE, &l) }},
		{"unshare", func() error { return unix.Unshare(0) }},
		{"run on", runOn},
	}
}

func (t task) exchange() error {
	conn, err := net.DialTimeout("tcp", t.TCP, 5*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("ping")); err != nil {
		return err
	}
	got := make([]byte, 4)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "ping" {
		return fmt.Errorf("got %q (%w)", got, err)
	}
	return nil
}

func (t task) resolve() error {
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", t.DNS)
	}}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	addresses, err := resolver.LookupHost(ctx, "package.example.com")
	if err == nil && (len(addresses) != 1 || addresses[0] != "192.0.2.7") {
		return fmt.Errorf("got %v", addresses)
	}
	return err
}

func accept(listener net.Listener) error {
	go func() {
		if conn, err := net.Dial("tcp", listener.Addr().String()); err == nil {
			_ = conn.Close()
		}
	}()
	if err := listener.(*net.TCPListener).SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	conn, err := listener.Accept()
	return closing(conn, err)
}

func signalSelf() error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGWINCH)
	defer signal.Stop(signals)
	if err := unix.Kill(os.Getpid(), unix.SIGWINCH); err != nil {
		return err
	}
	select {
	case <-signals:
		return nil
	case <-time.After(5 * time.Second):
		return errors.New("no signal came")
	}
}

// runOn exercises the Go runtime and the libraries that a gateway uses.
func runOn() error {
	if err := pprof.StartCPUProfile(io.Discard); err != nil {
		return err
	}
	defer pprof.StopCPUProfile()
	var group sync.WaitGroup
	sums := make([]int, 500)
	for i := range sums {
		group.Go(func() {
			if i%20 == 0 {
				runtime.LockOSThread() // a new thread, and an end of one
			}
			time.Sleep(time.Millisecond)
			buffer := bytes.Repeat([]byte{1}, 1<<16)
			for _, b := range buffer { // long enough to be preempted by signals
				sums[i] += int(b)
			}
		})
	}
	group.Wait()
	runtime.GC()
	if _, err := time.LoadLocation("Europe/Berlin"); err != nil {
		return err
	}
	if _, err := x509.SystemCertPool(); err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	return errors.Join(r.Close(), w.Close())
}
