package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
)

// followPause is how long Follow waits at the end of the log before it looks again.
const followPause = 150 * time.Millisecond

// Filter selects events. Its zero value selects all; every field that is set narrows.
type Filter struct {
	Run     ident.Run
	Verdict string
	// Host is compared with an event's host, or with its address where it has no host. "*.example.com" means every name below
	// example.com, not example.com itself.
	Host         string
	Since, Until time.Time // Since <= event's time < Until
	Kinds        []Kind
	// Limit keeps only the newest events, in their order. 0 keeps all.
	Limit int
}

// Match says whether the filter selects e. It does not look at Limit.
func (f *Filter) Match(e *Event) bool {
	return (f.Run == "" || e.Run == f.Run) &&
		(f.Verdict == "" || e.Verdict == f.Verdict) &&
		(f.Host == "" || matchHost(f.Host, e)) &&
		(f.Since.IsZero() || !e.Time.Before(f.Since)) &&
		(f.Until.IsZero() || e.Time.Before(f.Until)) &&
		(len(f.Kinds) == 0 || slices.Contains(f.Kinds, e.Kind))
}

func matchHost(want string, e *Event) bool {
	want = strings.ToLower(strings.TrimSuffix(want, "."))
	host := strings.ToLower(strings.TrimSuffix(e.Host, "."))
	if suffix, ok := strings.CutPrefix(want, "*."); ok {
		return strings.HasSuffix(host, "."+suffix)
	}
	if host != "" {
		return host == want
	}
	addr := e.Address
	if ap, err := netip.ParseAddrPort(addr); err == nil {
		addr = ap.Addr().String()
	}
	return addr == want
}

// Read yields the selected events of a directory's log, oldest first, while others append to it. Memory stays flat however long the log is
// (Limit events are held when it is set). A line that is no event is yielded as an error of kind Conflict, and reading goes on after it.
// Texts are made inert with Clean again, so that not even a forged log reaches a terminal. Read verifies nothing: see Verify.
func Read(dir string, f Filter) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		file, err := openLog(dir)
		if err != nil {
			yield(Event{}, err)
			return
		}
		defer file.Close()
		_, _ = readFrom(file, position{}, &f, yield)
	}
}

// Follow yields what Read yields, and then each selected event as it is appended, until ctx ends. Ending is no error.
func Follow(ctx context.Context, dir string, f Filter) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		file, err := openLog(dir)
		if err != nil {
			yield(Event{}, err)
			return
		}
		defer file.Close()
		tick := time.NewTicker(followPause)
		defer tick.Stop()
		var at position
		for {
			var more bool
			if at, more = readFrom(file, at, &f, yield); !more {
				return
			}
			f.Limit = 0
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}
}

func openLog(dir string) (*os.File, error) {
	file, err := openFile(filepath.Join(dir, logName), os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "there is no audit log in %s", dir).WithHint("the first cofferdam run makes it")
	}
	if err != nil {
		return nil, fault.New(fault.Unavailable, "the audit log in %s cannot be read", dir).Because(err)
	}
	return file, nil
}

// position is the end of the last whole line that was read.
type position struct {
	offset int64
	lines  int
}

// readFrom yields what lies behind a position and returns the new one, and whether to go on.
func readFrom(file io.ReaderAt, at position, f *Filter, yield func(Event, error) bool) (position, bool) {
	if f.Limit > 0 {
		ring := newest{limit: f.Limit}
		at, more := readFrom(file, at, &Filter{
			Run: f.Run, Verdict: f.Verdict, Host: f.Host, Since: f.Since, Until: f.Until, Kinds: f.Kinds,
		}, ring.add(yield))
		return at, more && ring.drain(yield)
	}
	lr := newLineReader(io.NewSectionReader(file, at.offset, 1<<62), at.offset, at.lines)
	var needle []byte
	if f.Run != "" {
		needle = fmt.Appendf(nil, `"run":%q`, f.Run)
	}
	for {
		ln, err := lr.next()
		if errors.Is(err, io.EOF) || err == nil && !ln.whole {
			return at, true // an unfinished line is being written, or will be repaired
		}
		if err != nil {
			yield(Event{}, fault.New(fault.Unavailable, "the audit log cannot be read").Because(err))
			return at, false
		}
		at = position{offset: ln.offset + ln.size, lines: ln.number}
		if needle != nil && !bytes.Contains(ln.data, needle) {
			continue // the text of another member cannot hold the needle: its quotes would be escaped
		}
		e, err := decode(ln)
		if err == nil && !f.Match(&e) {
			continue
		}
		if !yield(e, err) {
			return at, false
		}
	}
}

func decode(ln line) (Event, error) {
	var e Event
	if len(ln.data) > maxLine || json.Unmarshal(ln.data, &e) != nil || e.Seq == 0 {
		return Event{}, fault.New(fault.Conflict, "line %d of the audit log is not a record", ln.number).WithHint("type: cofferdam audit verify")
	}
	e.clean()
	return e, nil
}

// newest holds the last events of a stream.
type newest struct {
	limit  int
	events []Event // a ring once it is full
	next   int
}

// add returns a yield that keeps events, and passes errors on.
func (n *newest) add(yield func(Event, error) bool) func(Event, error) bool {
	return func(e Event, err error) bool {
		if err != nil {
			return yield(e, err)
		}
		if len(n.events) < n.limit {
			n.events = append(n.events, e)
			return true
		}
		n.events[n.next] = e
		n.next = (n.next + 1) % n.limit
		return true
	}
}

func (n *newest) drain(yield func(Event, error) bool) bool {
	for i := range n.events {
		if !yield(n.events[(n.next+i)%len(n.events)], nil) {
			return false
		}
	}
	return true
}
