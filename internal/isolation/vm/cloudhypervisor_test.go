package vm

import (
	"context"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// TestCloudHypervisorRuns has a machine live from its start to its end, by the command line, the API and the wire.
func TestCloudHypervisorRuns(t *testing.T) {
	s := startFake(t, cloudHypervisor{needFakes(t) + "/cloud-hypervisor"}, hardware{memory: 256 << 20, cpus: 1})
	if err := s.monitor.resume(t.Context()); err == nil || !strings.Contains(err.Error(), "refuses vm.resume with 500: [\"Error from API\"") {
		t.Errorf("resume of what runs: %v", err)
	}
	if err := s.monitor.pause(t.Context()); err != nil {
		t.Error(err)
	}
	if err := s.monitor.resume(t.Context()); err != nil {
		t.Error(err)
	}
	s.lives(t)
	if got := s.told(t, "boot"); got != "arguments 1 256M 2 02:cf:0d:00:00:02, vmm.ping, vm.resume, vm.pause, vm.resume, boot cofferdam" {
		t.Errorf("told: %s", got)
	}
	for name, err := range map[string]error{"save": s.monitor.save(t.Context(), nil), "load": s.monitor.load(t.Context(), 0)} {
		if fault.KindOf(err) != fault.Unsupported {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// answering is a program whose API gives the answers of a script, one for each request.
func answering(t *testing.T, script ...string) *os.File {
	t.Helper()
	ours, theirs, err := pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ours.Close() })
	go func() {
		defer theirs.Close()
		request := make([]byte, 4096)
		for _, answer := range script {
			if _, err := theirs.Read(request); err != nil {
				return
			}
			if _, err := io.WriteString(theirs, answer); err != nil {
				return // who asked is gone, or has heard enough
			}
		}
	}()
	return ours
}

// TestHostileAPI is a program that was taken over: no answer hangs the supervisor, fills its memory or reaches a terminal, and none is taken for another.
func TestHostileAPI(t *testing.T) {
	const pong = `{"version":"52.0.0"}`
	// As micro_http writes it, which both programs have.
	good := "HTTP/1.1 200 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n" + pong
	done := "HTTP/1.1 204 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\r\n"
	for name, c := range map[string]struct {
		script []string
		want   string // nothing: attend and pause succeed
	}{
		"good":                  {[]string{good, done}, ""},
		"hangs up":              {nil, "speak to the machine's program about vmm.ping"},
		"hangs up in between":   {[]string{good}, "speak to the machine's program about vm.pause"},
		"no HTTP":               {[]string{"SSH-2.0-hello\r\n"}, "no HTTP/1.1"},
		"endless line":          {[]string{strings.Repeat("a", 1<<20)}, "buffer full"},
		"endless header":        {[]string{"HTTP/1.1 200 \r\nA: " + strings.Repeat("a", 1<<20)}, "buffer full"},
		"endless headers":       {[]string{"HTTP/1.1 200 \r\n" + strings.Repeat("A: b\r\n", 1<<16)}, "too many headers"},
		"no header":             {[]string{"HTTP/1.1 200 \r\nhello\r\n\r\n"}, "no colon"},
		"endless body":          {[]string{"HTTP/1.1 200 \r\nContent-Length: 999999999\r\n\r\n"}, "too long"},
		"negative body":         {[]string{"HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n"}, "too long"},
		"two lengths":           {[]string{"HTTP/1.1 200 \r\nContent-Length: 2\r\ncontent-length: 20\r\n\r\n{}"}, "two lengths"},
		"in pieces":             {[]string{"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n"}, "in pieces"},
		"body cut off":          {[]string{"HTTP/1.1 200 \r\nContent-Length: 20\r\n\r\n{}"}, "EOF"},
		"goes on":               {[]string{"HTTP/1.1 100 Continue\r\n\r\n" + good}, "no final status"},
		"odd status":            {[]string{"HTTP/1.1 2x4 \r\n\r\n"}, "no final status"},
		"long status":           {[]string{"HTTP/1.1 2000 \r\n\r\n"}, "no HTTP/1.1"},
		"no JSON":               {[]string{"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok"}, "no JSON"},
		"no answer in the body": {[]string{"HTTP/1.1 204 \r\n\r\n"}, "no JSON"},
		"refuses":               {[]string{good, "HTTP/1.1 500 \r\nContent-Length: 9\r\n\r\nno\x1b]0;x\x07!"}, "with 500: no?]0;x?!"},
		"long refusal":          {[]string{good, "HTTP/1.1 500 \r\nContent-Length: 60000\r\n\r\n" + strings.Repeat("x", 60000)}, strings.Repeat("x", 200)},
		"older than it said":    {[]string{"HTTP/1.1 200 \r\nContent-Length: 20\r\n\r\n" + `{"version":"51.9.0"}`}, "52.0 is the least"},
		"says no version":       {[]string{"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\n{}"}, "no number of a release"},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := cloudHypervisor{}.attend(t.Context(), answering(t, c.script...))
			if err == nil {
				err = m.pause(t.Context())
			}
			if c.want == "" && err == nil {
				return
			}
			if err == nil || c.want == "" || !strings.Contains(err.Error(), c.want) || len(err.Error()) > 500 {
				t.Errorf("%.600v", err)
			}
		})
	}
	t.Run("after a broken answer", func(t *testing.T) {
		a := newAPI(answering(t, "HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n", done, done))
		first := a.do(t.Context(), "PUT", "vm.pause", nil)
		if second := a.do(t.Context(), "PUT", "vm.resume", nil); first == nil || second == nil || first.Error() != second.Error() {
			t.Errorf("%v, then %v: an answer may be that to another question", first, second)
		}
	})
	t.Run("answers nothing", func(t *testing.T) {
		ours, theirs, err := pair()
		if err != nil {
			t.Fatal(err)
		}
		defer ours.Close()
		defer theirs.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := (cloudHypervisor{}).attend(ctx, ours); err == nil {
			t.Error("a program that answers nothing was taken for one that does")
		}
	})
}

