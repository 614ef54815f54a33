package vm

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/isolation/container"
	"github.com/cofferdam/cofferdam/internal/scratch"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// The bounds of what a machine sends at its end.
const (
	// silence is how long a machine may send nothing while it is due to send its changes. It reads them from memory.
	silence = time.Minute
	// sending is how long it may take over them altogether: as long as the supervisor gives itself to compare them with the folder.
	sending = 10 * time.Minute
	// headers is how much of a tar stream is not content, for each file at the most that are usual: two blocks, and some long names.
	headers = 2 << 10
)

// follow takes in what the machine says until it is gone, and ends it when it has said all that it has to say.
func (s *Sandbox) follow(spec call.Create, o container.Options) {
	defer close(s.done)
	err := s.rest()
	if err == nil {
		err = s.receive(spec, o)
	}
	if err != nil && s.Upper != nil {
		text := err.Error()
		if said := s.said.last(); said != "" {
			text += " (" + said + ")"
		}
		s.lost.Store(&text)
	}
	s.Container.Kill()
	<-s.Container.Done()
	s.letGo()
}

// receive waits for the end of the runner and for the changes. An error means that the changes are lost or not complete.
func (s *Sandbox) receive(spec call.Create, o container.Options) error {
	e, err := s.host.Ended()
	if err != nil {
		return fmt.Errorf("the machine ended before it could send the folder's changes: %w", err)
	}
	s.ended.Store(&e)
	if s.Upper == nil {
		return nil
	}
	limit := mostChanges(spec) + scratchFiles(spec.Limits)*headers
	stream := &bounded{from: &prompt{s.host.Changes(), s.port, time.Now().Add(sending)}, left: limit}
	err = unpack(stream, s.Upper, spec.UIDBase)
	if err != nil && mostChanges(spec) < spec.Limits.Disk {
		err = fmt.Errorf("%w (with encrypted scratch they may be %d MiB in all, seven eighths of --memory)", err, mostChanges(spec)>>20)
	}
	if err != nil {
		return fmt.Errorf("take in the folder's changes: %w", err)
	}
	return nil
}

// Lost says why the workspace's changes are not there or not complete, once and after Done; nil says that they are.
func (s *Sandbox) Lost() error {
	if text := s.lost.Load(); text != nil {
		return errors.New(*text)
	}
	return nil
}

// gathers says whether the machine sends the changes of a folder at its end.
func gathers(spec call.Create) bool {
	return spec.Workspace != nil && spec.Workspace.Mode == string(boot.Overlay)
}

// mostChanges bounds the folder's changes, in bytes: what holds them on their way is memory of this machine's, of which they may take no more than the sandbox's own, also
// where its scratch is larger.
func mostChanges(spec call.Create) int64 {
	if memory := Memory(spec.Limits.Memory); spec.Scratch == scratch.Encrypted {
		return min(spec.Limits.Disk, memory-memory/8)
	}
	return spec.Limits.Disk
}

// scratchFile is the average size of a scratch file assumed when their number is bounded by its size only, as at level container.
const scratchFile = 4 << 10

// scratchFiles is how many files scratch holds.
func scratchFiles(l call.Limits) int64 {
	if l.Files > 0 {
		return l.Files
	}
	return max(l.Disk/scratchFile, 1024)
}

// prompt reads from a machine that must not fall silent, nor go on for ever: while it sends, it is not killed by an order to end.
type prompt struct {
	from io.Reader
	port *os.File
	end  time.Time
}

func (p *prompt) Read(b []byte) (int, error) {
	next := time.Now().Add(silence)
	if p.end.Before(next) {
		next = p.end
	}
	if err := p.port.SetReadDeadline(next); err != nil {
		return 0, err
	}
	return p.from.Read(b)
}

// bounded fails a stream that does not end in time, where io.LimitReader would cut it.
type bounded struct {
	from io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errors.New("it sends more than its scratch can hold")
	}
	n, err := b.from.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}
