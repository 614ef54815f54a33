package main

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// signals is how a run hears the person: one channel from its beginning to its end, so that no signal is lost between the parts that listen to it.
type signals struct {
	all chan os.Signal
	// stopped is the signal by which the person ended the run before the command had begun; 0 for none. Read it after the watch is over.
	stopped syscall.Signal
}

// catch takes over the signals that a person or a service manager sends. The returned function gives them back.
func (s *signals) catch() (giveBack func()) {
	s.all = make(chan os.Signal, 16)
	for _, one := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2} {
		if !signal.Ignored(one) { // nohup means it
			signal.Notify(s.all, one)
		}
	}
	return func() { signal.Stop(s.all) }
}

// untilCommand returns a context that ends when the person wants the run to end before its command has begun. release ends the watch: signals
// that come after it wait for the next listener.
func (s *signals) untilCommand(ctx context.Context) (watched context.Context, release func()) {
	watched, cancel := context.WithCancel(ctx)
	released := make(chan struct{})
	var over sync.WaitGroup
	over.Go(func() {
		for {
			select {
			case <-released:
				return
			case got := <-s.all:
				if n, ok := got.(syscall.Signal); ok && n != syscall.SIGUSR1 && n != syscall.SIGUSR2 {
					s.stopped = n
					cancel()
					return
				}
			}
		}
	})
	return watched, sync.OnceFunc(func() {
		close(released)
		over.Wait()
	})
}

// whileEnding listens after the command has ended, while the sandbox is taken down and its changes are collected: the first signal is answered with
// what is going on, the second gives the changes up.
func (e *execution) whileEnding() (release func()) {
	released := make(chan struct{})
	var over sync.WaitGroup
	over.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-released:
				return
			case <-e.signals.all:
			}
			if n == 0 && e.keepsake.wanted {
				_ = e.client.Tell(call.Request{Keep: &call.Keep{}}) // a supervisor that is gone keeps nothing
				e.say.note("the command has ended; there will be no snapshot, unless it is whole already; once more gives up the folder's changes too")
				continue
			}
			if n == 0 {
				e.say.note("the command has ended, its changes are being collected; once more gives them up")
				continue
			}
			_ = e.client.Tell(call.Request{Kill: &call.Kill{Reason: call.GivenUp}}) // a supervisor that is gone has nothing to give up
		}
	})
	return func() {
		close(released)
		over.Wait()
	}
}
