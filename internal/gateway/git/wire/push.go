package wire

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Command is one line of a push: set Ref from Old to New. Old is zero to create it, New to delete it, both to delete what git knows is not there.
type Command struct {
	Old, New ID
	Ref      string
}

// Push is what stands before the pack in the body of git-receive-pack (gitprotocol-pack, "Reference Update Request").
type Push struct {
	// Commands are empty in the probe by which git tries a connection before it sends a long body.
	Commands     []Command
	Capabilities Capabilities
	Format       Format
	// Shallow are commits whose parents the client does not have.
	Shallow []ID
	Options []string
}

// Bounds of a push. A mirror of a repository of ten thousand branches is pushed in parts.
const (
	maxPushBytes   = 1 << 20
	maxCommands    = 1000
	maxShallow     = 10_000
	maxPushOptions = 32
	maxCommandLine = 32 << 10 // so that it can be written anew, with another ref and another capability
)

// Faults of a push that a person can do something about.
var (
	ErrSigned     = errors.New("signed pushes are not possible here: push with --no-signed")
	ErrManyRefs   = fmt.Errorf("more than %d refs in one push: push them in parts", maxCommands)
	ErrTwice      = errors.New("a ref is named twice in one push")
	ErrRefName    = errors.New("a ref has no valid name")
	ErrDisagree   = errors.New("the ids are not of the object format that the push says")
	ErrOptionName = errors.New("a push option has control characters or is too long")
)

// HasPack reports whether a pack follows: not where everything is deleted.
func (p *Push) HasPack() bool {
	for _, c := range p.Commands {
		if !c.New.IsZero() {
			return true
		}
	}
	return false
}

// ReadPush reads up to where the pack begins, and nothing of it. With an error comes what was understood before it, so that the client can be told.
func ReadPush(r io.Reader) (*Push, error) {
	lines := NewReader(r, maxPushBytes)
	p := &Push{}
	for first := true; ; {
		kind, payload, err := lines.Next()
		if err != nil {
			return p, early(err)
		}
		if kind == Flush {
			break
		}
		if kind != Data || len(payload) > maxCommandLine {
			return p, ErrSyntax
		}
		if err := p.line(payload, &first); err != nil {
			return p, err
		}
	}
	if len(p.Commands) == 0 {
		if len(p.Shallow) > 0 {
			return p, ErrSyntax
		}
		return p, nil
	}
	if err := p.check(); err != nil {
		return p, err
	}
	if !p.Capabilities.Has("push-options") {
		return p, nil
	}
	return p, p.readOptions(lines)
}

// early makes an end inside a message no ordinary one.
func early(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// line takes one line: a shallow commit, or a command; the first command brings the capabilities.
func (p *Push) line(payload []byte, first *bool) error {
	if id, ok := bytes.CutPrefix(chomp(payload), []byte("shallow ")); ok && *first {
		return p.shallow(id)
	}
	if bytes.HasPrefix(payload, []byte("push-cert")) {
		return ErrSigned
	}
	if *first {
		*first = false
		command, list, ok := bytes.Cut(payload, []byte{0})
		if ok {
			all, err := parseCapabilities(string(chomp(list)))
			if err != nil {
				return err
			}
			p.Capabilities = all
		}
		payload = command
		format, err := p.Capabilities.Format()
		if err != nil {
			return ErrDisagree
		}
		p.Format = format
	}
	if len(p.Commands) == maxCommands {
		return ErrManyRefs
	}
	c, err := p.command(string(chomp(payload)))
	if err != nil {
		return err
	}
	p.Commands = append(p.Commands, c)
	return nil
}

func (p *Push) shallow(text []byte) error {
	for _, f := range []Format{SHA1, SHA256} {
		if id, ok := ParseID(f, text); ok && len(p.Shallow) < maxShallow {
			p.Shallow = append(p.Shallow, id)
			return nil
		}
	}
	return ErrSyntax
}

// command parses OLD SP NEW SP REF.
func (p *Push) command(text string) (Command, error) {
	parts := strings.SplitN(text, " ", 3)
	if len(parts) != 3 {
		return Command{}, ErrSyntax
	}
	old, ok1 := ParseID(p.Format, []byte(parts[0]))
	next, ok2 := ParseID(p.Format, []byte(parts[1]))
	switch {
	case !ok1 || !ok2:
		if len(parts[0]) == 2*SHA1.Size() || len(parts[0]) == 2*SHA256.Size() {
			return Command{}, ErrDisagree
		}
		return Command{}, ErrSyntax
	case !ValidRef(parts[2]):
		return Command{}, ErrRefName
	}
	return Command{Old: old, New: next, Ref: parts[2]}, nil
}

// check judges the lines together.
func (p *Push) check() error {
	seen := make(map[string]bool, len(p.Commands))
	for _, c := range p.Commands {
		if seen[c.Ref] {
			return ErrTwice
		}
		seen[c.Ref] = true
	}
	for _, id := range p.Shallow {
		if int(id.size) != p.Format.Size() {
			return ErrDisagree
		}
	}
	return nil
}

func (p *Push) readOptions(lines *Reader) error {
	for {
		kind, payload, err := lines.Next()
		switch {
		case err != nil:
			return early(err)
		case kind == Flush:
			return nil
		case kind != Data:
			return ErrSyntax
		}
		option := string(chomp(payload))
		if len(p.Options) == maxPushOptions || len(option) > 4096 || strings.ContainsFunc(option, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return ErrOptionName
		}
		p.Options = append(p.Options, option)
	}
}

// Append appends the push as it is sent upstream: made anew from what was understood, with those capabilities that may pass. It asks for a report in
// the old form as well, which upstreams that do not know the new one answer in.
func (p *Push) Append(b []byte) []byte {
	for _, id := range p.Shallow {
		b = AppendLine(b, "shallow "+id.String())
	}
	list := p.Capabilities.ForPush()
	if list.Has("report-status-v2") && !list.hasExactly("report-status") {
		list = append(list, "report-status")
	}
	for i, c := range p.Commands {
		line := c.Old.String() + " " + c.New.String() + " " + c.Ref
		if i == 0 {
			line += "\x00 " + list.String()
		}
		b = AppendLine(b, line)
	}
	b = AppendFlush(b)
	if !list.Has("push-options") || len(p.Commands) == 0 {
		return b
	}
	for _, option := range p.Options {
		b = AppendLine(b, option)
	}
	return AppendFlush(b)
}
