package pack

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/cofferdam/cofferdam/internal/gateway/git/wire"
)

// Asker puts questions to the upstream for the push that is judged.
type Asker interface {
	// Server says what the upstream can do in version 2 of the protocol.
	Server(ctx context.Context) (wire.Server, error)
	// Ask sends a command of version 2, and returns the answer's body.
	Ask(ctx context.Context, body []byte) (io.ReadCloser, error)
}

// Upstream is what the upstream of a push has. What it says of an object is believed as far as its hash bears it out; what it says of history (which commits
// can be reached) is believed. It is not safe for concurrent use.
type Upstream struct {
	ask      Asker
	format   wire.Format
	server   wire.Server
	known    bool
	packs    []*Pack // what it was asked for
	memory   int64   // that they take
	asked    int     // questions
	walked   int     // commits of the push that were gone through on its behalf
	levels   int     // of folders that were asked for
	alone    bool    // what is below them is too much
	branches []wire.ID
	listed   bool
}

// NewUpstream returns an upstream that was not asked yet.
func NewUpstream(f wire.Format, ask Asker) *Upstream { return &Upstream{ask: ask, format: f} }

// Bounds of what is asked for one push.
const (
	maxQuestions = 256      // of all kinds: each of a hundred refs may take two
	maxWalked    = 4 << 20  // commits, for all refs together
	maxHaves     = 10_000   // commits in one question
	maxBranches  = 50_000   // of branches and tags, those that are looked at
	maxAnswer    = 1 << 30  // bytes of an answer: an upstream without filters sends files too
	maxMemory    = 24 << 20 // bytes of commits and trees in all answers
)

