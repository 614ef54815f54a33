package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
)

// A machine of which a snapshot may be taken comes to rest when its runner has ended, and with it every process of the sandbox: nothing is left but this program, which waits for the
// host. What goes on from there is told by its next order what it is: to go on is to send the changes and to end; to boot is to be
// a copy, which becomes one of its own with a new seed first of all and this program started anew, and keeps only the file system.

// kept are the descriptors of what outlives the runner, handed on to the program's next start.
type kept struct {
	Namespace int `json:"namespace"` // the mount namespace with the sandbox's view
	Upper     int `json:"upper"`     // the changes of an overlay workspace; -1 if there is none
}

// task is what the program that was started anew is to build.
type task struct {
	Boot boot.Boot `json:"boot"`
	Kept kept      `json:"kept"`
}

// Again is the life of a copy: it continues with the view that its descriptors lead to, as one of them describes. It returns never.
func Again(memory, wire string) {
	mustBeFirst()
	description, err1 := strconv.Atoi(memory)
	fd, err2 := strconv.Atoi(wire)
	if errors.Join(err1, err2) != nil {
		end() // nobody to tell
	}
	unix.CloseOnExec(description)
	unix.CloseOnExec(fd)
	p := port{fd}
	s := newSandbox(boot.NewGuest(p), p)
	if err := s.buildOn(os.NewFile(uintptr(description), "boot")); err != nil {
		fail(s.host, fmt.Errorf("build the sandbox: %w", err))
	}
	s.live()
}

// buildOn makes the sandbox out of what is kept, and returns when the runner was started.
func (s *sandbox) buildOn(description *os.File) error {
	words, err := io.ReadAll(description)
	_ = description.Close() // read
	if err != nil {
		return err
	}
	var t task
	if err := json.Unmarshal(words, &t); err != nil {
		return err
	}
	clear(words)
	s.take(t.Kept)
	if err := removeGroup(); err != nil {
		return err
	}
	return s.populate(t.Boot)
}

// resting is how a machine that is at rest hears what to do.
type resting struct {
	now  atomic.Bool   // only then
	on   chan struct{} // closed when it is told to go on
	once sync.Once
}

// rest tells the host that the machine is at rest, and returns when it is to go on. In a copy it does not return: obey starts the program anew.
func (s *sandbox) rest() error {
	s.resting.now.Store(true)
	if err := s.host.Rested(); err != nil {
		return err
	}
	<-s.resting.on
	s.resting.now.Store(false)
	return nil
}

// errAwake is what orders to a machine at rest are to one that is not.
var errAwake = errors.New("the machine is not at rest")

// obey follows the host while the machine runs, and ends the machine when the host is gone or says so. It is for a goroutine of its own.
func (s *sandbox) obey() {
	for {
		order, err := s.host.Receive()
		switch {
		case err != nil:
		case (order.GoOn || order.Boot != nil) && !s.resting.now.Load():
			err = errAwake
		case order.GoOn:
			s.resting.once.Do(func() { close(s.resting.on) })
		case order.Boot != nil:
			err = again(*order.Boot, s.port, s.keep())
		default:
			err = follow(order)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "cofferdam-guest:", err)
			end()
		}
	}
}

func (s *sandbox) keep() kept {
	k := kept{Namespace: int(s.namespace.Fd()), Upper: -1}
	if s.upper != nil {
		k.Upper = int(s.upper.Fd())
	}
	return k
}

// take takes over what the program's last start had.
func (s *sandbox) take(k kept) {
	for _, fd := range []int{k.Namespace, k.Upper} {
		if fd >= 0 {
			unix.CloseOnExec(fd)
		}
	}
	s.namespace = os.NewFile(uintptr(k.Namespace), "namespace")
	if k.Upper >= 0 {
		s.upper = os.NewFile(uintptr(k.Upper), "upper")
	}
}

// hold keeps the child's mount namespace, in the place of the one that it came from.
func (s *sandbox) hold() error {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", s.process.Pid))
	if err != nil {
		return fmt.Errorf("keep the file system: %w", err)
	}
	if s.namespace != nil {
		_ = s.namespace.Close() // a copy of it is used
	}
	s.namespace = f
	return nil
}
