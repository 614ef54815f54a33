// Package pack (GATEWAY) reads a pack while it streams by, tells whether a push goes forward, and which protected files it changes. It keeps commits,
// trees and tags; of blobs only what it needs to find its way. It opens no file and runs no git.
package pack

import (
	"errors"
	"fmt"
	"io"

	"github.com/cofferdam/cofferdam/internal/gateway/git/wire"
)

// Scratch holds what is kept of a pack, in a file of its own that is open for reading and writing. It is written from offset 0 on.
type Scratch interface {
	io.ReaderAt
	io.WriterAt
}

// Limits bound what a pack may cost. A field of zero has its default.
type Limits struct {
	Objects  int   // in one pack: 20 million
	Memory   int64 // bytes of the index: 48 MiB. It takes nine bytes for each object, and about 36 (SHA-1) or 48 more for each whose name is needed
	Message  int   // bytes of a commit or a tag: 8 MiB
	Tree     int   // bytes of a tree, which has 30 to 60 for a name: 8 MiB. Up to six times as much is in memory while deltas are applied
	Kept     int64 // bytes that are kept in scratch: 1 GiB, and never 4 GiB
	Inflated int64 // bytes that are worked through in all, bases of deltas included: 64 GiB
	Compared int64 // bytes of trees that are compared, and 4 KiB for each tree and each path that is not the same: 16 GiB
	Asked    int   // commits and trees that the upstream is asked for: 2000
}

// maxKept is the most that offsets of 32 bits reach.
const maxKept = 1<<32 - 1

func (l Limits) orDefault() Limits {
	or := func(n *int, otherwise int) {
		if *n <= 0 {
			*n = otherwise
		}
	}
	or(&l.Objects, 20_000_000)
	or(&l.Message, 8<<20)
	or(&l.Tree, 8<<20)
	or(&l.Asked, 2000)
	orBytes := func(n *int64, otherwise int64) {
		if *n <= 0 {
			*n = otherwise
		}
	}
	orBytes(&l.Memory, 48<<20)
	orBytes(&l.Kept, 1<<30)
	orBytes(&l.Inflated, 64<<30)
	orBytes(&l.Compared, 16<<30)
	l.Objects, l.Kept = min(l.Objects, maxObjects), min(l.Kept, maxKept)
	l.Message, l.Tree = min(l.Message, maxSize), min(l.Tree, maxSize)
	return l
}

// Why a pack is not taken, or not judged. Other errors say more, and wrap one of these, or are of scratch, of the upstream or of the context.
var (
	ErrMalformed = errors.New("this is not a pack that git would write")
	ErrThin      = errors.New("the pack lacks the base of a delta: git sent a thin pack although it was told not to")
	ErrTooLarge  = errors.New("too large to check here: push it in parts")
	ErrForeign   = errors.New("it builds on a commit that is on no branch or tag of the upstream, so nobody has looked at what that changes: rebase it onto a branch")
	ErrMissing   = errors.New("the upstream did not send what the push builds on")
	ErrShort     = errors.New("the pack ends early")
)

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

func tooLarge(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), ErrTooLarge)
}

// Pack is what was kept of a whole pack. It is read from scratch, which must stay until the last question is answered. It is not safe for concurrent use.
type Pack struct {
	format  wire.Format
	scratch Scratch
	limits  Limits
	objects int
	kept    *index
	buf     []byte
}

// Objects is the number of objects in the pack.
func (p *Pack) Objects() int { return p.objects }

// maxMessage is how much of a message is returned.
const maxMessage = 64 << 10

// Message returns what a commit of the pack says of itself: the text below its header, at most 64 KiB of it, as it was written.
func (p *Pack) Message(id wire.ID) (string, bool) {
	kind, content, err := p.read(id)
	if err != nil || kind != commitKind {
		return "", false
	}
	text := messageOf(content)
	return string(text[:min(len(text), maxMessage)]), true
}

// read returns an object's kind and content; noKind if it is not in the pack. The content is valid until the next call.
func (p *Pack) read(id wire.ID) (kind, []byte, error) {
	slot, ok := p.kept.find(id)
	if !ok {
		return noKind, nil, nil
	}
	content, err := p.content(slot)
	return p.kept.kind(slot), content, err
}

func (p *Pack) content(slot uint32) ([]byte, error) {
	r := p.kept.records.at(int(slot))
	if r.at == nowhere {
		return nil, nil
	}
	var err error
	p.buf, err = load(p.scratch, p.buf, r)
	return p.buf, err
}

// load reads a record's bytes into a buffer, which grows.
func load(from io.ReaderAt, buf []byte, r *record) ([]byte, error) {
	n := r.size()
	if cap(buf) < n {
		buf = make([]byte, n, max(n, 4<<10))
	}
	if got, err := from.ReadAt(buf[:n], int64(r.at)); got < n {
		return nil, fmt.Errorf("read scratch: %w", err)
	}
	return buf[:n], nil
}

// Commit returns a commit of the pack.
func (p *Pack) Commit(id wire.ID) (Commit, bool, error) {
	kind, content, err := p.read(id)
	if err != nil || kind != commitKind {
		return Commit{}, false, err
	}
	c, err := parseCommit(p.format, content)
	return c, err == nil, err
}

// hasTree reports whether a tree is in the pack.
func (p *Pack) hasTree(id wire.ID) bool {
	slot, ok := p.kept.find(id)
	return ok && p.kept.kind(slot) == treeKind
}

// tree reads a tree of the pack into a buffer, which grows.
func (p *Pack) tree(id wire.ID, buf []byte) (content []byte, ok bool, err error) {
	slot, ok := p.kept.find(id)
	if !ok || p.kept.kind(slot) != treeKind {
		return buf, false, nil
	}
	content, err = load(p.scratch, buf, p.kept.records.at(int(slot)))
	return content, err == nil, err
}

// peel follows tags within the pack.
func (p *Pack) peel(id wire.ID) (wire.ID, error) {
	for range 100 { // a tag of a tag of a tag…; each is in the pack, so there is no circle, but there could be a long way
		kind, content, err := p.read(id)
		if err != nil || kind != tagKind {
			return id, err
		}
		if id, err = parseTag(p.format, content); err != nil {
			return id, err
		}
	}
	return id, malformed("a tag of a tag, a hundred times")
}
