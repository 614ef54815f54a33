package gateway

import (
	"encoding/binary"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// ip4 is an IPv4 packet with the ports of 1234 and 443 behind a head of the given length.
func ip4(protocol byte, src, dst string, words int) []byte {
	b := make([]byte, words*4+8)
	b[0], b[9] = 0x40|byte(words), protocol
	copy(b[12:], netip.MustParseAddr(src).AsSlice())
	copy(b[16:], netip.MustParseAddr(dst).AsSlice())
	binary.BigEndian.PutUint16(b[words*4:], 1234)
	binary.BigEndian.PutUint16(b[words*4+2:], 443)
	return b
}

// ip6 is an IPv6 packet with the extension headers given before its ports.
func ip6(first, protocol byte, dst string, extensions ...byte) []byte {
	b := make([]byte, 40)
	b[0], b[6] = 0x60, first
	copy(b[8:], netip.MustParseAddr("2001:db8::2").AsSlice())
	copy(b[24:], netip.MustParseAddr(dst).AsSlice())
	return append(append(b, extensions...), 0x04, 0xd2, 0x01, 0xbb, 0, 0, 0, 0)
}

// logged wraps packets as the kernel does, numbered from seq.
func logged(seq uint32, packets ...[]byte) []byte {
	attr := func(typ uint16, body []byte) []byte {
		b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(body)))
		b = append(binary.NativeEndian.AppendUint16(b, typ), body...)
		return append(b, make([]byte, align4(len(b))-len(b))...)
	}
	var out []byte
	for i, p := range packets {
		body := []byte{unix.AF_INET, 0, 0, 1}
		body = append(body, attr(1, make([]byte, 4))...)
		body = append(body, attr(10, []byte("cofferdam\x00"))...)
		body = append(body, attr(nfulaBody, p)...)
		body = append(body, attr(nfulaSeq, binary.BigEndian.AppendUint32(nil, seq+uint32(i)))...)
		h := binary.NativeEndian.AppendUint32(nil, uint32(16+len(body)))
		h = binary.NativeEndian.AppendUint16(h, nflogPacket)
		out = append(append(out, append(h, make([]byte, 10)...)...), body...)
	}
	return out
}

func TestParseLog(t *testing.T) {
	for _, test := range []struct {
		name     string
		packet   []byte
		protocol policy.Protocol
		dst      string
	}{
		{"tcp", ip4(6, "198.51.100.1", "203.0.113.9", 5), policy.TCP, "203.0.113.9:443"},
		{"options", ip4(6, "198.51.100.1", "203.0.113.9", 8), policy.TCP, "203.0.113.9:443"},
		{"udp", ip4(17, "198.51.100.1", "8.8.8.8", 5), policy.UDP, "8.8.8.8:443"},
		{"icmp", ip4(1, "198.51.100.1", "8.8.8.8", 5), policy.ICMP, "8.8.8.8:0"},
		{"sctp", ip4(132, "198.51.100.1", "8.8.8.8", 5), policy.Other, "8.8.8.8:443"},
		{"gre", ip4(47, "198.51.100.1", "8.8.8.8", 5), policy.Other, "8.8.8.8:0"},
		{"cut before the ports", ip4(6, "198.51.100.1", "8.8.8.8", 5)[:20], policy.TCP, "8.8.8.8:0"},
		{"v6 udp", ip6(17, 17, "2001:db8::9"), policy.UDP, "[2001:db8::9]:443"},
		{"v6 extensions", ip6(0, 17, "2001:db8::9", 60, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0), policy.UDP, "[2001:db8::9]:443"},
		{"v6 first fragment", ip6(44, 6, "2001:db8::9", 6, 0, 0, 1, 0, 0, 0, 0), policy.TCP, "[2001:db8::9]:443"},
		{"v6 icmp", ip6(58, 58, "2001:db8::9"), policy.ICMP, "[2001:db8::9]:0"},
	} {
		n := 0
		err := parseLog(logged(1, test.packet), func(f flow) {
			n++
			if f.protocol != test.protocol || f.dst.String() != test.dst || f.seq != 1 || !f.hasSeq {
				t.Errorf("%s: %+v", test.name, f)
			}
		})
		if err != nil || n != 1 {
			t.Errorf("%s: %d flows, %v", test.name, n, err)
		}
	}
	for name, packet := range map[string][]byte{"empty": {}, "short": {0x45, 0, 0}, "head of 4 bytes": append([]byte{0x41}, make([]byte, 30)...), "version 5": make([]byte, 60)} {
		if err := parseLog(logged(1, packet), func(f flow) { t.Errorf("%s: %+v", name, f) }); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzParseLog: nothing panics, and no flow has a protocol that policy would allow by an address's rule alone.
func FuzzParseLog(f *testing.F) {
	f.Add(logged(1, ip4(6, "198.51.100.1", "203.0.113.9", 5), ip6(0, 17, "2001:db8::9", 60, 0, 0, 0, 0, 0, 0, 0)))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		_ = parseLog(b, func(f flow) {
			if n++; !f.dst.Addr().IsValid() || f.protocol == policy.Unknown {
				t.Fatalf("%+v", f)
			}
		})
		if n > len(b)/16 {
			t.Fatalf("%d flows in %d bytes", n, len(b))
		}
	})
}

// TestServeRefused feeds the log through a datagram socket, as the kernel does through netlink, blocking descriptor included.
func TestServeRefused(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	b := start(t, allow(443, ""), nil)
	ctx, done := t.Context(), make(chan error, 1)
	go func() { done <- b.g.serveRefused(ctx, Listeners{Refused: os.NewFile(uintptr(fds[0]), "nflog")}) }()
	b.g.Lookup(ctx, "good.example.com", netip.AddrPort{})
	for _, m := range [][]byte{
		logged(10, ip4(17, "198.51.100.1", "8.8.8.8", 5), ip4(1, "198.51.100.1", "8.8.8.8", 5), ip4(6, "198.51.100.1", "203.0.113.9", 5), ip4(47, "198.51.100.1", "8.8.8.8", 5)),
		logged(21, ip4(17, "198.51.100.1", "198.18.1.0", 5)), // seven were lost; this one is QUIC to an allowed name
	} {
		if _, err := unix.Write(fds[1], m); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []struct{ rule, protocol, address, host string }{
		{policy.RuleUDPClosed, "udp", "8.8.8.8", ""}, {policy.RuleICMPClosed, "icmp", "8.8.8.8", ""}, {policy.RuleProtocolClosed, "other", "8.8.8.8", ""},
		{policy.RuleUDPClosed, "udp", "", "good.example.com"}, {"", "tls", "203.0.113.9", ""},
	} {
		b.find(want.rule, func(e audit.Event) bool {
			return e.Verdict == "deny" && (e.Rule == want.rule || want.rule == "" && e.Rule != "") && e.Protocol == want.protocol && e.Address == want.address && e.Host == want.host
		})
	}
	b.find("lost", func(e audit.Event) bool { return e.Count == 7 && e.Verdict == "deny" })
	select {
	case err := <-done:
		t.Fatal(err)
	case <-time.After(10 * time.Millisecond):
	}
}
