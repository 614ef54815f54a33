package dns

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/cofferdam/cofferdam/internal/netname"
)

// book allows one name and remembers all that it was asked.
type book struct{ asked []netname.Host }

var (
	good4 = netip.MustParseAddr("198.18.1.0")
	good6 = netip.MustParseAddr("fdcf:d0::100")
)

func (b *book) Lookup(_ context.Context, h netname.Host, _ netip.AddrPort) Reply {
	b.asked = append(b.asked, h)
	switch h {
	case "good.example.com":
		return Reply{Outcome: Found, V4: good4, V6: good6}
	case "broken.example.com":
		return Reply{Outcome: Failed}
	}
	return Reply{Code: EDEBlocked, Text: "default: no rule\nallows " + string(h)}
}

func (b *book) Reverse(a netip.Addr) (netname.Host, bool) {
	return "good.example.com", a == good4 || a == good6
}

// query packs one question.
func query(t testing.TB, name string, typ dnsmessage.Type, edns int) []byte {
	t.Helper()
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 77, RecursionDesired: true})
	check := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	check(b.StartQuestions())
	check(b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET}))
	if edns > 0 {
		check(b.StartAdditionals())
		var h dnsmessage.ResourceHeader
		check(h.SetEDNS0(edns, 0, false))
		check(b.OPTResource(h, dnsmessage.OPTResource{Options: []dnsmessage.Option{{Code: 10, Data: []byte("12345678")}}}))
	}
	msg, err := b.Finish()
	check(err)
	return msg
}

func answer(t testing.TB, q []byte) (dnsmessage.Message, *book) {
	t.Helper()
	b := new(book)
	raw := New(b).Answer(t.Context(), q, netip.AddrPort{}, maxUDP, nil)
	var m dnsmessage.Message
	if err := m.Unpack(raw); err != nil {
		t.Fatalf("%x: %v", raw, err)
	}
	return m, b
}

func TestAnswer(t *testing.T) {
	const nx, ok = dnsmessage.RCodeNameError, dnsmessage.RCodeSuccess
	for _, test := range []struct {
		name  string
		typ   dnsmessage.Type
		code  dnsmessage.RCode
		want  string
		asked bool
	}{
		{"good.example.com.", dnsmessage.TypeA, ok, "198.18.1.0", true},
		{"good.example.com.", dnsmessage.TypeAAAA, ok, "fdcf:d0::100", true},
		{"GoOd.eXample.COM.", dnsmessage.TypeA, ok, "198.18.1.0", true},
		{"good.example.com.", 65, ok, "", true}, // HTTPS
		{"good.example.com.", dnsmessage.TypeTXT, ok, "", true},
		{"good.example.com.", dnsmessage.TypeMX, ok, "", true},
		{"good.example.com.", dnsmessage.TypeALL, ok, "", true},
		{"secret.evil.example.", dnsmessage.TypeA, nx, "", true},
		{"secret.evil.example.", dnsmessage.TypeTXT, nx, "", true},
		{"broken.example.com.", dnsmessage.TypeA, dnsmessage.RCodeServerFailure, "", true},
		{"bad name.example.com.", dnsmessage.TypeA, nx, "", false},
		{"good.example.com\x00.evil.example.", dnsmessage.TypeA, nx, "", false},
		{".", dnsmessage.TypeNS, nx, "", false},
		{"localhost.", dnsmessage.TypeA, ok, "127.0.0.1", false},
		{"x.localhost.", dnsmessage.TypeAAAA, ok, "::1", false},
		{"0.1.18.198.in-addr.arpa.", dnsmessage.TypePTR, ok, "good.example.com.", false},
		{"8.8.8.8.in-addr.arpa.", dnsmessage.TypePTR, nx, "", false},
		{"0.0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.0.0.f.c.d.f.ip6.arpa.", dnsmessage.TypePTR, ok, "good.example.com.", false},
		{"0.0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.0.0.f.c.d.f.IP6.arpa.", dnsmessage.TypeA, ok, "", false},
	} {
		m, b := answer(t, query(t, test.name, test.typ, 1232))
		got := ""
		for _, a := range m.Answers {
			switch body := a.Body.(type) {
			case *dnsmessage.AResource:
				got += netip.AddrFrom4(body.A).String()
			case *dnsmessage.AAAAResource:
				got += netip.AddrFrom16(body.AAAA).String()
			case *dnsmessage.PTRResource:
				got += body.PTR.String()
			}
			if a.Header.Name.String() != test.name || a.Header.TTL != TTL {
				t.Errorf("%s: answer's name is %s", test.name, a.Header.Name)
			}
		}
		if m.RCode != test.code || got != test.want || (len(b.asked) > 0) != test.asked || m.ID != 77 || m.Questions[0].Name.String() != test.name {
			t.Errorf("%s %s: %v %q, asked %v", test.name, test.typ, m.RCode, got, b.asked)
		}
	}
}

