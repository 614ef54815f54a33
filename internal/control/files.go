package control

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/store"
)

const (
	// fileService is the name of the runner's binary inside, which serves files as an ordinary command: paths are looked up inside and nowhere else. It is
	// started without its path, where programs inside may have put something else.
	fileService = "/run/cofferdam/runner"
	// absentStatus is its exit status for a path that is not there.
	absentStatus = 3
	// maxFiles is how many entries of a directory are listed; the service inside stops there too, but it is inside.
	maxFiles = 10_000
	// maxListing bounds a list in bytes, and fileTime how long one may take.
	maxListing = 8 << 20
	fileTime   = 30 * time.Second
	// maxWords bounds what is kept of its complaints.
	maxWords = 1 << 10
)

// files has the file service inside do something.
func (s *Service) files(ctx context.Context, client *keeper.Client, args ...string) (*keeper.Process, error) {
	return client.Exec(ctx, keeper.Exec{Command: append([]string{fileService, "file"}, args...), Self: true, Dir: "/"})
}

// fileError says what went wrong inside, in its own words, inert.
func fileError(exit frame.Exit, words string) error {
	text := frame.Inert(strings.TrimSpace(words), maxWords)
	switch {
	case exit.Error != "":
		return fault.New(fault.Unavailable, "the sandbox cannot look at its files: %s", inert(exit.Error))
	case exit.Signal != 0:
		return fault.New(fault.Unavailable, "looking at files inside was ended by signal %d", exit.Signal)
	case exit.Code == 0:
		return nil
	case exit.Code == absentStatus:
		return fault.New(fault.NotFound, "there is no such file in the sandbox")
	}
	return fault.New(fault.Invalid, "%s", cmp.Or(text, fmt.Sprintf("status %d", exit.Code)))
}

// Files lists a directory inside; true if it was cut.
func (s *Service) Files(ctx context.Context, a Actor, id, path string) ([]api.File, bool, error) {
	if err := may(a, ReadSandboxes); err != nil {
		return nil, false, err
	}
	path, err := insidePath(path)
	if err != nil {
		return nil, false, err
	}
	_, client, err := s.awake(ctx, a.Tenant, id)
	if err != nil {
		return nil, false, err
	}
	ctx, stop := context.WithTimeoutCause(ctx, fileTime, fault.New(fault.Unavailable, "the sandbox took too long to list its files"))
	defer stop()
	p, err := s.files(ctx, client, "list", path)
	if err != nil {
		return nil, false, err
	}
	defer p.Close()
	out := collect(ctx, p, &errorReader{from: strings.NewReader("")}, maxListing)
	exit, err := p.Wait()
	if err != nil {
		return nil, false, cmp.Or(context.Cause(ctx), err)
	}
	if err := fileError(exit, out.stderr.String()); err != nil {
		return nil, false, err
	}
	list, cut, err := parseListing(out.stdout.text.Bytes())
	return list, cut || out.stdout.cut, err
}

// entry is a line of the file service's list.
type entry struct {
	Name      string    `json:"name"`
	Raw       string    `json:"raw"`
	Type      string    `json:"type"`
	Size      int64     `json:"size"`
	Mode      string    `json:"mode"`
	Modified  time.Time `json:"modified"`
	Target    string    `json:"target"`
	Truncated bool      `json:"truncated"`
}

// parseListing reads what the file service printed, which is to say, what anybody inside may have made it print.
func parseListing(data []byte) (list []api.File, cut bool, err error) {
	list = []api.File{}
	for line := range bytes.Lines(data) {
		whole := bytes.HasSuffix(line, []byte{'\n'})
		var e entry
		d := json.NewDecoder(bytes.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&e); err != nil {
			if !whole {
				return list, true, nil // cut in its middle
			}
			return nil, false, fault.New(fault.Unavailable, "the sandbox sent what is no list of files").Because(err)
		}
		if e.Truncated || len(list) == maxFiles {
			return list, true, nil
		}
		if e.Size < 0 || !slices.Contains([]string{"file", "dir", "link", "other"}, e.Type) {
			return nil, false, fault.New(fault.Unavailable, "the sandbox sent what is no list of files")
		}
		list = append(list, api.File{
			Name: frame.Inert(e.Name, maxPath), Type: e.Type, Size: e.Size, Mode: frame.Inert(e.Mode, 20), Modified: e.Modified.UTC(), Target: frame.Inert(e.Target, maxPath),
		})
	}
	return list, false, nil
}

