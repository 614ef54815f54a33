package supervisor

import (
	"slices"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/cgroup"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// alive makes a sandbox whose runner waits for its owner until the test ends.
func alive(t *testing.T) (*call.Conn, call.Create, <-chan error) {
	t.Helper()
	testenv.Need(t, "userns")
	conn, done := serve(t)
	spec := specification()
	if err := conn.Send(call.Request{Create: &spec}); err != nil {
		t.Fatal(err)
	}
	var r call.Reply
	files, err := conn.Receive(&r)
	if err != nil || r.Created == nil {
		t.Fatalf("control: %v, %+v", err, r.Refused)
	}
	t.Cleanup(func() {
		for _, f := range files {
			_ = f.Close() // what is behind it is gone
		}
	})
	return conn, spec, done
}

// ask puts one request and checks the answer.
func ask(t *testing.T, conn *call.Conn, f call.Freeze, paused bool, refused fault.Kind) {
	t.Helper()
	if err := conn.Send(call.Request{Freeze: &f}); err != nil {
		t.Fatal(err)
	}
	r := reply(t, conn)
	if r.Frozen == nil || r.Frozen.Ask != f.Ask || r.Frozen.Paused != paused || (r.Frozen.Refused != nil) != (refused != 0) || refused != 0 && r.Frozen.Refused.Kind != refused {
		t.Errorf("%+v is answered by %+v, refused %+v; want paused %t, refused %v", f, r.Frozen, r.Frozen.Refused, paused, refused)
	}
}

// TestFreezeOrders pauses a sandbox on its own connection and by its name, refuses what is so already, and kills it while it is paused.
func TestFreezeOrders(t *testing.T) {
	if !cgroup.Detect().Groups(cgroup.Limits{}) {
		t.Skip("needs a delegated control group that can be frozen")
	}
	conn, spec, done := alive(t)
	ask(t, conn, call.Freeze{Want: call.WantNothing, Ask: 1}, false, 0)
	ask(t, conn, call.Freeze{Want: call.WantRunning, Ask: 2}, false, fault.Conflict)
	ask(t, conn, call.Freeze{Want: call.WantPaused, Ask: 3}, true, 0)
	ask(t, conn, call.Freeze{Want: call.WantPaused, Ask: 4}, true, fault.Conflict)
	ask(t, conn, call.Freeze{Want: call.Want(9), Ask: 5}, true, fault.Invalid)
	for _, one := range []struct {
		want    call.Want
		paused  bool
		refused fault.Kind
	}{{call.WantNothing, true, 0}, {call.WantRunning, false, 0}, {call.WantRunning, false, fault.Conflict}, {call.WantPaused, true, 0}} {
		other, over := serve(t)
		ask(t, other, call.Freeze{Run: spec.Run, Want: one.want}, one.paused, one.refused)
		if err := <-over; err != nil {
			t.Error(err)
		}
	}
	// A second sandbox's name in an order is no way to it: the order is about the connection's own.
	ask(t, conn, call.Freeze{Run: "otherone", Want: call.WantRunning, Ask: 6}, false, 0)
	ask(t, conn, call.Freeze{Want: call.WantPaused, Ask: 7}, true, 0)
	if err := conn.Send(call.Request{Kill: &call.Kill{Reason: "enough"}}); err != nil {
		t.Fatal(err)
	}
	if r := reply(t, conn); r.Ended == nil || r.Ended.How != "enough" || len(r.Ended.Problems) != 0 || !slices.Contains(r.Ended.Erased, "control groups") {
		t.Errorf("killed while paused: %+v", r.Ended)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestFrozenCallerGone hangs up on a sandbox that is paused: it ends with its caller.
func TestFrozenCallerGone(t *testing.T) {
	if !cgroup.Detect().Groups(cgroup.Limits{}) {
		t.Skip("needs a delegated control group that can be frozen")
	}
	conn, spec, done := alive(t)
	ask(t, conn, call.Freeze{Want: call.WantPaused}, true, 0)
	_ = conn.Close() // the end is what is tried
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("the supervisor of a paused sandbox outlives its caller")
	}
	if left := cgroup.Find(cgroup.Name(spec.Run)); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// TestFreezeFlood asks for more than is answered, and reads no answer: what is asked then still ends the sandbox.
func TestFreezeFlood(t *testing.T) {
	if !cgroup.Detect().Groups(cgroup.Limits{}) {
		t.Skip("needs a delegated control group that can be frozen")
	}
	conn, spec, done := alive(t)
	for i := range 3000 {
		if err := conn.Send(call.Request{Freeze: &call.Freeze{Want: call.Want(i % 3)}}); err != nil {
			t.Fatal(err)
		}
	}
	_ = conn.Send(call.Request{Kill: &call.Kill{Reason: "enough"}})
	for end := time.Now().Add(10 * time.Second); len(cgroup.Find(cgroup.Name(spec.Run))) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the sandbox lives on")
		}
	}
	_ = conn.Close() // nobody reads the answers
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestUnfreezable asks for a sandbox that has no control group.
func TestUnfreezable(t *testing.T) {
	conn, done := serve(t)
	if err := conn.Send(call.Request{Freeze: &call.Freeze{Run: "nosuchru", Want: call.WantPaused}}); err != nil {
		t.Fatal(err)
	}
	r := reply(t, conn)
	if r.Frozen == nil || r.Frozen.Paused || r.Frozen.Refused == nil || r.Frozen.Refused.Kind != fault.Unsupported || r.Frozen.Refused.Hint == "" {
		t.Errorf("%+v", r.Frozen)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
