package gateway

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// TestInNamespace is the whole door as a sandbox sees it: a network namespace with nothing but loopback, redirects by nftables, and
// the kernel's own original destination, un-NATed DNS replies and NFLOG.
func TestInNamespace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	for _, tool := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	port := serveTLS(t) // in the host's namespace: the gateway dials from there
	inside, ready, ended := make(chan func()), make(chan error), make(chan struct{})
	var l Listeners
	go func() {
		defer close(ended)
		runtime.LockOSThread() // never unlocked: the thread, and with it the namespace, ends with this goroutine
		ready <- enter(&l)
		for f := range inside {
			f()
			ready <- nil
		}
	}()
	if err := <-ready; err != nil {
		close(inside)
		t.Skip("no namespace:", err)
	}
	defer close(inside)
	b := start(t, allow(port, ""), nil)
	b.g.originalDestination = originalDestination
	b.zone.set("good.example.com", "127.0.0.1")
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- b.g.Serve(ctx, l) }()
	do := func(name string, f func(t *testing.T)) {
		t.Run(name, func(t *testing.T) {
			select {
			case inside <- func() { f(t) }:
			case <-ended: // a test before has ended it by Fatal
				t.FailNow()
			}
			select {
			case <-ready:
			case <-ended:
			}
		})
	}
	var v4, v6 netip.Addr
	do("dns", func(t *testing.T) {
		for _, network := range []string{"udp", "tcp"} {
			v4 = ask(t, network, "198.18.0.1", "good.example.com.", dnsmessage.TypeA)
			v6 = ask(t, network, "198.18.0.1", "good.example.com.", dnsmessage.TypeAAAA)
			if v4 != addressV4(firstIndex) || v6 != addressV6(firstIndex) {
				t.Errorf("%s: %v %v", network, v4, v6)
			}
		}
		// Whichever server is asked, this one answers.
		if a := ask(t, "udp", "9.9.9.9", "good.example.com.", dnsmessage.TypeA); a != v4 {
			t.Error(a)
		}
		if a := ask(t, "udp", "8.8.8.8", "secret.evil.example.", dnsmessage.TypeA); a.IsValid() {
			t.Error(a)
		}
	})
	do("allowed", func(t *testing.T) {
		for _, a := range []netip.Addr{v4, v6} {
			raw, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, port)))
			if err != nil {
				t.Error(err)
				continue
			}
			c := tls.Client(raw, &tls.Config{ServerName: "good.example.com", InsecureSkipVerify: true})
			_ = c.SetDeadline(time.Now().Add(3 * time.Second))
			if _, err := io.WriteString(c, "hello"); err != nil {
				t.Error(a, err)
			}
			got := make([]byte, 5)
			if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
				t.Error(a, string(got), err)
			}
			_ = c.Close()
		}
	})
	do("denied", func(t *testing.T) {
		for _, dest := range []string{"203.0.113.7:443", "169.254.169.254:80", "[2001:db8::7]:443", "198.18.99.99:443"} {
			resets(t, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(dest)))
			host, _, _ := net.SplitHostPort(dest)
			b.find(dest, func(e audit.Event) bool { return e.Verdict == "deny" && e.Address == host })
		}
		resets(t, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: l.TCP.Addr().(*net.TCPAddr).Port})
		b.deniedBy(RuleDirectListener)
	})
	do("udp", func(t *testing.T) {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(v4, 443)))
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		_, _ = c.Write([]byte("quic"))
		e := b.deniedBy(policy.RuleUDPClosed)
		if e.Host != "good.example.com" || e.Port != 443 {
			t.Errorf("%+v", e)
		}
	})
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// resets wants a connection to be reset at once; often connect(2) itself sees that already.
func resets(t *testing.T, to *net.TCPAddr) {
	t.Helper()
	c, err := net.DialTCP("tcp", nil, to)
	if errors.Is(err, unix.ECONNRESET) {
		return
	}
	if err != nil {
		t.Error(to, err)
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	if !isReset(c) {
		t.Error(to, "not reset")
	}
}

// enter moves the thread into a new network namespace and builds the room with one door.
func enter(l *Listeners) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	ctx := context.Background()
	run := func(stdin, name string, args ...string) error {
		cmd := exec.Command(name, args...)
		cmd.Stdin = strings.NewReader(stdin)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s %v: %w: %s", name, args, err, out)
		}
		return nil
	}
	if err := run("link set lo up\nroute add local default dev lo\nroute add local ::/0 dev lo\n", "ip", "-batch", "-"); err != nil {
		return err
	}
	tcp, err := lc.Listen(ctx, "tcp", "[::]:0")
	if err != nil {
		return err
	}
	stream, err := lc.Listen(ctx, "tcp", "[::]:0")
	if err != nil {
		return err
	}
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv6unspecified})
	if err != nil {
		return err
	}
	l.TCP, l.DNSStream, l.DNSPacket = tcp.(*net.TCPListener), stream, udp
	if l.Refused, err = logGroup(1); err != nil {
		return err
	}
	return run(fmt.Sprintf(`table inet door {
	chain nat {
		type nat hook output priority -100
		ip daddr 127.0.0.0/8 return
		ip6 daddr ::1 return
		udp dport 53 redirect to :%d
		tcp dport 53 redirect to :%d
		meta l4proto tcp redirect to :%d
	}
	chain refuse {
		type filter hook output priority 0
		ct status dnat accept
		ct direction reply accept
		ip daddr 127.0.0.0/8 accept
		ip6 daddr ::1 accept
		log group 1 counter reject
	}
}`, udp.LocalAddr().(*net.UDPAddr).Port, stream.Addr().(*net.TCPAddr).Port, tcp.Addr().(*net.TCPAddr).Port), "nft", "-f", "-")
}

