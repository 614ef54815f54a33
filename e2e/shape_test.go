package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/gateway"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/netns"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
	"github.com/cofferdam/cofferdam/internal/terminal"
	"github.com/cofferdam/cofferdam/internal/testenv"
	"github.com/cofferdam/cofferdam/internal/upstream"
)

// shapeRoom in the environment makes this binary the inhabitant of a new room, with a directory for its files.
const shapeRoom = "COFFERDAM_TEST_SHAPE_ROOM"

// TestShapeGVisor holds the parts to a promise that no product code keeps yet: the runner's binary, its protocol, and the planted listeners
// serve another kernel than the host's without a change. The runner is process 1 of a gVisor sandbox whose sockets are the room's.
func TestShapeGVisor(t *testing.T) {
	if dir := os.Getenv(shapeRoom); dir != "" {
		if err := inhabit(dir); err != nil {
			t.Fatal(err)
		}
		return
	}
	testenv.Need(t, "userns", "tool:runsc", "tool:curl")
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "through the door\n") }))
	defer site.Close()
	port := netip.MustParseAddrPort(site.Listener.Addr().String()).Port()
	token, secret := terminal.NewToken()
	l := startGVisor(t, frame.Boot{Control: netip.AddrPortFrom(netns.Gateway4, netns.ControlPort).String(), Token: secret})
	log, control := new(shapeLog), make(chan net.Conn, 1)
	over := serveShape(t, l, log, control, port)
	defer over()

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var conn net.Conn
	select {
	case conn = <-control:
	case <-ctx.Done():
		t.Fatal("the runner did not call")
	}
	var out bytes.Buffer
	script := fmt.Sprintf(`cat; curl -sS http://good.example.com:%d/; curl -s http://evil.example.org/; echo "name: $?"
curl -s http://203.0.113.7/; echo "address: $?"; exit 7`, port)
	session, err := terminal.Attach(ctx, conn, terminal.Options{
		Token: token, Stdin: textFile(t, "input\n"), Stdout: &out, Stderr: &out,
		Start: frame.Start{Args: []string{"/bin/sh", "-c", script}, Dir: "/", Env: []string{"PATH=" + os.Getenv("PATH")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	exit, err := session.Run(ctx)
	if err != nil || exit.Code != 7 {
		t.Errorf("exit %+v, %v, want code 7", exit, err)
	}
	const couldNotResolve, couldNotConnect = 6, 7 // of curl
	want := fmt.Sprintf("input\nthrough the door\nname: %d\naddress: %d\n", couldNotResolve, couldNotConnect)
	if out.String() != want {
		t.Errorf("output %q, want %q", out.String(), want)
	}
	if kernel := session.Facts().Kernel; !strings.Contains(kernel, "gvisor") {
		t.Errorf("the runner's kernel is %s, want gVisor's", kernel)
	}
	log.expect(t, policy.Allow, "good.example.com")
	log.expect(t, policy.Deny, "evil.example.org")
	log.expect(t, policy.Deny, "203.0.113.7")
}

// startGVisor makes a room with a gVisor sandbox in it, which lives as long as the test.
func startGVisor(t *testing.T, boot frame.Boot) gateway.Listeners {
	t.Helper()
	line, err := json.Marshal(boot)
	if err != nil {
		t.Fatal(err)
	}
	outside, inside, err := call.Pair()
	if err != nil {
		t.Fatal(err)
	}
	conn := call.NewConn(outside)
	defer conn.Close()
	cmd := exec.Command("/proc/self/exe", "-test.run", "^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), shapeRoom+"="+t.TempDir(), "COFFERDAM_BIN="+testenv.Programs(t))
	var said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(string(line)+"\n"), &said, &said
	cmd.ExtraFiles = []*os.File{inside}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = inside.Close() // the child has its own
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // with process 1 of its namespace everything in it ends, its mounts too
		_ = cmd.Wait()         // killed
		if t.Failed() {
			t.Logf("in the room: %s", said.String())
		}
	})
	var planted struct{}
	files, err := conn.Receive(&planted)
	if err != nil || len(files) != netns.Count {
		t.Fatalf("the room handed out %d sockets: %v", len(files), err)
	}
	return shapeListeners(t, files)
}

func shapeListeners(t *testing.T, files []*os.File) gateway.Listeners {
	t.Helper()
	tcp, err := net.FileListener(files[0])
	if err != nil {
		t.Fatal(err)
	}
	packet, err := net.FilePacketConn(files[1])
	if err != nil {
		t.Fatal(err)
	}
	stream, err := net.FileListener(files[2])
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files[:3] {
		_ = f.Close() // package net has its own
	}
	return gateway.Listeners{TCP: tcp.(*net.TCPListener), DNSPacket: packet.(*net.UDPConn), DNSStream: stream, Refused: files[3], Answer4: files[4], Answer6: files[5]}
}

// serveShape runs a gateway that lets only good.example.com through. The returned function ends it.
func serveShape(t *testing.T, l gateway.Listeners, log *shapeLog, control chan<- net.Conn, port uint16) (end func()) {
	t.Helper()
	law, err := policy.Parse("shape.yaml", fmt.Appendf(nil,
		"version: 1\negress:\n  networks: [127.0.0.0/8]\n  rules:\n    - hosts: [good.example.com]\n      ports: [%d]\n", port))
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	g, err := gateway.New(gateway.Config{
		Run: ident.NewRun(), Policy: law, Recorder: log, Upstream: upstream.New(upstream.Config{Resolver: loopbackZone{}}),
		Control: func(c net.Conn) bool {
			select {
			case control <- c:
				<-over
				return true
			default:
				return false
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	served := make(chan error, 1)
	go func() { served <- g.Serve(ctx, l) }()
	return func() {
		close(over)
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
}

// inhabit builds the room around this process, hands its sockets out, and stays with the gVisor sandbox to its end.
func inhabit(dir string) error {
	runtime.LockOSThread()
	conn := call.NewConn(os.NewFile(3, "parent"))
	for _, m := range []struct {
		source, target, kind string
		flags                uintptr
	}{{"", "/", "", unix.MS_REC | unix.MS_PRIVATE}, {"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC}} {
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	l, err := netns.Setup(netns.Config{})
	if err != nil {
		return err
	}
	if err := conn.Send(struct{}{}, l.Files()...); err != nil {
		return err
	}
	l.Close()
	_ = conn.Close() // everything is said
	if err := writeBundle(dir); err != nil {
		return err
	}
	cmd := exec.Command("runsc", "--root", filepath.Join(dir, "state"), "--network=host", "--ignore-cgroups", "--platform=systrap", "run", "--bundle", dir, "shape")
	cmd.Stdin = os.Stdin
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("runsc: %w: %s", err, out)
	}
	return nil
}

// writeBundle describes the sandbox: the host's root, read-only, with the room's name server, and the runner as its process 1.
func writeBundle(dir string) error {
	resolver := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(resolver, []byte("nameserver "+netns.Gateway4.String()+"\n"), 0o644); err != nil {
		return err
	}
	type object = map[string]any
	spec, err := json.Marshal(object{
		"ociVersion": "1.0.2",
		"process": object{
			"args": []string{filepath.Join(os.Getenv("COFFERDAM_BIN"), "cofferdam-runner")}, "cwd": "/",
			"env": []string{"PATH=/usr/bin:/bin"}, "user": object{"uid": 0, "gid": 0}, "noNewPrivileges": true,
		},
		"root": object{"path": "/", "readonly": true},
		"mounts": []object{
			{"destination": "/proc", "type": "proc", "source": "proc"},
			{"destination": "/etc/resolv.conf", "type": "bind", "source": resolver, "options": []string{"bind", "ro"}},
		},
		"linux": object{"namespaces": []object{{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}}},
	})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "config.json"), spec, 0o600)
}

// loopbackZone knows one name.
type loopbackZone struct{}

// LookupNetIP answers for good.example.com only.
func (loopbackZone) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	if strings.TrimSuffix(host, ".") == "good.example.com" {
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

// shapeLog is an audit log in memory.
type shapeLog struct {
	mu     sync.Mutex
	events []audit.Event
}

// Append keeps events.
func (l *shapeLog) Append(_ context.Context, events ...audit.Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, events...)
	return nil
}

// expect waits until a decision about a destination is on record.
func (l *shapeLog) expect(t *testing.T, verdict policy.Verdict, destination string) {
	t.Helper()
	fits := func(e audit.Event) bool {
		return e.Kind == audit.CrossingDecided && e.Verdict == verdict.String() && (e.Host == destination || e.Address == destination)
	}
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		l.mu.Lock()
		found := slices.ContainsFunc(l.events, fits)
		l.mu.Unlock()
		if found {
			return
		}
	}
	t.Errorf("no record of %s %s in %+v", verdict, destination, l.events)
}

// textFile is an open file that holds text and has no name.
func textFile(t *testing.T, text string) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	if _, err := io.WriteString(w, text); err != nil { // fits into the pipe
		t.Fatal(err)
	}
	_ = w.Close() // the reader sees the end
	return r
}
