package guest

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/netns"
	"github.com/cofferdam/cofferdam/internal/rootfs"
)

// A machine can be prepared before it is known whose it will be. It is a machine of its own from its start, no copy, and becomes one sandbox. What is built then is all but folder,
// mounts, authorities and bounds: the runner is there and waits for its boot line, and no other program has run in the sandbox when what is missing is put into it.

// waiting is what a prepared sandbox has until it is somebody's.
type waiting struct {
	as    boot.Prepare
	line  *os.File // the runner reads its boot line at the other end
	stage rootfs.Unfinished
}

// prepared is the life of a machine that is prepared. It returns only on failure.
func prepared(host *boot.Guest, p port, as boot.Prepare) error {
	s := newSandbox(host, p)
	if err := s.prepare(as); err != nil {
		return fmt.Errorf("prepare the sandbox: %w", err)
	}
	if err := host.Prepared(); err != nil {
		return err
	}
	for {
		order, err := host.Receive()
		if err != nil {
			return err
		}
		if order.Boot == nil {
			if err := follow(order); err != nil {
				return err
			}
			continue
		}
		if err := s.become(*order.Boot); err != nil {
			return fmt.Errorf("finish the sandbox: %w", err)
		}
		s.live()
	}
}

// prepare builds what does not depend on whose the sandbox will be.
func (s *sandbox) prepare(as boot.Prepare) error {
	b := boot.Boot{Hostname: as.Hostname, MachineID: as.MachineID, Root: as.Root, Scratch: as.Scratch, Rights: as.Rights}
	s.waiting = &waiting{as: as}
	if err := settleModules(as.Scratch); err != nil {
		return err
	}
	if err := s.ground(b); err != nil {
		return err
	}
	if err := s.populate(b); err != nil {
		return err
	}
	rehearse()
	return nil
}

// rehearse has the kernel do once what it will have to do when the sandbox is somebody's: an emulator has translated it then, and a kernel has it in its caches. It says nothing to anybody,
// since the room is closed and loopback has no listener.
func rehearse() {
	for _, to := range [][4]byte{netns.Gateway4.As4(), {127, 0, 0, 1}} {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return
		}
		_ = unix.Connect(fd, &unix.SockaddrInet4{Port: netns.ControlPort, Addr: to}) // nobody is there
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 1)
		_ = unix.Close(fd)
	}
}

// become makes a prepared sandbox the one that is described, and has its runner begin.
func (s *sandbox) become(b boot.Boot) error {
	if err := s.waiting.as.Fits(b); err != nil {
		return err
	}
	if err := errors.Join(reseed(&b.Seed), setClock(b.Time), mountDisks(b)); err != nil {
		return err
	}
	if err := alone(func() error { return s.extend(b) }); err != nil {
		return fmt.Errorf("finish the file system: %w", err)
	}
	if err := s.limit(b.PIDs); err != nil {
		return err
	}
	defer s.waiting.line.Close()
	if _, err := s.waiting.line.WriteString(b.Runner + "\n"); err != nil {
		return fmt.Errorf("hand on the boot line: %w", err)
	}
	return nil
}

// extend puts folder, mounts and authorities into the view, and bounds scratch anew. It uses up the mount namespace of the calling thread.
func (s *sandbox) extend(b boot.Boot) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	cfg := rootfs.Config{Workspace: -1, ScratchSize: b.Scratch.Bytes, ScratchFiles: b.Scratch.Files, OwnMachine: true, Trust: b.Trust}
	if err := addLayers(&cfg, b); err != nil {
		return err
	}
	defer s.waiting.stage.Stage.Close()
	x, err := rootfs.Extend(cfg, s.waiting.stage)
	if err != nil {
		return err
	}
	s.upper = x.Upper
	return x.Attach(s.namespace, "")
}

// limit bounds the processes of the sandbox, whose runner is there already.
func (s *sandbox) limit(pids int64) error {
	if pids <= 0 {
		return nil
	}
	most := pids + frame.ReservedProcesses
	if err := os.WriteFile(group+"/pids.max", []byte(strconv.FormatInt(most, 10)), 0); err != nil {
		return fmt.Errorf("limit processes: %w", err)
	}
	if err := unix.Prlimit(s.process.Pid, unix.RLIMIT_NPROC, &unix.Rlimit{Cur: uint64(most), Max: uint64(most)}, nil); err != nil {
		return fmt.Errorf("limit processes: %w", err)
	}
	return nil
}

// alone calls f on a thread that ends with it, which is never the first one: what is said of the process in /proc is said of that.
func alone(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good
		if unix.Gettid() != os.Getpid() {
			done <- f()
			return
		}
		defer runtime.UnlockOSThread()
		done <- alone(f)
	}()
	return <-done
}