func TestReverseV6(t *testing.T) {
	b := good6.As16()
	var name strings.Builder
	for i := 15; i >= 0; i-- {
		name.WriteByte("0123456789abcdef"[b[i]&15])
		name.WriteByte('.')
		name.WriteByte("0123456789abcdef"[b[i]>>4])
		name.WriteByte('.')
	}
	if a, ok := reverseName(name.String() + "ip6.arpa."); !ok || a != good6 {
		t.Errorf("%s: %v %v", name.String(), a, ok)
	}
}

func TestExtendedError(t *testing.T) {
	m, _ := answer(t, query(t, "secret.evil.example.", dnsmessage.TypeA, 1232))
	opt := m.Additionals[0].Body.(*dnsmessage.OPTResource).Options[0]
	if opt.Code != optEDE || binary.BigEndian.Uint16(opt.Data) != EDEBlocked || string(opt.Data[2:]) != "default: no rule?allows secret.evil.example" {
		t.Errorf("%+v", opt)
	}
	if m, _ = answer(t, query(t, "secret.evil.example.", dnsmessage.TypeA, 0)); len(m.Additionals) != 0 {
		t.Error("OPT for a client without EDNS")
	}
}

func TestMalformed(t *testing.T) {
	good := query(t, "good.example.com.", dnsmessage.TypeA, 0)
	change := func(f func(b []byte) []byte) []byte { return f(append([]byte(nil), good...)) }
	for _, test := range []struct {
		name string
		q    []byte
		code dnsmessage.RCode
	}{
		{"good", good, dnsmessage.RCodeSuccess},
		{"two questions", change(func(b []byte) []byte { b[5] = 2; return append(b, good[12:]...) }), dnsmessage.RCodeFormatError},
		{"no question", change(func(b []byte) []byte { b[5] = 0; return b[:12] }), dnsmessage.RCodeFormatError},
		{"answer in a query", change(func(b []byte) []byte {
			b[7] = 1
			return append(b, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 1, 2, 3, 4)
		}), dnsmessage.RCodeFormatError},
		{"compression loop", change(func(b []byte) []byte { return append(b[:12], 0xc0, 12, 0, 1, 0, 1) }), dnsmessage.RCodeFormatError},
		{"cut", change(func(b []byte) []byte { return b[:len(b)-3] }), dnsmessage.RCodeFormatError},
		{"oversized", change(func(b []byte) []byte { return append(b, make([]byte, maxQuery)...) }), dnsmessage.RCodeFormatError},
		{"two OPT", change(func(b []byte) []byte {
			b[11] = 2
			opt := []byte{0, 0, 41, 4, 0, 0, 0, 0, 0, 0, 0}
			return append(append(b, opt...), opt...)
		}), dnsmessage.RCodeFormatError},
		{"EDNS version", change(func(b []byte) []byte { b[11] = 1; return append(b, 0, 0, 41, 4, 0, 0, 1, 0, 0, 0, 0) }), 0}, // BADVERS: low bits 0, high bits in OPT
		{"status", change(func(b []byte) []byte { b[2] |= 2 << 3; return b }), dnsmessage.RCodeNotImplemented},
		{"update", change(func(b []byte) []byte { b[2] |= 5 << 3; return b }), dnsmessage.RCodeNotImplemented},
		{"class chaos", change(func(b []byte) []byte { b[len(b)-1] = 3; return b }), dnsmessage.RCodeRefused},
	} {
		m, b := answer(t, test.q)
		if m.RCode != test.code || !m.Response || test.name != "good" && (len(m.Answers) > 0 || len(b.asked) > 0) {
			t.Errorf("%s: %+v, asked %v", test.name, m, b.asked)
		}
	}
	for _, q := range [][]byte{nil, {1, 2, 3}, change(func(b []byte) []byte { b[2] |= 0x80; return b })} {
		if r := New(new(book)).Answer(t.Context(), q, netip.AddrPort{}, maxUDP, nil); r != nil {
			t.Errorf("answered %x", q)
		}
	}
}