// ReadFile reads a file, or a directory as a tar stream. A failure after the first byte is an error of Read.
func (s *Service) ReadFile(ctx context.Context, a Actor, id, path string, tar bool) (io.ReadCloser, error) {
	if err := may(a, ReadSandboxes); err != nil {
		return nil, err
	}
	path, err := insidePath(path)
	if err != nil {
		return nil, err
	}
	o, client, err := s.awake(ctx, a.Tenant, id)
	if err != nil {
		return nil, err
	}
	if err := s.noteFile(ctx, a, o, "read", path); err != nil {
		return nil, err
	}
	args := []string{"read"}
	if tar {
		args = append(args, "--tar")
	}
	p, err := s.files(ctx, client, append(args, path)...)
	if err != nil {
		return nil, err
	}
	_ = p.Stdin().Close() // it reads none
	r := &fileReader{p: p, words: limited{most: maxWords}}
	r.from = bufio.NewReaderSize(p.Stdout(), 32<<10)
	r.complaints.Go(func() { _, _ = io.Copy(&r.words, p.Stderr()) }) // its end is the process's
	r.stop = context.AfterFunc(ctx, func() { _ = p.Close() })        // Read tells
	// What goes wrong does so before the first byte, nearly always: then it is an error of this call.
	if _, err := r.from.Peek(1); err != nil {
		if err := r.end(); err != nil {
			return nil, errors.Join(err, r.Close())
		}
	}
	return r, nil
}

func (s *Service) noteFile(ctx context.Context, a Actor, o store.Object[SandboxData], verb, path string) error {
	return s.note(ctx, a, audit.Event{Kind: audit.CommandStarted, Run: roomOf(o).run(), Agent: o.Parent, Command: []string{"file", verb, path}})
}

// fileReader reads what the file service sends, and at its end finds out whether that was all.
type fileReader struct {
	p          *keeper.Process
	from       *bufio.Reader
	words      limited
	complaints sync.WaitGroup
	stop       func() bool

	once sync.Once
	err  error
}

// Read reads on.
func (r *fileReader) Read(b []byte) (int, error) {
	n, err := r.from.Read(b)
	if errors.Is(err, io.EOF) {
		if failed := r.end(); failed != nil {
			return n, failed
		}
	}
	return n, err
}

// end says how the command came out.
func (r *fileReader) end() error {
	r.once.Do(func() {
		r.complaints.Wait()
		exit, err := r.p.Wait()
		if err == nil {
			err = fileError(exit, r.words.String())
		}
		r.err = err
	})
	return r.err
}

// Close lets go; what was not read is not read any more.
func (r *fileReader) Close() error {
	r.stop()
	err := r.p.Close()
	r.complaints.Wait()
	return err
}

// isMode matches the modes that a file can be given: no set-id, no sticky bit.
var isMode = regexp.MustCompile(`^0?[0-7]{3}$`)

// WriteFile writes a file, or unpacks a tar stream. Directories on the way are made.
func (s *Service) WriteFile(ctx context.Context, a Actor, id, path string, mode string, tar bool, content io.Reader) error {
	if err := may(a, WriteSandboxes); err != nil {
		return err
	}
	path, err := insidePath(path)
	if err != nil {
		return err
	}
	if mode != "" && (tar || !isMode.MatchString(mode)) {
		return fault.New(fault.Invalid, "mode: this is no mode for a file").WithHint("write three octal digits, as in 644; a tar stream has its own modes")
	}
	o, client, err := s.awake(ctx, a.Tenant, id)
	if err != nil {
		return err
	}
	if err := s.noteFile(ctx, a, o, "write", path); err != nil {
		return err
	}
	args := []string{"write", "-p"}
	if tar {
		args = append(args, "--tar")
	}
	args = append(args, path)
	if mode != "" {
		args = append(args, mode)
	}
	p, err := s.files(ctx, client, args...)
	if err != nil {
		return err
	}
	defer p.Close()
	source := &errorReader{from: content}
	out := collect(ctx, p, source, maxWords)
	if source.err != nil {
		return fmt.Errorf("read what to write: %w", source.err)
	}
	exit, err := p.Wait()
	if err != nil {
		return cmp.Or(context.Cause(ctx), err)
	}
	return fileError(exit, out.stderr.String())
}

// errorReader remembers what went wrong with a source, other than its end.
type errorReader struct {
	from io.Reader
	err  error
}

// Read reads on.
func (e *errorReader) Read(p []byte) (int, error) {
	n, err := e.from.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		e.err = err
	}
	return n, err
}
