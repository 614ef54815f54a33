package guest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/netns"
	"github.com/cofferdam/cofferdam/internal/rootfs"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// deviceName is the one network device of a machine.
const deviceName = "eth0"

// live says that the runner was started, and is there until all is over. It returns never.
func (s *sandbox) live() {
	if err := s.host.Started(); err != nil {
		fail(s.host, err)
	}
	go s.obey()
	if err := s.finish(); err != nil {
		fail(s.host, fmt.Errorf("end the sandbox: %w", err))
	}
	time.Sleep(farewell)
	end()
}

// sandbox is what this program keeps of the sandbox.
type sandbox struct {
	host      *boot.Guest
	port      port
	process   *os.Process
	upper     *os.File // the changes of an overlay workspace; nil if there is none
	rests     bool     // before its end
	namespace *os.File // the mount namespace with the view, where the machine rests or waits; nil before that is built
	resting   resting
	waiting   *waiting // nil in a machine that was not prepared
}

func newSandbox(host *boot.Guest, p port) *sandbox {
	return &sandbox{host: host, port: p, resting: resting{on: make(chan struct{})}}
}

// build makes the machine one of its own and the sandbox in it, and returns when the runner was started.
func (s *sandbox) build(b boot.Boot) error {
	if err := errors.Join(reseed(&b.Seed), setClock(b.Time), settleModules(b.Scratch)); err != nil {
		return err
	}
	if err := s.ground(b); err != nil {
		return err
	}
	return s.populate(b)
}

// populate makes the sandbox's control group and starts its runner.
func (s *sandbox) populate(b boot.Boot) error {
	s.rests = b.Rest
	g, err := makeGroup(b.PIDs)
	if err != nil {
		return err
	}
	defer g.Close()
	return s.start(b, g)
}

// ground does what a machine does once: disks, network, control groups.
func (s *sandbox) ground(b boot.Boot) error {
	if err := errors.Join(mountDisk(b.Root), mountDisks(b)); err != nil {
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

// start starts the child and takes what it reports until it has become the runner.
func (s *sandbox) start(b boot.Boot, group *os.File) error {
	line, write, err := linePipe(b.Runner)
	if err != nil {
		return err
	}
	defer line.Close()
	if s.waiting != nil {
		s.waiting.line = write
	} else if err := write.Close(); err != nil {
		return err
	}
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
	if err := conn.Send(charge{Boot: b, Waits: s.waiting != nil}, come...); err != nil {
		return err
	}
	return s.listen(conn)
}

// charge is what the child is to build. With it comes the mount namespace of a view that is continued.
type charge struct {
	Boot  boot.Boot `json:"boot"`
	Waits bool      `json:"waits,omitempty"` // the view is left unfinished
}

// report is what the child says before it becomes the runner.
type report struct {
	Built bool   `json:"built,omitempty"` // all is there; with it comes the upper directory, if there is one, or the stage of what is unfinished
	Taken int    `json:"taken,omitempty"` // as in rootfs.Unfinished
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
		case r.Built && len(files) == 1 && s.waiting != nil:
			s.waiting.stage = rootfs.Unfinished{Stage: files[0], Taken: r.Taken}
		case r.Built && len(files) == 1:
			s.upper = files[0]
		}
		if built = built || r.Built; r.Built && (s.rests || s.waiting != nil) {
			if err := s.hold(); err != nil {
				return err
			}
		}
	}
}

// linePipe makes a pipe for the runner's boot line, which is empty once that was read, and puts the line into it if it is known.
func linePipe(line string) (r, w *os.File, err error) {
	if r, w, err = os.Pipe(); err != nil || line == "" {
		return r, w, err
	}
	if _, err := w.WriteString(line + "\n"); err != nil {
		return nil, nil, errors.Join(err, r.Close(), w.Close())
	}
	return r, w, nil
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