// logGroup opens a netlink socket that receives the heads of the packets logged to a group, numbered.
func logGroup(group uint16) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	body := []byte{unix.AF_UNSPEC, 0, byte(group >> 8), byte(group)}
	attr := func(typ uint16, v ...byte) {
		body = binary.NativeEndian.AppendUint16(body, uint16(4+len(v)))
		body = append(binary.NativeEndian.AppendUint16(body, typ), v...)
		body = append(body, make([]byte, align4(len(body))-len(body))...)
	}
	attr(1, 1)                  // NFULA_CFG_CMD: bind
	attr(2, 0, 0, 0, 128, 2, 0) // NFULA_CFG_MODE: 128 bytes of each packet
	attr(6, 0, 1)               // NFULA_CFG_FLAGS: number them
	attr(4, 0, 0, 0, 0)         // NFULA_CFG_TIMEOUT: at once
	h := binary.NativeEndian.AppendUint32(nil, uint32(16+len(body)))
	h = binary.NativeEndian.AppendUint16(h, unix.NFNL_SUBSYS_ULOG<<8|1)
	h = binary.NativeEndian.AppendUint16(h, unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	h = append(h, make([]byte, 8)...)
	if err := unix.Sendto(fd, append(h, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "nflog"), nil
}

// ask puts one question to a server and returns the address in the answer.
func ask(t *testing.T, network, server, name string, typ dnsmessage.Type) netip.Addr {
	t.Helper()
	q := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 5, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET}},
	}
	raw, _ := q.Pack()
	buf := make([]byte, 1500)
	var n int
	var err error
	to := netip.AddrPortFrom(netip.MustParseAddr(server), 53)
	if network == "udp" {
		var c *net.UDPConn
		if c, err = net.DialUDP(network, nil, net.UDPAddrFromAddrPort(to)); err != nil {
			t.Error(err)
			return netip.Addr{}
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		_, _ = c.Write(raw)
		n, err = c.Read(buf)
	} else {
		var c *net.TCPConn
		if c, err = net.DialTCP(network, nil, net.TCPAddrFromAddrPort(to)); err != nil {
			t.Error(err)
			return netip.Addr{}
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		_, _ = c.Write(append([]byte{0, byte(len(raw))}, raw...))
		if _, err = io.ReadFull(c, buf[:2]); err == nil {
			n, err = io.ReadFull(c, buf[:binary.BigEndian.Uint16(buf)])
		}
	}
	var m dnsmessage.Message
	if err == nil {
		err = m.Unpack(buf[:n])
	}
	if err != nil {
		t.Errorf("%s %s %s: %v", network, server, name, err)
		return netip.Addr{}
	}
	for _, a := range m.Answers {
		switch body := a.Body.(type) {
		case *dnsmessage.AResource:
			return netip.AddrFrom4(body.A)
		case *dnsmessage.AAAAResource:
			return netip.AddrFrom16(body.AAAA)
		}
	}
	return netip.Addr{}
}
