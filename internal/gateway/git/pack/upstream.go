package pack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/cofferdam/cofferdam/internal/gateway/git/wire"
)

// Asker puts questions to the upstream for the push that is judged.
type Asker interface {
	// Server says what the upstream can do in version 2 of the protocol.
	Server(ctx context.Context) (wire.Server, error)
	// Ask sends a command of version 2, and returns the answer's body.
	Ask(ctx context.Context, body []byte) (io.ReadCloser, error)
}

// Upstream is what the upstream of a push has already. What it says is believed as far as the hash of each object bears it out.
type Upstream struct {
	ask    Asker
	format wire.Format
	server wire.Server
	known  bool
	packs  []*Pack // what it was asked for
	asked  int
}

// NewUpstream returns an Upstream that has not been asked yet.
func NewUpstream(f wire.Format, ask Asker) *Upstream { return &Upstream{ask: ask, format: f} }

// Bounds of what an upstream is asked for one push.
const (
	maxQuestions = 64
	maxWants     = 5000
	maxAnswer    = 256 << 20 // bytes of one answer, of an upstream that cannot leave files out
	maxMemory    = 24 << 20  // bytes of commits and trees in all answers
)

// errUnknown is of objects that neither the pack nor the upstream has.
var errUnknown = errors.New("it builds on objects that neither it nor the upstream has")

// ready finds out what the upstream can do.
func (u *Upstream) ready(ctx context.Context) error {
	if u.known {
		return nil
	}
	server, err := u.ask.Server(ctx)
	if err != nil {
		return err
	}
	if !server.Fetch {
		return wire.ErrOldServer
	}
	if server.Format != u.format {
		return errors.New("the upstream's repository has another object format")
	}
	u.server, u.known = server, true
	return nil
}

// question begins a fetch.
func (u *Upstream) question(want []wire.ID) []byte {
	b := wire.AppendLine(nil, "command=fetch\n")
	b = wire.AppendLine(b, "object-format="+u.format.String()+"\n")
	b = wire.AppendDelimiter(b)
	b = wire.AppendLine(b, "no-progress\n")
	b = wire.AppendLine(b, "ofs-delta\n")
	for _, id := range want {
		b = wire.AppendLine(b, "want "+id.String()+"\n")
	}
	return b
}

// fetch gets commits with their root trees, or trees, by name.
func (u *Upstream) fetch(ctx context.Context, want []wire.ID) error {
	if err := u.ready(ctx); err != nil {
		return err
	}
	if u.asked++; u.asked > maxQuestions || len(want) > maxWants {
		return ErrTooLarge
	}
	b := u.question(want)
	if u.server.Shallow {
		b = wire.AppendLine(b, "deepen 1\n")
	}
	if u.server.Filter {
		b = wire.AppendLine(b, "filter tree:1\n")
	}
	answer, err := u.send(ctx, b)
	if err != nil {
		return err
	}
	defer answer.Close()
	memory := &memory{most: maxMemory}
	for _, p := range u.packs {
		memory.most -= p.size
	}
	r := NewReader(u.format, memory, Limits{Bytes: maxMemory, Kept: 100_000})
	defer r.Stop()
	if _, err := io.Copy(r, io.LimitReader(answer, maxAnswer)); err != nil {
		return fmt.Errorf("the upstream's answer: %w", err)
	}
	p, err := r.Close()
	if err != nil {
		return fmt.Errorf("the upstream's answer: %w", err)
	}
	u.packs = append(u.packs, p)
	for _, id := range want {
		if _, ok := p.kept[id]; !ok {
			return errUnknown
		}
	}
	return nil
}

// send sends a question, and returns the bytes of the pack that answers it.
func (u *Upstream) send(ctx context.Context, b []byte) (io.ReadCloser, error) {
	b = wire.AppendFlush(wire.AppendLine(b, "done\n"))
	body, err := u.ask.Ask(ctx, b)
	if err != nil {
		return nil, err
	}
	lines := wire.NewReader(body, maxAnswer)
	for {
		kind, payload, err := lines.Next()
		switch {
		case err != nil || kind == wire.Flush:
			_ = body.Close() // it is of no use
			return nil, errors.Join(wire.ErrSyntax, err)
		case kind == wire.Data && string(payload) == "packfile\n":
			return &banded{lines: lines, Closer: body}, nil
		case kind == wire.Data && len(payload) > 4 && string(payload[:4]) == "ERR ":
			_ = body.Close() // as above
			return nil, errUnknown
		} // shallow-info and its end
	}
}

// banded reads what comes in the first band.
type banded struct {
	lines *wire.Reader
	io.Closer
	left []byte
}

func (b *banded) Read(p []byte) (int, error) {
	for len(b.left) == 0 {
		kind, payload, err := b.lines.Next()
		switch {
		case err != nil:
			return 0, early(err)
		case kind == wire.Flush:
			return 0, io.EOF
		case kind != wire.Data || len(payload) == 0:
			return 0, wire.ErrSyntax
		case payload[0] == 1:
			b.left = payload[1:]
		case payload[0] == 3:
			return 0, wire.ErrFatal
		}
	}
	n := copy(p, b.left)
	b.left = b.left[n:]
	return n, nil
}

// Reachable reports whether a commit that the upstream has is an ancestor of one of others that it has, or one of them.
func (u *Upstream) Reachable(ctx context.Context, commit wire.ID, from []wire.ID) (bool, error) {
	if err := u.ready(ctx); err != nil {
		return false, err
	}
	if u.asked++; u.asked > maxQuestions || len(from) > maxWants {
		return false, ErrTooLarge
	}
	b := u.question([]wire.ID{commit})
	for _, id := range from {
		b = wire.AppendLine(b, "have "+id.String()+"\n")
	}
	if u.server.Filter {
		b = wire.AppendLine(b, "filter tree:0\n")
	}
	answer, err := u.send(ctx, b)
	if err != nil {
		return false, err
	}
	defer answer.Close()
	var head [12]byte
	if _, err := io.ReadFull(answer, head[:]); err != nil {
		return false, early(err)
	}
	if string(head[:4]) != "PACK" {
		return false, ErrNotPack
	}
	// What it sends is what can be reached from the commit and not from the others: nothing at all if the commit itself can.
	return binary.BigEndian.Uint32(head[8:]) == 0, nil
}

// find returns an object that was fetched.
func (u *Upstream) find(id wire.ID, k kind) ([]byte, bool, error) {
	for _, p := range u.packs {
		if b, ok, err := p.get(id, k); ok || err != nil {
			return b, ok, err
		}
	}
	return nil, false, nil
}

// memory is a bounded scratch in memory.
type memory struct {
	mu   sync.Mutex
	most int64
	b    []byte
}

func (m *memory) WriteAt(p []byte, at int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	end := at + int64(len(p))
	if end > m.most {
		return 0, ErrTooLarge
	}
	for int64(len(m.b)) < end {
		m.b = append(m.b, make([]byte, end-int64(len(m.b)))...)
	}
	return copy(m.b[at:], p), nil
}

func (m *memory) ReadAt(p []byte, at int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if at > int64(len(m.b)) {
		return 0, io.EOF
	}
	n := copy(p, m.b[at:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
