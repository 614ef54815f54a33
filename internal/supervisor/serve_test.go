package supervisor

import (
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/isolation/container"
	"github.com/cofferdam/cofferdam/internal/netns"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// TestMain lets the test binary be the child that builds a sandbox, as the supervisor's program is.
func TestMain(m *testing.M) {
	switch os.Args[0] {
	case container.SetupName:
		container.Setup(nil)
	case container.StewardName:
		container.Steward()
	case NothingName:
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// serve starts a server on one end of a socket pair and returns the other.
func serve(t *testing.T) (*call.Conn, <-chan error) {
	t.Helper()
	ours, theirs, err := call.Pair()
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Runner: filepath.Join(testenv.Programs(t), "cofferdam-runner")}
	done := make(chan error, 1)
	go func() {
		conn := call.NewConn(theirs)
		defer conn.Close()
		done <- s.Serve(t.Context(), conn)
	}()
	conn := call.NewConn(ours)
	t.Cleanup(func() { _ = conn.Close() })
	return conn, done
}

func specification() call.Create {
	return call.Create{
		Run: ident.NewRun(), Level: "container", Hostname: "cofferdam", Boot: `{"control":"198.18.0.1:1","token":"00"}`, UIDBase: 0x70000000,
		Limits: call.Limits{Disk: 64 << 20}, BestEffort: []string{"landlock"}, Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
	}
}

func reply(t *testing.T, conn *call.Conn) call.Reply {
	t.Helper()
	var r call.Reply
	files, err := conn.Receive(&r)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		_ = f.Close() // only their number matters
	}
	if r.Created != nil && len(files) != netns.Count {
		t.Errorf("%d sockets, want %d", len(files), netns.Count)
	}
	return r
}

// TestOneCall tries to get a second sandbox out of a supervisor that has made one, as whoever takes over the gateway would.
func TestOneCall(t *testing.T) {
	testenv.Need(t, "userns")
	conn, done := serve(t)
	spec := specification()
	if err := conn.Send(call.Request{Create: &spec}); err != nil {
		t.Fatal(err)
	}
	if r := reply(t, conn); r.Created == nil {
		t.Fatalf("control: %+v", r.Refused)
	}
	second := specification()
	second.Run, second.Mounts = "otherone", []call.Mount{{Source: "/etc", Target: "/stolen", Write: true}}
	for _, r := range []call.Request{{Create: &second}, {Reap: &call.Reap{Run: spec.Run}}, {Probe: &call.Probe{}}} {
		if err := conn.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := conn.Send(call.Request{Kill: &call.Kill{Reason: "enough"}}); err != nil {
		t.Fatal(err)
	}
	if r := reply(t, conn); r.Ended == nil || r.Ended.How != "enough" || len(r.Ended.Problems) != 0 {
		t.Errorf("after the kill: %+v", r)
	} else if !slices.Contains(r.Ended.Erased, "processes") || !slices.Contains(r.Ended.Erased, "mounts") {
		t.Errorf("erased: %q", r.Ended.Erased)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	var more call.Reply
	if _, err := conn.Receive(&more); !errors.Is(err, io.EOF) {
		t.Errorf("the supervisor said more: %+v, %v", more, err)
	}
}

// TestLastAnswer asks on while the supervisor gives its last answer, which must arrive all the same.
func TestLastAnswer(t *testing.T) {
	for range 50 {
		conn, done := serve(t)
		spec := specification()
		spec.Level = "none"
		if err := conn.Send(call.Request{Create: &spec}); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			if err := conn.Send(call.Request{Freeze: &call.Freeze{}}); err != nil {
				break // it listens no more
			}
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if r := reply(t, conn); r.Refused == nil {
			t.Fatalf("control: %+v", r)
		}
	}
}

// TestCallerGone hangs up: the sandbox ends with its caller.
func TestCallerGone(t *testing.T) {
	testenv.Need(t, "userns")
	conn, done := serve(t)
	spec := specification()
	if err := conn.Send(call.Request{Create: &spec}); err != nil {
		t.Fatal(err)
	}
	r := reply(t, conn)
	if r.Created == nil {
		t.Fatalf("control: %+v", r.Refused)
	}
	_ = conn.Close() // the end is what is tried
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("the supervisor outlives its caller")
	}
	if _, err := os.Stat(filepath.Join("/proc", jsonNumber(r.Created.PID))); err == nil {
		t.Errorf("process 1 (%d) outlives its caller", r.Created.PID)
	}
}

func jsonNumber(n int) string {
	data, _ := json.Marshal(n) // numbers always encode
	return string(data)
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*call.Create)
		kind   fault.Kind
		want   string
	}{
		{"level", func(s *call.Create) { s.Level = "pod" }, fault.Unsupported, "pod"},
		{"machine without a root of its own", func(s *call.Create) { s.Level = "vm" }, fault.Invalid, "vm"},
		{"no level", func(s *call.Create) { s.Level = "" }, fault.Unsupported, "level"},
		{"mount over the root", func(s *call.Create) { s.Mounts = []call.Mount{{Source: "/etc", Target: "/"}} }, fault.Invalid, "root"},
		{"mount over /proc", func(s *call.Create) { s.Mounts = []call.Mount{{Source: "/etc", Target: "/proc/x"}} }, fault.Invalid, "/proc"},
		{"mount over the runner", func(s *call.Create) { s.Mounts = []call.Mount{{Source: "/etc", Target: "/run/cofferdam"}} }, fault.Invalid, "/run/cofferdam"},
		{"mount not clean", func(s *call.Create) { s.Mounts = []call.Mount{{Source: "/etc", Target: "/a/../b"}} }, fault.Invalid, "clean"},
		{"two mounts at one place", func(s *call.Create) {
			s.Mounts = []call.Mount{{Source: "/etc", Target: "/a"}, {Source: "/usr", Target: "/a"}}
		}, fault.Invalid, "two things"},
		{"missing source", func(s *call.Create) { s.Mounts = []call.Mount{{Source: "/no/such/path", Target: "/a"}} }, fault.Invalid, "/no/such/path"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, done := serve(t)
			spec := specification()
			c.change(&spec)
			if err := conn.Send(call.Request{Create: &spec}); err != nil {
				t.Fatal(err)
			}
			r := reply(t, conn)
			if r.Refused == nil || r.Refused.Kind != c.kind || !strings.Contains(r.Refused.Public, c.want) {
				t.Errorf("%+v, want %v with %q", r.Refused, c.kind, c.want)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestProbe asks what this machine can enforce: what no sandbox can do without must be there, or the other tests could not run.
func TestProbe(t *testing.T) {
	testenv.Need(t, "userns")
	conn, _ := serve(t)
	if err := conn.Send(call.Request{Probe: &call.Probe{}}); err != nil {
		t.Fatal(err)
	}
	r := reply(t, conn)
	if r.Probed == nil || len(r.Probed.Features) < 5 {
		t.Fatalf("%+v", r)
	}
	for _, f := range r.Probed.Features {
		if f.Need && !f.OK {
			t.Errorf("%s: %s", f.Name, f.Detail)
		}
		if !f.OK && f.Remedy == "" {
			t.Errorf("%s is missing and there is no remedy", f.Name)
		}
	}
}
