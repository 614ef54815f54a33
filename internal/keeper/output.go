package keeper

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/sandbox"
)

// The log of a main command's output is two files that are used in turn. Each begins with a head that says which byte of the whole output its first one is;
// the one that is not written any more is kept until the other is full, and then begins anew.
const (
	outputMagic = "cfdout1\n"
	outputHead  = int64(len(outputMagic) + 8)
	// outputSize bounds what one of the files holds.
	outputSize = 4 << 20
)

func outputFile(dir string, i int) string { return filepath.Join(dir, fmt.Sprintf("output.%d", i)) }

// OutputLog takes the output of a main command. It touches only descriptors once it is open, so it works in a confined process. It is safe for concurrent use.
type OutputLog struct {
	size int64

	mu    sync.Mutex
	files [2]*os.File
	turn  int
	held  int64 // bytes in the file whose turn it is
	next  int64 // offset of the next byte in the whole output
}

// OpenOutput makes the log in a run's directory.
func OpenOutput(dir string) (*OutputLog, error) { return openOutput(dir, outputSize) }

func openOutput(dir string, size int64) (*OutputLog, error) {
	l := &OutputLog{size: size}
	for i := range l.files {
		f, err := os.OpenFile(outputFile(dir, i), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("make the log of output: %w", err), l.Close())
		}
		l.files[i] = f
	}
	return l, l.begin()
}

// begin writes the head of the file whose turn it is.
func (l *OutputLog) begin() error {
	f := l.files[l.turn]
	if err := f.Truncate(0); err != nil {
		return err
	}
	l.held = 0
	_, err := f.WriteAt(binary.BigEndian.AppendUint64([]byte(outputMagic), uint64(l.next)), 0)
	return err
}

// Write adds bytes. What cannot be written, on a full disk, is lost, and the error says so; the command goes on.
func (l *OutputLog) Write(p []byte) (done int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for done < len(p) {
		if l.held >= l.size {
			l.turn = 1 - l.turn
			if err := l.begin(); err != nil {
				l.held = l.size // it is tried again with the next bytes
				l.turn = 1 - l.turn
				return done, err
			}
		}
		n, err := l.files[l.turn].WriteAt(p[done:done+int(min(int64(len(p)-done), l.size-l.held))], outputHead+l.held)
		l.held += int64(n)
		l.next += int64(n)
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// Close closes the files.
func (l *OutputLog) Close() error {
	var errs []error
	for _, f := range l.files {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// Output reads the log of a sandbox's main command, from an offset that an earlier call returned, or 0.
// It never waits; next is the offset to go on from, and skipped how many bytes from offset on are not kept any more and are left out.
func Output(state string, run ident.Run, offset int64, most int) (data []byte, next, skipped int64, err error) {
	if offset < 0 || most <= 0 {
		return nil, 0, 0, fault.New(fault.Invalid, "no such part of the output")
	}
	store, err := sandbox.OpenStore(state)
	if err != nil {
		return nil, 0, 0, err
	}
	return readOutput(store.Dir(run), offset, min(most, outputSize))
}

// part is one file of the log, as a reader finds it.
type part struct {
	file       *os.File
	base, size int64
}

// maxTries bounds how often a reader begins anew because the log moved on under it: each time 4 MiB were written.
const maxTries = 10

func readOutput(dir string, offset int64, most int) (data []byte, next, skipped int64, err error) {
	var files []*os.File
	defer func() {
		for _, f := range files {
			_ = f.Close() // opened for reading
		}
	}()
	for i := range 2 {
		f, err := os.OpenFile(outputFile(dir, i), os.O_RDONLY|unix.O_NOFOLLOW, 0)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, 0, 0, fault.New(fault.NotFound, "this sandbox keeps no output").WithHint("only the output of a main command is kept")
		}
		if err != nil {
			return nil, 0, 0, fmt.Errorf("read output: %w", err)
		}
		files = append(files, f)
	}
	for range maxTries {
		parts, err := partsOf(files)
		if err != nil {
			return nil, 0, 0, err
		}
		data, next, skipped, err := readParts(parts, offset, most)
		if err != nil {
			return nil, 0, 0, fmt.Errorf("read output: %w", err)
		}
		after, err := partsOf(files)
		if err != nil {
			return nil, 0, 0, err
		}
		if sameBases(parts, after) { // else a file began anew while it was read
			return data, next, skipped, nil
		}
	}
	return nil, 0, 0, fault.New(fault.Unavailable, "the output moves on faster than it can be read")
}

// partsOf finds the files that have a head, the older first.
func partsOf(files []*os.File) ([]part, error) {
	var parts []part
	for _, f := range files {
		head := make([]byte, outputHead)
		if _, err := f.ReadAt(head, 0); errors.Is(err, io.EOF) {
			continue // not begun, or about to begin anew
		} else if err != nil {
			return nil, fmt.Errorf("read output: %w", err)
		}
		info, err := f.Stat()
		if err != nil {
			return nil, fmt.Errorf("read output: %w", err)
		}
		if string(head[:len(outputMagic)]) == outputMagic {
			parts = append(parts, part{f, int64(binary.BigEndian.Uint64(head[len(outputMagic):])), max(0, info.Size()-outputHead)})
		}
	}
	slices.SortFunc(parts, func(a, b part) int { return int(min(max(a.base-b.base, -1), 1)) })
	return parts, nil
}

func sameBases(a, b []part) bool {
	return slices.EqualFunc(a, b, func(x, y part) bool { return x.file == y.file && x.base == y.base })
}

func readParts(parts []part, offset int64, most int) (data []byte, next, skipped int64, err error) {
	if len(parts) == 0 {
		return nil, offset, 0, nil
	}
	if first := parts[0].base; offset < first {
		skipped, offset = first-offset, first
	}
	for _, p := range parts {
		if offset < p.base || offset >= p.base+p.size || len(data) >= most {
			continue
		}
		piece := make([]byte, min(int64(most-len(data)), p.base+p.size-offset))
		n, err := p.file.ReadAt(piece, outputHead+offset-p.base)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, 0, 0, err
		}
		data = append(data, piece[:n]...)
		offset += int64(n)
	}
	last := parts[len(parts)-1]
	return data, min(offset, last.base+last.size), skipped, nil
}
