package supervisor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"github.com/cofferdam/cofferdam/internal/cgroup"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// freezeByName answers a call about a sandbox that another supervisor has: its control group is found by its name.
func freezeByName(ctx context.Context, f call.Freeze) call.Reply {
	answer := freeze(ctx, f, cgroup.Find(groupName(f.Run)))
	return call.Reply{Frozen: &answer}
}

// freeze does what is wanted of the sandbox in a control group. A sandbox that does already what is wanted is a conflict: who asked took it for another, or
// somebody was quicker.
func freeze(ctx context.Context, f call.Freeze, dirs []string) call.Frozen {
	ctx, cancel := context.WithTimeout(ctx, call.FreezePatience)
	defer cancel()
	var err error
	switch now := cgroup.State(dirs); {
	case f.Want > call.WantRunning:
		err = fault.New(fault.Invalid, "a sandbox can be paused and resumed, nothing else")
	case now == cgroup.Unknown:
		err = cgroup.ErrUnfreezable
	case f.Want == call.WantPaused && now == cgroup.Paused:
		err = fault.New(fault.Conflict, "the sandbox is paused already")
	case f.Want == call.WantPaused:
		err = cgroup.Freeze(ctx, dirs)
	case f.Want == call.WantRunning && now == cgroup.Running:
		err = fault.New(fault.Conflict, "the sandbox is not paused")
	case f.Want == call.WantRunning:
		err = cgroup.Thaw(ctx, dirs)
	}
	answer := call.Frozen{Ask: f.Ask}
	switch now := cgroup.State(dirs); now {
	case cgroup.Pausing, cgroup.Paused:
		answer.Paused = true
	}
	if err != nil {
		answer.Refused = refuse(explain(err, f.Want)).Refused
	}
	return answer
}

// explain says in words for people why a sandbox cannot be paused or resumed.
func explain(err error, want call.Want) error {
	switch {
	case errors.Is(err, cgroup.ErrUnfreezable):
		hint := "an ordinary user needs delegated control groups; start it with: systemd-run --user --scope -p Delegate=yes cofferdam run …"
		if os.Geteuid() == 0 {
			hint = "it is about to end, or this machine's control groups cannot be written: see cofferdam doctor"
		}
		return fault.New(fault.Unsupported, "the sandbox has no control group by which it could be paused").WithHint("%s", hint)
	case errors.Is(err, context.DeadlineExceeded) && want == call.WantRunning:
		return fault.New(fault.Unavailable, "the sandbox does not go on: a control group around its own is frozen").WithHint("thaw that one first").Because(err)
	case errors.Is(err, context.DeadlineExceeded):
		return fault.New(fault.Unavailable, "not every process of the sandbox could be stopped within %v, so they go on", call.FreezePatience).
			WithHint("one of them waits in the kernel, for a file server say; try again later").Because(err)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, context.Canceled):
		return fault.New(fault.Conflict, "the sandbox has ended")
	}
	return err
}

// obey carries out the orders to pause and resume that come on a sandbox's own connection, one after the other, until ctx ends.
func (b *built) obey(ctx context.Context, conn *call.Conn, orders <-chan call.Freeze) {
	var dirs []string
	if b.group != nil {
		dirs = b.group.Dirs()
	}
	woken, late := b.wake(dirs)
	for {
		select {
		case <-ctx.Done():
			return
		case <-late:
			woken()
		case f := <-orders:
			answer := freeze(ctx, f, dirs)
			woken()
			_ = conn.Send(call.Reply{Frozen: &answer}) // a caller that is gone ends the sandbox, which others see to
		}
	}
}

// clocked is a box with a clock of its own, which may stand still with it.
type clocked interface{ SetClock(now time.Time) error }

// clockEvery is how soon the clock of a sandbox is set that somebody resumed by another connection.
const clockEvery = time.Second

// wake returns what sets the clock of a sandbox that has one, if it was paused when that was looked at last and is not now, and when to look again.
func (b *built) wake(dirs []string) (look func(), again <-chan time.Time) {
	c, ok := b.box.(clocked)
	if !ok || len(dirs) == 0 {
		return func() {}, nil
	}
	last := cgroup.Running
	return func() {
		now := cgroup.State(dirs)
		if last == cgroup.Paused && now == cgroup.Running {
			_ = c.SetClock(time.Now()) // a machine that does not listen has the time that it has
		}
		last = now
	}, time.Tick(clockEvery)
}

// release lets a sandbox that was told to end do so, which it cannot while it is frozen: one with a kernel of its own is asked to, before it is killed.
func (b *built) release() {
	if b.machine() && b.group != nil {
		b.group.Wake()
		return
	}
	b.group.Release()
}

// releaseEvery is how soon a killed sandbox is let go on again that somebody paused after that.
const releaseEvery = 50 * time.Millisecond
