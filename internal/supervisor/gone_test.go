package supervisor

import (
	"context"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// slow is a box that takes its time to end when it is killed, as a machine does that sends its changes and never comes to their end.
type slow struct{ done chan struct{} }

func (slow) PID() int                   { return 0 }
func (slow) Kill()                      {}
func (s slow) Done() <-chan struct{}    { return s.done }
func (slow) Remains() ([]string, error) { return nil, nil }
func (slow) Lost() error                { return nil }
func (s slow) Hurry()                   { close(s.done) }

// TestNobodyWaits ends a box at once when nobody is there any more to take what it would still send, and only then.
func TestNobodyWaits(t *testing.T) {
	for _, c := range []struct {
		name  string
		order func(chan string)
		over  bool
	}{
		{"told to end", func(kill chan string) { kill <- "stopped" }, false},
		{"given up", func(kill chan string) { kill <- call.GivenUp }, true},
		{"gone", func(kill chan string) { close(kill) }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, kill, ended := &built{box: slow{make(chan struct{})}}, make(chan string, 1), make(chan string, 1)
			go func() { ended <- b.wait(context.Background(), kill, nil, "", func() {}) }()
			c.order(kill)
			select {
			case how := <-ended:
				if !c.over {
					t.Errorf("its changes were not waited for: %s", how)
				}
			case <-time.After(500 * time.Millisecond):
				if c.over {
					t.Error("it goes on, for nobody")
				}
				b.box.(slow).Hurry()
				<-ended
			}
		})
	}
}
