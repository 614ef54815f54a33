package dns

import (
	"net/netip"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/dns/dnsmessage"
)

// rcodeBadVersion is BADVERS (RFC 6891 §9), an extended code: its upper bits travel in the OPT record.
const rcodeBadVersion dnsmessage.RCode = 16

// response is one answer in the making: what of the query must be echoed, and at most one record.
type response struct {
	id        uint16
	opcode    dnsmessage.OpCode
	recursion bool
	asked     bool // question is valid and is echoed, with the very case in which it came (0x20)
	question  dnsmessage.Question
	edns      bool
	version   uint8
	size      int // what the client says it can take over UDP

	addr    netip.Addr
	pointer string
	code    uint16
	text    string
}

// parse reads the question and the OPT record. It accepts exactly one question, no records in the other sections, and at most
// one OPT: nothing else occurs in an honest query, and what is not understood is not guessed at.
func (r *response) parse(p *dnsmessage.Parser, h dnsmessage.Header) bool {
	q, err := p.Question()
	if err != nil {
		return false
	}
	if _, err := p.Question(); err != dnsmessage.ErrSectionDone {
		return false
	}
	r.question, r.asked = q, true
	if _, err := p.AnswerHeader(); err != dnsmessage.ErrSectionDone {
		return false
	}
	if _, err := p.AuthorityHeader(); err != dnsmessage.ErrSectionDone {
		return false
	}
	for {
		rh, err := p.AdditionalHeader()
		if err == dnsmessage.ErrSectionDone {
			return true
		}
		if err != nil || rh.Type != dnsmessage.TypeOPT || r.edns || rh.Name.String() != "." {
			return false
		}
		if err := p.SkipAdditional(); err != nil {
			return false
		}
		r.edns, r.version, r.size = true, uint8(rh.TTL>>16), int(rh.Class)
	}
}

// room is how many bytes the response may have; 0 means as many as a stream carries.
func (r *response) room(limit int) int {
	if limit == 0 {
		return 0
	}
	if r.edns {
		return min(max(r.size, minUDP), limit)
	}
	return min(minUDP, limit)
}

// pack builds the message. Every response here fits 512 bytes except for the extended error's text, which is left out if it does not.
func (r *response) pack(out []byte, code dnsmessage.RCode, limit int) []byte {
	start := len(out)
	room := r.room(limit)
	msg, err := r.build(out, code, true)
	if err == nil && (room == 0 || len(msg)-start <= room) {
		return msg
	}
	msg, err = r.build(out[:start], code, false)
	if err != nil {
		return nil
	}
	return msg
}

func (r *response) build(out []byte, code dnsmessage.RCode, explain bool) ([]byte, error) {
	b := dnsmessage.NewBuilder(out, dnsmessage.Header{
		ID: r.id, Response: true, OpCode: r.opcode, Authoritative: false,
		RecursionDesired: r.recursion, RecursionAvailable: true, RCode: code & 0xf,
	})
	b.EnableCompression()
	if err := b.StartQuestions(); err != nil {
		return nil, err
	}
	if r.asked {
		if err := b.Question(r.question); err != nil {
			return nil, err
		}
	}
	if err := b.StartAnswers(); err != nil {
		return nil, err
	}
	if code == dnsmessage.RCodeSuccess {
		if err := r.answer(&b); err != nil {
			return nil, err
		}
	}
	if r.edns {
		if err := r.option(&b, code, explain); err != nil {
			return nil, err
		}
	}
	return b.Finish()
}

func (r *response) answer(b *dnsmessage.Builder) error {
	h := dnsmessage.ResourceHeader{Name: r.question.Name, Class: dnsmessage.ClassINET, TTL: TTL}
	switch {
	case r.addr.Is4():
		return b.AResource(h, dnsmessage.AResource{A: r.addr.As4()})
	case r.addr.Is6():
		return b.AAAAResource(h, dnsmessage.AAAAResource{AAAA: r.addr.As16()})
	case r.pointer != "":
		name, err := dnsmessage.NewName(r.pointer)
		if err != nil {
			return err
		}
		return b.PTRResource(h, dnsmessage.PTRResource{PTR: name})
	}
	return nil
}

// option adds the OPT record, with the reason of a refusal for clients that show it.
func (r *response) option(b *dnsmessage.Builder, code dnsmessage.RCode, explain bool) error {
	if err := b.StartAdditionals(); err != nil {
		return err
	}
	var h dnsmessage.ResourceHeader
	if err := h.SetEDNS0(maxUDP, code, false); err != nil {
		return err
	}
	var body dnsmessage.OPTResource
	if explain && r.text != "" {
		text := printable(r.text)
		data := append([]byte{byte(r.code >> 8), byte(r.code)}, text...)
		body.Options = []dnsmessage.Option{{Code: optEDE, Data: data}}
	}
	return b.OPTResource(h, body)
}

// printable bounds a text and makes it inert: resolvers print it on terminals.
func printable(s string) string {
	s = strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f || c == utf8.RuneError {
			return '?'
		}
		return c
	}, s)
	if len(s) <= maxEDE {
		return s
	}
	s = s[:maxEDE]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s
}
