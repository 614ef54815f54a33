package gateway

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/audit"
)

// segment is a TCP header with an option, followed by data.
func segment(flags byte, data string) []byte {
	b := make([]byte, 24, 24+len(data))
	copy(b, []byte{0x04, 0xd2, 0x01, 0xbb}) // 1234 to 443
	binary.BigEndian.PutUint32(b[4:], 1000)
	binary.BigEndian.PutUint32(b[8:], 77)
	b[12], b[13] = 24/4<<4, flags
	return append(b, data...)
}

// packet4 and packet6 put a segment into an IP packet with its length.
func packet4(protocol byte, src, dst string, segment []byte) []byte {
	b := append(ip4(protocol, src, dst, 5)[:20], segment...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	return b
}

func packet6(protocol byte, src, dst string, segment []byte) []byte {
	b := append(ip6(protocol, protocol, dst)[:40], segment...)
	copy(b[8:], netip.MustParseAddr(src).AsSlice())
	binary.BigEndian.PutUint16(b[4:], uint16(len(segment)))
	return b
}

func TestRefusal(t *testing.T) {
	const in4, out4, in6, out6 = "198.18.0.2", "203.0.113.9", "fdcf:d0::2", "2001:db8::9"
	later := packet4(6, in4, out4, segment(tcpSYN, ""))
	later[7] = 9 // a later fragment
	echo4, echo6 := []byte{8, 0, 0, 0, 0, 7, 0, 1}, []byte{128, 0, 0, 0, 0, 7, 0, 1}
	const syn, acked, finned = "01bb04d200000000000003e95014", "01bb04d20000004d000000005004", "01bb04d200000000000003ee5014"
	for _, test := range []struct {
		name   string
		packet []byte
		want   string // the beginning of the part behind the IP header, in hex; empty: no answer
	}{
		{"syn", packet4(6, in4, out4, segment(tcpSYN, "")), syn},
		{"syn, IPv6", packet6(6, in6, out6, segment(tcpSYN, "")), syn},
		{"syn with data, and its end", packet4(6, in4, out4, segment(tcpSYN|tcpFIN, "abcd")), finned},
		{"segment of a lost connection", packet4(6, in4, out4, segment(tcpACK, "abcd")), acked},
		{"reset", packet4(6, in4, out4, segment(tcpRST, "")), ""},
		{"reset that acknowledges, IPv6", packet6(6, in6, out6, segment(tcpRST|tcpACK, "")), ""},
		{"header that is cut", packet4(6, in4, out4, segment(tcpSYN, "")[:16]), ""},
		{"header longer than the packet", packet4(6, in4, out4, segment(tcpSYN, "")[:20]), ""},
		{"later fragment", later, ""},
		{"datagram", packet4(17, in4, out4, []byte("\x04\xd2\x01\xbb\x00\x09\x00\x00x")), "0303"},
		{"datagram, IPv6", packet6(17, in6, out6, []byte("\x04\xd2\x01\xbb\x00\x09\x00\x00x")), "0104"},
		{"unknown protocol", packet4(47, in4, out4, []byte("tunnel")), "0303"},
		{"echo", packet4(1, in4, out4, echo4), "0303"},
		{"echo, IPv6", packet6(58, in6, out6, echo6), "0104"},
		{"unreachable", packet4(1, in4, out4, []byte{3, 3, 0, 0, 0, 0, 0, 0}), ""},
		{"time exceeded", packet4(1, in4, out4, []byte{11, 0, 0, 0, 0, 0, 0, 0}), ""},
		{"redirect, IPv6", packet6(58, in6, out6, []byte{137, 0, 0, 0, 0, 0, 0, 0}), ""},
		{"unreachable, IPv6", packet6(58, in6, out6, []byte{1, 4, 0, 0, 0, 0, 0, 0}), ""},
		{"empty ICMP", packet4(1, in4, out4, nil), ""},
		{"to many", packet4(17, in4, "224.0.0.251", make([]byte, 8)), ""},
		{"to all", packet4(17, in4, "255.255.255.255", make([]byte, 8)), ""},
		{"to many, IPv6", packet6(17, in6, "ff02::fb", make([]byte, 8)), ""},
		{"from nobody", packet4(17, "0.0.0.0", out4, make([]byte, 8)), ""},
		{"from many", packet4(17, "224.0.0.1", out4, make([]byte, 8)), ""},
		{"IPv4 written as IPv6", packet6(17, "::ffff:198.18.0.2", "::ffff:203.0.113.9", make([]byte, 8)), ""},
	} {
		f, ok := parsePacket(test.packet)
		if !ok {
			t.Errorf("%s: not understood", test.name)
			continue
		}
		got := f.refusal()
		if test.want == "" {
			if got != nil {
				t.Errorf("%s: answered with %x", test.name, got)
			}
			continue
		}
		back, ok := parsePacket(got)
		if !ok || !strings.HasPrefix(hex.EncodeToString(back.segment), test.want) {
			t.Errorf("%s: answered with %x, want %s", test.name, got, test.want)
			continue
		}
		sound(t, f, got)
	}
}

// sound checks what holds for every refusal: it goes back, its lengths and sums are right, it quotes what it is about, and it provokes none itself.
func sound(t *testing.T, f flow, refusal []byte) {
	t.Helper()
	back, ok := parsePacket(refusal)
	switch {
	case !ok || back.src.Addr() != f.dst.Addr() || back.dst.Addr() != f.src.Addr() || back.length != len(back.segment):
		t.Fatalf("refusal %x of %x", refusal, f.packet)
	case back.refusal() != nil:
		t.Fatalf("the refusal %x would be refused by %x", refusal, back.refusal())
	case len(refusal) > ipv6Header+icmpHeader+maxQuoted:
		t.Fatalf("refusal of %d bytes", len(refusal))
	case back.number != 6 && !bytes.HasPrefix(f.packet, back.segment[icmpHeader:]):
		t.Fatalf("quotes %x of %x", back.segment[icmpHeader:], f.packet)
	}
	sum := uint32(0)
	if back.number != 1 {
		sum = back.pseudo(back.number, len(back.segment))
	}
	if checksum(sum, back.segment) != 0 || f.src.Addr().Is4() && checksum(0, refusal[:ipv4Header]) != 0 {
		t.Fatalf("sums of %x", refusal)
	}
}

// FuzzRefusal: whatever a sandbox sends, the refusal is sound, and nothing panics.
func FuzzRefusal(f *testing.F) {
	f.Add(packet4(6, "198.18.0.2", "203.0.113.9", segment(tcpSYN, "data")))
	f.Add(packet6(58, "fdcf:d0::2", "2001:db8::9", []byte{128, 0, 0, 0, 0, 7, 0, 1}))
	f.Add(ip6(0, 17, "2001:db8::9", 60, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, ok := parsePacket(b)
		if !ok {
			return
		}
		_ = p.query()
		if refusal := p.refusal(); refusal != nil {
			sound(t, p, refusal)
		}
	})
}

// TestHeld lets the kernel drop everything, and the gateway refuse it: each program learns so at once, by the error that the kernel's own reject gives it.
func TestHeld(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	for _, tool := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	b := start(t, allow(443, ""), nil)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // never unlocked: the thread, and with it the namespace, ends with this goroutine
		var l Listeners
		if err := enterHeld(&l); err != nil {
			t.Error("no namespace:", err)
			return
		}
		served := make(chan error, 1)
		go func() { served <- b.g.serveRefused(t.Context(), l) }()
		for _, to := range []string{"203.0.113.9:22", "[2001:db8::9]:22"} {
			refusedAtOnce(t, "tcp", to, unix.ECONNREFUSED)
			refusedAtOnce(t, "udp", to, unix.EPERM, unix.ECONNREFUSED)
		}
		pingRefused(t)
		select {
		case err := <-served:
			t.Error(err)
		default:
		}
	}()
	<-ended
	for _, want := range []struct {
		protocol, address string
		port              uint16
	}{{"tcp", "203.0.113.9", 22}, {"tcp", "2001:db8::9", 22}, {"udp", "203.0.113.9", 22}, {"udp", "2001:db8::9", 22}, {"icmp", "203.0.113.9", 0}} {
		b.find(want.protocol, func(e audit.Event) bool {
			return e.Verdict == "deny" && e.Protocol == want.protocol && e.Address == want.address && e.Port == want.port
		})
	}
}