// TestPlug: what a program accepts on its listening socket is the one connection that was made before, and no other can be made.
func TestPlug(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	ours, theirs, err := plug()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	l, err := net.FileListener(theirs)
	if err != nil {
		t.Fatal(err)
	}
	_ = theirs.Close() // l is the same socket
	defer l.Close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(ours, "x"); err != nil {
		t.Error(err)
	}
	got := make([]byte, 1)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "x" {
		t.Errorf("%q, %v", got, err)
	}
	if second, err := net.Dial("unix", l.Addr().String()); err == nil {
		_ = second.Close()
		t.Errorf("a second connection could be made to %s", l.Addr())
	}
}

// TestTakePort: the first connection is the port, a second one is refused, and nobody waits for ever, or for a program that is gone.
func TestTakePort(t *testing.T) {
	listen := func() (string, *os.File) {
		name := t.TempDir() + "/port"
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Close() // f is the same socket
		return name, f
	}
	name, listener := listen()
	conn, err := net.Dial("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	port, err := takePort(t.Context(), listener, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	if err := port.SetDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Errorf("the port can have no deadline: %v", err)
	}
	if _, err := port.Read(make([]byte, 1)); !os.IsTimeout(err) {
		t.Errorf("read from a machine that says nothing: %v", err)
	}
	if second, err := net.Dial("unix", name); err == nil {
		_ = second.Close()
		t.Error("a second connection was taken")
	}
	_, listener = listen()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := takePort(ctx, listener, nil); err == nil || !strings.Contains(err.Error(), "deadline") {
		t.Errorf("a machine that does not connect: %v", err)
	}
	_, listener = listen()
	gone := make(chan struct{})
	close(gone)
	if _, err := takePort(t.Context(), listener, gone); err == nil || !strings.Contains(err.Error(), "program ended") {
		t.Errorf("a program that is gone: %v", err)
	}
}

// TestEnds: QEMU has both connections open, Cloud Hypervisor one that listens, Firecracker none.
func TestEnds(t *testing.T) {
	for _, c := range []struct {
		d             driver
		control, port bool
		theirs        int
	}{{qemu{}, true, true, 2}, {cloudHypervisor{}, true, false, 1}, {firecracker{}, false, false, 0}} {
		e, err := endsFor(c.d)
		if err != nil {
			t.Fatal(err)
		}
		if (e.control != nil) != c.control || (e.port != nil) != c.port || len(e.theirs) != c.theirs {
			t.Errorf("%s: %+v", c.d.name(), e)
		}
		e.close()
	}
}