// ready finds out what the upstream can do.
func (u *Upstream) ready(ctx context.Context) error {
	if u.asked++; u.asked > maxQuestions {
		return tooLarge("more than %d questions to the upstream", maxQuestions)
	}
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

// question is what to fetch. No words of the upstream's answer are passed on: it could say anything, a credential included.
type question struct {
	want, have []wire.ID
	deepen     bool
	filter     string
	goOn       bool // it is not the last: ask which of have are there
}

func (u *Upstream) encode(q question) []byte {
	b := wire.AppendLine(nil, "command=fetch\n")
	if u.format != wire.SHA1 {
		b = wire.AppendLine(b, "object-format="+u.format.String()+"\n")
	}
	b = wire.AppendDelimiter(b)
	b = wire.AppendLine(wire.AppendLine(b, "no-progress\n"), "ofs-delta\n")
	for _, id := range q.want {
		b = wire.AppendLine(b, "want "+id.String()+"\n")
	}
	for _, id := range q.have {
		b = wire.AppendLine(b, "have "+id.String()+"\n")
	}
	if q.deepen && u.server.Shallow {
		b = wire.AppendLine(b, "deepen 1\n")
	}
	if u.server.Filter {
		b = wire.AppendLine(b, "filter "+q.filter+"\n")
	}
	if !q.goOn {
		b = wire.AppendLine(b, "done\n")
	}
	return wire.AppendFlush(b)
}

// send asks, and returns the bytes of the pack that answers.
func (u *Upstream) send(ctx context.Context, q question) (io.ReadCloser, error) {
	if err := u.ready(ctx); err != nil {
		return nil, err
	}
	body, err := u.ask.Ask(ctx, u.encode(q))
	if err != nil {
		return nil, err
	}
	lines := wire.NewReader(body, maxAnswer)
	for {
		kind, payload, err := lines.Next()
		switch text := string(payload); {
		case err != nil || kind == wire.Flush || kind == wire.ResponseEnd:
			_ = body.Close() // it is of no use
			return nil, ErrMissing
		case kind == wire.Data && strings.HasPrefix(text, "ERR "):
			_ = body.Close() // as above
			return nil, ErrMissing
		case kind == wire.Data && (text == "packfile\n" || text == "packfile"):
			return &banded{lines: lines, Closer: body}, nil
		} // shallow-info
	}
}

// banded reads what comes in the first band.
type banded struct {
	lines *wire.Reader
	io.Closer
	left []byte
}

// Read implements io.Reader.
func (b *banded) Read(p []byte) (int, error) {
	for len(b.left) == 0 {
		kind, payload, err := b.lines.Next()
		switch {
		case err == io.EOF:
			return 0, io.ErrUnexpectedEOF
		case err != nil:
			return 0, err
		case kind == wire.Flush:
			return 0, io.EOF
		case kind != wire.Data || len(payload) == 0 || payload[0] == 3: // the third band is an error
			return 0, ErrMissing
		case payload[0] == 1:
			b.left = payload[1:]
		}
	}
	n := copy(p, b.left)
	b.left = b.left[n:]
	return n, nil
}

// fetch gets objects and keeps their commits and trees, which have at most so many bytes.
func (u *Upstream) fetch(ctx context.Context, q question, most int64) error {
	answer, err := u.send(ctx, q)
	if err != nil {
		return err
	}
	defer answer.Close()
	memory := &memory{most: min(most, maxMemory-u.memory)}
	r := NewReader(u.format, memory, Limits{Kept: max(memory.most, 1), Memory: 16 << 20})
	defer r.Stop()
	r.strict, r.blobs = false, retention{sure: true, off: true} // it writes bases by distance, as it was asked to
	if _, err := io.CopyBuffer(struct{ io.Writer }{r}, answer, make([]byte, 32<<10)); err != nil {
		return fmt.Errorf("the upstream's answer: %w", err)
	}
	p, err := r.Close()
	if err != nil {
		return fmt.Errorf("the upstream's answer: %w", err)
	}
	u.packs, u.memory = append(u.packs, p), u.memory+memory.size
	return nil
}

// commits gets commits, each with its root tree if it can be had in one, and looks that they are there.
func (u *Upstream) commits(ctx context.Context, ids []wire.ID) error {
	err := u.fetch(ctx, question{want: ids, deepen: true, filter: "tree:1"}, maxMemory)
	if errors.Is(err, ErrMissing) && u.server.Filter { // it may also be that the upstream knows tree:0 only (uploadpackfilter.tree.maxDepth)
		err = u.fetch(ctx, question{want: ids, deepen: true, filter: "tree:0"}, maxMemory)
	}
	if err != nil {
		return err
	}
	for _, id := range ids {
		if _, ok, err := u.commit(id); err != nil || !ok {
			return errors.Join(ErrMissing, err)
		}
	}
	return nil
}

// maxBelow bounds the trees below others that are had on the way.
const maxBelow = 4 << 20

// trees gets trees: those just below the root alone, since all that is below them would be much, and further down with what is below, which is likely wanted
// next. So a question is saved for each level of folders. If it is much there too, one level is asked for at a time.
func (u *Upstream) trees(ctx context.Context, ids []wire.ID) error {
	if u.levels++; u.server.Filter && u.levels > 1 && !u.alone {
		err := u.fetch(ctx, question{want: ids, filter: "blob:none"}, maxBelow)
		if !errors.Is(err, ErrTooLarge) {
			return cmp.Or(err, u.hasTrees(ids))
		}
		u.alone = true
	}
	// Where one is below another git leaves it out, if it comes to the other first: then it is asked for again.
	for left := slices.Clone(ids); ; {
		if err := u.fetch(ctx, question{want: left, filter: "tree:0"}, maxMemory); err != nil {
			return err
		}
		before := len(left)
		if left = slices.DeleteFunc(left, u.hasTree); len(left) == 0 || len(left) == before {
			return u.hasTrees(left)
		}
	}
}

// hasTrees looks that trees were fetched.
func (u *Upstream) hasTrees(ids []wire.ID) error {
	for _, id := range ids {
		if !u.hasTree(id) {
			return ErrMissing
		}
	}
	return nil
}

// commit returns a commit that was fetched.
func (u *Upstream) commit(id wire.ID) (Commit, bool, error) {
	for _, p := range u.packs {
		if c, ok, err := p.Commit(id); ok || err != nil {
			return c, ok, err
		}
	}
	return Commit{}, false, nil
}

// hasTree reports whether a tree was fetched.
func (u *Upstream) hasTree(id wire.ID) bool {
	return slices.ContainsFunc(u.packs, func(p *Pack) bool { return p.hasTree(id) })
}

// tree reads a tree that was fetched into a buffer, which grows.
func (u *Upstream) tree(id wire.ID, buf []byte) ([]byte, bool, error) {
	for _, p := range u.packs {
		if content, ok, err := p.tree(id, buf); ok || err != nil {
			return content, ok, err
		}
	}
	return buf, false, nil
}

// reachable reports whether an object of the upstream is among what others of its objects lead to, or one of them: then nothing is left to send of it.
func (u *Upstream) reachable(ctx context.Context, id wire.ID, from []wire.ID) (bool, error) {
	return u.allReachable(ctx, []wire.ID{id}, from)
}

func (u *Upstream) allReachable(ctx context.Context, ids, from []wire.ID) (bool, error) {
	answer, err := u.send(ctx, question{want: ids, have: from, filter: "tree:0"})
	if err != nil {
		return false, err
	}
	defer answer.Close()
	var head [12]byte
	if _, err := io.ReadFull(answer, head[:]); err != nil || string(head[:4]) != "PACK" {
		return false, ErrMissing
	}
	return binary.BigEndian.Uint32(head[8:]) == 0, nil
}

// areCommits reports whether objects that the upstream has are commits.
func (u *Upstream) areCommits(ctx context.Context, ids []wire.ID) (bool, error) {
	if err := u.fetch(ctx, question{want: ids, deepen: true, filter: "tree:0"}, maxMemory); err != nil {
		return false, err
	}
	for _, id := range ids {
		if _, ok, err := u.commit(id); err != nil || !ok {
			return false, err
		}
	}
	return true, nil
}

// trusts reports whether commits are on a branch or a tag of the upstream. That it has an object is not enough: forges keep those of every fork and of every
// pull request in one place, and give them out by id, so a stranger's commit could be merged without being in the push.
func (u *Upstream) trusts(ctx context.Context, ids []wire.ID) (bool, error) {
	if err := u.list(ctx); err != nil {
		return false, err
	}
	tips := make(map[wire.ID]bool, len(u.branches))
	for _, id := range u.branches {
		tips[id] = true
	}
	var rest []wire.ID
	for _, id := range ids {
		if !tips[id] {
			rest = append(rest, id)
		}
	}
	if len(rest) == 0 || len(u.branches) == 0 {
		return len(rest) == 0, nil
	}
	return u.allReachable(ctx, rest, u.branches[:min(len(u.branches), maxHaves)])
}

// has returns which of some commits the upstream has, on a branch or not: those that it acknowledges where a fetch is negotiated.
func (u *Upstream) has(ctx context.Context, ids []wire.ID) ([]wire.ID, error) {
	if err := u.list(ctx); err != nil || len(u.branches) == 0 {
		return nil, err
	}
	if len(ids) > maxHaves {
		return nil, tooLarge("more than %d commits", maxHaves)
	}
	if err := u.ready(ctx); err != nil {
		return nil, err
	}
	body, err := u.ask.Ask(ctx, u.encode(question{want: u.branches[:1], have: ids, filter: "tree:0", goOn: true}))
	if err != nil {
		return nil, err
	}
	defer body.Close()
	var known []wire.ID
	lines := wire.NewReader(body, maxAnswer)
	for begun := false; ; {
		kind, payload, err := lines.Next()
		text, isACK := strings.CutPrefix(strings.TrimSuffix(string(payload), "\n"), "ACK ")
		id, valid := wire.ParseID(u.format, []byte(text))
		switch {
		case err != nil:
			return nil, ErrMissing
		case !begun && kind == wire.Data && text == "acknowledgments":
			begun = true
		case begun && kind == wire.Data && isACK && valid:
			known = append(known, id)
		case begun && kind == wire.Data && (text == "NAK" || text == "ready"):
		case begun && (kind == wire.Flush || kind == wire.Delimiter):
			return known, nil // if it is ready, a pack follows
		default:
			return nil, ErrMissing
		}
	}
}

// list asks for the upstream's branches and tags, once.
func (u *Upstream) list(ctx context.Context) error {
	if u.listed {
		return nil
	}
	if err := u.ready(ctx); err != nil {
		return err
	}
	answer, err := u.ask.Ask(ctx, wire.AppendLsRefs(nil, u.format, "refs/heads/", "refs/tags/"))
	if err != nil {
		return err
	}
	defer answer.Close()
	var tags []wire.ID
	err = wire.ReadLsRefs(answer, u.format, func(r wire.Ref) {
		switch {
		case len(u.branches)+len(tags) >= maxBranches:
		case strings.HasPrefix(r.Name, "refs/heads/"):
			u.branches = append(u.branches, r.ID)
		case strings.HasPrefix(r.Name, "refs/tags/"):
			tags = append(tags, r.ID)
		}
	})
	if err != nil {
		return fmt.Errorf("the upstream's branches: %w", err)
	}
	u.branches, u.listed = append(u.branches, tags...), true // branches first, since only so many are named in a question
	return nil
}

// memory is a scratch of its own, written in order. It grows by pages, and copies nothing.
type memory struct {
	most  int64
	size  int64
	pages [][]byte
}

const memoryPage = 64 << 10

// WriteAt implements io.WriterAt.
func (m *memory) WriteAt(p []byte, at int64) (int, error) {
	if at != m.size || at+int64(len(p)) > m.most {
		return 0, tooLarge("more than %d bytes of the upstream's commits and trees", m.most)
	}
	for left := p; len(left) > 0; {
		if m.size%memoryPage == 0 {
			m.pages = append(m.pages, make([]byte, memoryPage))
		}
		n := copy(m.pages[len(m.pages)-1][m.size%memoryPage:], left)
		left, m.size = left[n:], m.size+int64(n)
	}
	return len(p), nil
}

// ReadAt implements io.ReaderAt.
func (m *memory) ReadAt(p []byte, at int64) (n int, err error) {
	for n < len(p) && at+int64(n) < m.size {
		from := at + int64(n)
		page := m.pages[from/memoryPage]
		n += copy(p[n:], page[from%memoryPage:min(memoryPage, m.size-from+from%memoryPage)])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
