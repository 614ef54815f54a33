// Package dns (GATEWAY) answers the sandbox's name questions. It never asks anybody: an allowed name gets a synthetic address that
// stands for the name, everything else gets NXDOMAIN at once. So a question cannot carry a secret out (it goes nowhere).
package dns

import (
	"context"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/cofferdam/cofferdam/internal/netname"
)

// Sizes and times on the wire.
const (
	// TTL of every positive answer, in seconds: long enough to be useful, short enough that a new policy is seen soon.
	TTL = 60
	// maxQuery bounds a question: header, one name of 255 bytes, an OPT record with cookies and padding (RFC 8467 pads to 468).
	maxQuery = 1232
	// minUDP is what a client without EDNS can take (RFC 1035 §4.2.1); maxUDP avoids fragments (DNS flag day 2020).
	minUDP = 512
	maxUDP = 1232
	// optEDE is the option code of extended errors (RFC 8914 §2).
	optEDE = 15
	// maxEDE bounds the text of an extended error.
	maxEDE = 200
)

// Extended error codes (RFC 8914 §4).
const (
	EDEOther      = 0
	EDEBlocked    = 15
	EDEProhibited = 18
)

// Outcome says what the pipeline made of a name. The zero value refuses.
type Outcome uint8

// The outcomes.
const (
	Refused Outcome = iota // NXDOMAIN, with the reason as extended error
	Found                  // V4 and V6 stand for the name
	Failed                 // SERVFAIL: it could not be decided or recorded
)

// Reply is the pipeline's answer about one name. Its zero value refuses without a reason.
type Reply struct {
	Outcome Outcome
	V4, V6  netip.Addr // either may be invalid: no address of that family (NODATA)
	Code    uint16     // extended error code of a refusal
	Text    string     // extended error text of a refusal
}

// names decides; the gateway's pipeline implements it.
type names interface {
	Lookup(ctx context.Context, host netname.Host, from netip.AddrPort) Reply
	// Reverse returns the name that a synthetic address stands for.
	Reverse(addr netip.Addr) (netname.Host, bool)
}

// Server answers questions. It is safe for concurrent use.
type Server struct {
	names names
}

// New returns a Server that asks the given pipeline.
func New(n names) *Server { return &Server{names: n} }

// Answer appends the response to one query to out, and returns nil if there is nothing that may be answered (not a query at all).
// limit is the largest response the transport takes, before EDNS has its say; 0 means a stream.
func (s *Server) Answer(ctx context.Context, query []byte, from netip.AddrPort, limit int, out []byte) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil || h.Response {
		return nil // too short to have an ID, or a reflected response: answering would only feed loops
	}
	r := response{id: h.ID, opcode: h.OpCode, recursion: h.RecursionDesired}
	if h.OpCode != 0 {
		return r.pack(out, dnsmessage.RCodeNotImplemented, limit)
	}
	if len(query) > maxQuery || h.Truncated || !r.parse(&p, h) {
		r.asked = false
		return r.pack(out, dnsmessage.RCodeFormatError, limit)
	}
	if r.version != 0 {
		return r.pack(out, rcodeBadVersion, limit)
	}
	return r.pack(out, s.resolve(ctx, &r, from), limit)
}

// resolve fills r with the answer to its question and returns the response code.
func (s *Server) resolve(ctx context.Context, r *response, from netip.AddrPort) dnsmessage.RCode {
	q := r.question
	if q.Class != dnsmessage.ClassINET {
		return dnsmessage.RCodeRefused
	}
	name := q.Name.String()
	if addr, ok := reverseName(name); ok {
		return s.reverse(r, addr)
	}
	host, err := netname.NormaliseHost(name)
	if err != nil {
		r.code, r.text = EDEProhibited, "not a host name: "+err.Error()
		return dnsmessage.RCodeNameError
	}
	var reply Reply
	if host == "localhost" || strings.HasSuffix(string(host), ".localhost") {
		// RFC 6761 §6.3: never asked, always the loopback addresses. Inside, that is the sandbox's own loopback.
		reply = Reply{Outcome: Found, V4: netip.AddrFrom4([4]byte{127, 0, 0, 1}), V6: netip.IPv6Loopback()}
	} else {
		reply = s.names.Lookup(ctx, host, from)
	}
	switch reply.Outcome {
	case Found:
		switch {
		case q.Type == dnsmessage.TypeA && reply.V4.Is4():
			r.addr = reply.V4
		case q.Type == dnsmessage.TypeAAAA && reply.V6.Is6():
			r.addr = reply.V6
		}
		// Any other type is NODATA: in particular HTTPS and SVCB, which would announce other ports, HTTP/3 and encrypted hellos.
		return dnsmessage.RCodeSuccess
	case Failed:
		r.code, r.text = EDEOther, reply.Text
		return dnsmessage.RCodeServerFailure
	}
	r.code, r.text = reply.Code, reply.Text
	return dnsmessage.RCodeNameError
}

func (s *Server) reverse(r *response, addr netip.Addr) dnsmessage.RCode {
	host, ok := s.names.Reverse(addr)
	if !ok {
		return dnsmessage.RCodeNameError
	}
	if r.question.Type == dnsmessage.TypePTR {
		r.pointer = string(host) + "."
	}
	return dnsmessage.RCodeSuccess
}

// reverseName parses the full reverse form of an address: d.c.b.a.in-addr.arpa. or 32 nibbles under ip6.arpa.
func reverseName(name string) (netip.Addr, bool) {
	name = strings.ToLower(name)
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		parts := strings.Split(rest, ".")
		if len(parts) != 4 {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(parts[3] + "." + parts[2] + "." + parts[1] + "." + parts[0])
		return a, err == nil
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa.")
	if !ok || len(rest) != 63 {
		return netip.Addr{}, false
	}
	var b [16]byte
	for i := range 32 {
		c := strings.IndexByte("0123456789abcdef", rest[2*i])
		if c < 0 || i < 31 && rest[2*i+1] != '.' {
			return netip.Addr{}, false
		}
		at := 31 - i
		b[at/2] |= byte(c) << (4 * (1 - at%2))
	}
	return netip.AddrFrom16(b), true
}