// refusedAtOnce wants the errors given: a datagram's sender learns first of the drop, and then of the refusal.
func refusedAtOnce(t *testing.T, network, to string, want ...error) {
	t.Helper()
	began := time.Now()
	c, err := net.DialTimeout(network, to, 3*time.Second)
	got := []error{err}
	if err == nil {
		defer c.Close()
		_ = c.SetDeadline(began.Add(3 * time.Second))
		_, sent := c.Write([]byte("x"))
		_, read := c.Read(make([]byte, 1))
		got = []error{sent, read}
	}
	for i, err := range got {
		if !errors.Is(err, want[i]) {
			t.Errorf("%s %s: error %d is %v, want %v", network, to, i, err, want[i])
		}
	}
	if took := time.Since(began); took > 500*time.Millisecond {
		t.Errorf("%s %s: took %v", network, to, took)
	}
}

// pingRefused sends an echo request from a raw socket.
func pingRefused(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil {
		t.Error(err)
		return
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{203, 0, 113, 9}}); err != nil {
		t.Error(err)
	}
	if _, err := unix.Write(fd, []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}); !errors.Is(err, unix.EPERM) {
		t.Error("ping:", err)
	}
}

// enterHeld moves the thread into a new network namespace where everything is dropped and logged as held.
func enterHeld(l *Listeners) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	for _, c := range [][2]string{{"ip", "link set lo up\naddr add 198.18.0.2/32 dev lo\naddr add fdcf:d0::2/128 dev lo nodad\nroute add local default dev lo src 198.18.0.2\nroute add local ::/0 dev lo src fdcf:d0::2\n"},
		{"nft", "table inet t {\nchain c {\ntype filter hook output priority 0\nmeta mark 77 accept\nlog prefix \"held\" group 1 snaplen 128 drop\n}\n}\n"}} {
		args := []string{"-batch", "-"}
		if c[0] == "nft" {
			args = []string{"-f", "-"}
		}
		cmd := exec.Command(c[0], args...)
		cmd.Stdin = strings.NewReader(c[1])
		if out, err := cmd.CombinedOutput(); err != nil {
			return errors.New(c[0] + ": " + string(out))
		}
	}
	var err error
	if l.Refused, err = logGroup(1); err != nil {
		return err
	}
	for family, to := range map[int]**os.File{unix.AF_INET: &l.Answer4, unix.AF_INET6: &l.Answer6} {
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 77); err != nil {
			return err
		}
		*to = os.NewFile(uintptr(fd), "answers")
	}
	return nil
}
