package vm

import (
	"errors"
	"time"
)

// SetClock sets the machine's clock, after the machine stood still for a while. One that does not listen is not waited for.
func (s *Sandbox) SetClock(now time.Time) error {
	return errors.Join(s.port.SetWriteDeadline(time.Now().Add(time.Second)), s.host.Clock(now))
}
