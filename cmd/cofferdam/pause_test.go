package main

import (
	"errors"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/cgroup"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// TestOutlastPause looks at an accepted connection: the kernel is told not to give it up for as long as a pause may last.
func TestOutlastPause(t *testing.T) {
	config := net.ListenConfig{}
	config.SetMultipathTCP(false) // as the planted ones are
	l, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := outlastPause(l.(*net.TCPListener)); err != nil {
		t.Fatal(err)
	}
	far, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	near, err := l.(*net.TCPListener).AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	raw, err := near.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var got int
	var inner error
	err = raw.Control(func(fd uintptr) { got, inner = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT) })
	if err := errors.Join(err, inner); err != nil || int64(got) != pauseOutlast.Milliseconds() {
		t.Errorf("it is given up after %d ms, want %v: %v", got, pauseOutlast, err)
	}
}

func TestHaltFits(t *testing.T) {
	for _, one := range []struct {
		want call.Want
		now  cgroup.Freezing
		kind fault.Kind // 0: it is to be done, or the supervisor says why not
	}{
		{call.WantPaused, cgroup.Running, 0}, {call.WantPaused, cgroup.Pausing, 0}, {call.WantPaused, cgroup.Paused, fault.Conflict}, {call.WantPaused, cgroup.Unknown, 0},
		{call.WantRunning, cgroup.Paused, 0}, {call.WantRunning, cgroup.Pausing, 0}, {call.WantRunning, cgroup.Running, fault.Conflict}, {call.WantRunning, cgroup.Unknown, 0},
	} {
		err := halt{want: one.want}.fits("abcdefgh", one.now)
		if (err != nil) != (one.kind != 0) || err != nil && (fault.KindOf(err) != one.kind || fault.HintOf(err) == "") {
			t.Errorf("%d while it is %v: %v", one.want, one.now, err)
		}
	}
}