func TestServe(t *testing.T) {
	for _, network := range []string{"udp4", "udp"} {
		c, err := net.ListenUDP(network, &net.UDPAddr{})
		if err != nil {
			t.Skip(err)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		s := New(names(safeBook{}))
		done := make(chan error, 2)
		go func() { done <- s.ServePacket(ctx, c) }()
		go func() { done <- s.ServeStream(ctx, l) }()
		port := c.LocalAddr().(*net.UDPAddr).Port
		// The reply must come from the very address that was asked; 127.0.0.2 is not the one that the kernel would choose.
		u, err := net.DialUDP("udp", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 2), Port: port})
		if err != nil {
			t.Fatal(err)
		}
		tcp, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		q := query(t, "good.example.com.", dnsmessage.TypeA, 0)
		buf := make([]byte, 600)
		_ = u.SetDeadline(time.Now().Add(3 * time.Second))
		_ = tcp.SetDeadline(time.Now().Add(3 * time.Second))
		_, _ = u.Write(q)
		if n, err := u.Read(buf); err != nil || n < len(q)+10 {
			t.Errorf("%s: %d bytes, %v", network, n, err)
		}
		for range 2 {
			_, _ = tcp.Write(append([]byte{0, byte(len(q))}, q...))
			if _, err := io.ReadFull(tcp, buf[:2]); err != nil {
				t.Error(err)
			} else if _, err := io.ReadFull(tcp, buf[:binary.BigEndian.Uint16(buf)]); err != nil {
				t.Error(err)
			}
		}
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		_, _ = u.Close(), tcp.Close()
	}
}

// safeBook is a book without a memory, for several goroutines.
type safeBook struct{}

func (safeBook) Lookup(ctx context.Context, h netname.Host, a netip.AddrPort) Reply {
	return new(book).Lookup(ctx, h, a)
}
func (safeBook) Reverse(a netip.Addr) (netname.Host, bool) { return new(book).Reverse(a) }

// FuzzAnswer: whatever is asked, the answer is a well-formed response to it within its bounds, and only the one allowed name has an address.
func FuzzAnswer(f *testing.F) {
	for _, name := range []string{"good.example.com.", "evil.example.", ".", "0.1.18.198.in-addr.arpa.", "localhost."} {
		f.Add(query(f, name, dnsmessage.TypeA, 0))
		f.Add(query(f, name, dnsmessage.TypeAAAA, 4096))
	}
	f.Fuzz(func(t *testing.T, q []byte) {
		raw := New(new(book)).Answer(t.Context(), q, netip.AddrPort{}, maxUDP, nil)
		if raw == nil {
			return
		}
		var m dnsmessage.Message
		if err := m.Unpack(raw); err != nil {
			t.Fatalf("%x -> %x: %v", q, raw, err)
		}
		if len(raw) > maxUDP || !m.Response || m.ID != binary.BigEndian.Uint16(q) {
			t.Fatalf("%x -> %+v", q, m)
		}
		for _, a := range m.Answers {
			name := strings.ToLower(a.Header.Name.String())
			local := name == "localhost." || strings.HasSuffix(name, ".localhost.")
			if name != "good.example.com." && !local && a.Header.Type != dnsmessage.TypePTR {
				t.Fatalf("%x: answered %s", q, name)
			}
		}
	})
}
