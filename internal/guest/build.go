package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/netns"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// deviceName is the one network device of a machine.
const deviceName = "eth0"

// Boot is the second life: it builds what is described in one descriptor, waits for the runner's end, and sends the changes through the other. It returns never.
func Boot(memory, wire string) {
	mustBeFirst()
	description, err1 := strconv.Atoi(memory)
	fd, err2 := strconv.Atoi(wire)
	if errors.Join(err1, err2) != nil {
		end() // nobody to tell
	}
	unix.CloseOnExec(description)
	unix.CloseOnExec(fd)
	p := port{fd}
	host := boot.NewGuest(p)
	s := sandbox{host: host, port: p, resting: resting{on: make(chan struct{})}}
	if err := s.build(os.NewFile(uintptr(description), "boot")); err != nil {
		fail(host, fmt.Errorf("build the sandbox: %w", err))
	}
	if err := host.Started(); err != nil {
		fail(host, err)
	}
	go s.obey()
	if err := s.finish(); err != nil {
		fail(host, fmt.Errorf("end the sandbox: %w", err))
	}
	time.Sleep(farewell)
	end()
}

// sandbox is what the second life keeps of the third.
type sandbox struct {
	host      *boot.Guest
	port      port
	process   *os.Process
	upper     *os.File // the changes of an overlay workspace; nil if there is none
	rests     bool     // before its end
	namespace *os.File // the mount namespace with the view, where the machine rests; nil before that is built
	resting   resting
}

// build makes the sandbox and returns when the runner was started.
func (s *sandbox) build(description *os.File) error {
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
	s.rests = t.Boot.Rest
	if t.Kept != nil {
		s.take(*t.Kept)
		err = removeGroup()
	} else {
		err = s.ground(t.Boot)
	}
	if err != nil {
		return err
	}
	g, err := makeGroup(t.Boot.PIDs)
	if err != nil {
		return err
	}
	defer g.Close()
	return s.start(t.Boot, g)
}

// ground does what a machine does once: disks, network, control groups.
func (s *sandbox) ground(b boot.Boot) error {
	if err := mountDisks(b); err != nil {
		return err
	}
	if err := spill(b.Scratch); err != nil {
		return fmt.Errorf("encrypted scratch: %w", err)
	}
	if err := await("the network device", func() bool {
		_, err := os.Stat("/sys/class/net/" + deviceName)
		return err == nil
	}); err != nil {
		return err
	}
	if err := netns.ConfigureInside(deviceName); err != nil {
		return fmt.Errorf("set up the network: %w", err)
	}
	return mountGroups()
}

// start begins the third life and takes what it reports until it has become the runner.
func (s *sandbox) start(b boot.Boot, group *os.File) error {
	line, err := linePipe(b.Runner)
	if err != nil {
		return err
	}
	defer line.Close()
	outside, inside, err := call.Pair()
	if err != nil {
		return err
	}
	conn := call.NewConn(outside)
	defer conn.Close()
	s.process, err = os.StartProcess("/proc/self/exe", []string{SandboxName}, &os.ProcAttr{
		Env:   []string{boot.Undisturbed},
		Files: []*os.File{line, os.Stderr, os.Stderr, inside},
		Sys: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
			Setsid:     true, UseCgroupFD: true, CgroupFD: int(group.Fd()),
		},
	})
	_ = inside.Close() // the child has its own
	if err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	b.Runner = "" // it has its line already
	var come []*os.File
	if s.namespace != nil {
		come = append(come, s.namespace)
	}
	if err := conn.Send(b, come...); err != nil {
		return err
	}
	return s.listen(conn)
}

// report is what the third life says before it becomes the runner.
type report struct {
	Built bool   `json:"built,omitempty"` // all is there; the upper directory comes with it, if there is one
	Error string `json:"error,omitempty"`
}

// listen takes the child's reports; the socket closes when the child becomes the runner.
func (s *sandbox) listen(conn *call.Conn) error {
	built := false
	for {
		var r report
		files, err := conn.Receive(&r)
		switch {
		case errors.Is(err, io.EOF) && built:
			return nil
		case errors.Is(err, io.EOF):
			return errors.New("it ended early")
		case err != nil:
			return err
		case r.Error != "":
			return errors.New(r.Error)
		case r.Built && len(files) == 1:
			s.upper = files[0]
		}
		if built = built || r.Built; r.Built && s.rests {
			if err := s.hold(); err != nil {
				return err
			}
		}
	}
}

// linePipe puts the runner's boot line into a pipe, which is empty once it was read.
func linePipe(line string) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	if _, err := w.WriteString(line + "\n"); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// finish waits for the end of the runner, and with it of every process of its namespace, then tells the host and sends the changes.
func (s *sandbox) finish() error {
	state, err := s.process.Wait()
	if err != nil {
		return err
	}
	if s.rests {
		if err := s.rest(); err != nil {
			return err
		}
	}
	n, err := killed()
	if err != nil {
		return err
	}
	if err := s.host.Ended(boot.Ended{OutOfMemory: n, Runner: state.String()}); err != nil {
		return err
	}
	out := s.host.Changes()
	if s.upper != nil {
		if err := sendChanges(out, s.upper); err != nil {
			return fmt.Errorf("send the changes: %w", err)
		}
	}
	return out.Close()
}
