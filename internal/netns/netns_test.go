package netns

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain runs this binary again as the inhabitant of a new namespace when asked to.
func TestMain(m *testing.M) {
	if os.Getenv("NETNS_CHILD") != "" {
		runtime.LockOSThread()
	}
	os.Exit(m.Run())
}

// inNewNamespace runs the calling test again inside a user and network namespace of its own and reports its result here.
func inNewNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv("NETNS_CHILD") == t.Name() {
		return true
	}
	cmd := exec.Command("/proc/self/exe", "-test.run", "^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "NETNS_CHILD="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) {
		t.Skipf("needs user namespaces: %v", err)
	}
	if err != nil {
		t.Errorf("in the namespace: %v", err)
	}
	return false
}

func TestRoom(t *testing.T) {
	if !inNewNamespace(t) {
		return
	}
	l, err := Setup(Config{Networks: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("2001:db8::/32")}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	listener, err := net.FileListener(l.TCP)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
	held := make(chan int)
	go func() { held <- refuseHeld(t, l) }()
	for _, c := range []struct {
		network, address string
		want             error // nil: lands in the listener
	}{
		{"tcp", "198.18.7.7:443", nil},
		{"tcp", "[fdcf:d0::7]:443", nil},
		{"tcp", "10.1.2.3:5432", nil},
		{"tcp", "[2001:db8::1]:1", nil},
		{"tcp", "10.2.0.1:5432", unix.ECONNREFUSED},
		{"tcp", "169.254.169.254:80", unix.ECONNREFUSED},
		{"tcp", "93.184.216.34:443", unix.ECONNREFUSED},
		{"tcp", "255.255.255.254:443", unix.ECONNREFUSED},
		{"tcp", "[2606:4700::1111]:443", unix.ECONNREFUSED},
		{"tcp", "[::ffff:169.254.169.254]:80", unix.ECONNREFUSED},
		{"tcp", "[fd00:ec2::254]:80", unix.ECONNREFUSED},
	} {
		start := time.Now()
		conn, err := net.DialTimeout(c.network, c.address, 2*time.Second)
		if !errors.Is(err, c.want) {
			t.Errorf("%s %s: %v, want %v", c.network, c.address, err, c.want)
		}
		if time.Since(start) > time.Second {
			t.Errorf("%s: took %v, want an answer at once", c.address, time.Since(start))
		}
		if err == nil {
			_ = conn.Close()
		}
	}
	for _, address := range []string{"8.8.8.8:443", "1.1.1.1:853", "[2606:4700::1111]:53", "224.0.0.251:5353"} {
		if err := sendTwice(address); err == nil {
			t.Errorf("udp %s: sent without an error", address)
		}
	}
	if n := <-held; n != 7+4 {
		t.Errorf("%d heads of held packets, want one for each of 7 refused connections and 4 datagrams", n)
	}
}

// refuseHeld resets the connections whose first packets are held, until none comes for a while, and returns how many packets were held.
func refuseHeld(t *testing.T, l Listeners) (held int) {
	b := make([]byte, 1<<16)
	for {
		wait := []unix.PollFd{{Fd: int32(l.Refused.Fd()), Events: unix.POLLIN}}
		if n, err := unix.Poll(wait, 500); n == 0 || err != nil && err != unix.EINTR {
			return held
		}
		n, err := l.Refused.Read(b)
		if err != nil {
			continue
		}
		var p []byte
		prefix := ""
		for rest := b[unix.SizeofNlMsghdr+4 : n]; len(rest) >= unix.SizeofNlAttr; { // behind nfgenmsg come attributes
			size := int(binary.NativeEndian.Uint16(rest))
			switch binary.NativeEndian.Uint16(rest[2:]) {
			case 9: // NFULA_PAYLOAD
				p = rest[unix.SizeofNlAttr:size]
			case 10: // NFULA_PREFIX
				prefix = unix.ByteSliceToString(rest[unix.SizeofNlAttr:size])
			}
			rest = rest[min((size+3)&^3, len(rest)):]
		}
		if prefix != Held || len(p) < 28 {
			t.Errorf("a packet was refused by the kernel, though few came: %q, %x", prefix, p)
			continue
		}
		held++
		if p[0] == 0x45 && p[9] == unix.IPPROTO_TCP {
			sendReset(t, l.Answer4, p[12:16], p[16:20], p[20:40])
		} else if p[0]>>4 == 6 && p[6] == unix.IPPROTO_TCP {
			sendReset(t, l.Answer6, p[8:24], p[24:40], p[40:60])
		}
	}
}

// sendReset answers a SYN by the raw socket.
func sendReset(t *testing.T, by *os.File, src, dst, syn []byte) {
	r := make([]byte, 20)
	copy(r, syn[2:4])
	copy(r[2:], syn[:2])
	binary.BigEndian.PutUint32(r[8:], binary.BigEndian.Uint32(syn[4:])+1)
	r[12], r[13] = 5<<4, 0x14 // RST, ACK
	sum := uint32(unix.IPPROTO_TCP + 20)
	for _, part := range [][]byte{src, dst, r} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(r[16:], ^uint16(sum))
	head, to := append([]byte{0x45, 0, 0, 40, 0, 0, 0, 0, 64, unix.IPPROTO_TCP, 0, 0}, append(bytes.Clone(dst), src...)...), unix.Sockaddr(nil)
	if len(src) == 4 {
		to = &unix.SockaddrInet4{Addr: [4]byte(src)}
	} else {
		head, to = append([]byte{0x60, 0, 0, 0, 0, 20, unix.IPPROTO_TCP, 64}, append(bytes.Clone(dst), src...)...), &unix.SockaddrInet6{Addr: [16]byte(src)}
	}
	if err := unix.Sendto(int(by.Fd()), append(head, r...), 0, to); err != nil {
		t.Errorf("send a refusal: %v", err)
	}
}

// TestRefusalsBeyondTheRate connects faster than the gateway is meant to answer: what is beyond, the kernel refuses, and counts all.
func TestRefusalsBeyondTheRate(t *testing.T) {
	if !inNewNamespace(t) {
		return
	}
	l, err := Setup(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const tries = 3000
	began, refused := time.Now(), 0
	for i := range tries {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: 443, Addr: [4]byte{203, 0, byte(i >> 8), byte(i)}}); err != unix.EINPROGRESS {
			t.Fatalf("connection %d: %v", i, err)
		}
		switch state, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); {
		case err != nil:
			t.Fatal(err)
		case state == int(unix.ECONNREFUSED):
			refused++
		case state != 0:
			t.Fatalf("connection %d: %v", i, unix.Errno(state))
		}
		_ = unix.Close(fd) // nothing was sent
	}
	most := heldBurst + int(heldRate*time.Since(began).Seconds()) + 1
	if held := tries - refused; held < heldBurst || held > most {
		t.Errorf("%d of %d connections wait for the gateway, want %d to %d", held, tries, heldBurst, most)
	}
	if out, err := exec.Command("nft", "list", "counter", "inet", TableName, RefusedCounter).CombinedOutput(); err == nil && !strings.Contains(string(out), "packets 3000 ") {
		t.Errorf("counted: %s", out)
	}
}

// TestMarksCannotBeForged tries what lets the gateway's refusals through, with the capabilities that root has inside a sandbox.
func TestMarksCannotBeForged(t *testing.T) {
	if !inNewNamespace(t) {
		return
	}
	l, err := Setup(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	mark := func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, answerMark); err != nil {
			return err
		}
		return unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{203, 0, 113, 9}})
	}
	if err := mark(); err != nil {
		t.Errorf("with all capabilities: %v", err)
	}
	header, sets := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
	if err := unix.Capget(&header, &sets[0]); err != nil {
		t.Fatal(err)
	}
	without := uint32(1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW)
	sets[0].Effective &^= without
	sets[0].Permitted &^= without
	if err := unix.Capset(&header, &sets[0]); err != nil {
		t.Fatal(err)
	}
	if err := mark(); !errors.Is(err, unix.EPERM) {
		t.Errorf("without the two: %v, want EPERM", err)
	}
}

// sendTwice sends two datagrams: the second meets the error that the first one caused.
func sendTwice(address string) error {
	conn, err := net.Dial("udp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	for range 2 {
		if _, err := conn.Write([]byte("x")); err != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil
}

// TestDNSAnyServer sends a datagram to an arbitrary server's port 53 and answers it from the planted socket.
func TestDNSAnyServer(t *testing.T) {
	if !inNewNamespace(t) {
		return
	}
	l, err := Setup(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	server, err := net.FilePacketConn(l.DNSPacket)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		b := make([]byte, 512)
		for {
			n, peer, err := server.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(b[:n], peer) // the client's timeout tells
		}
	}()
	for _, address := range []string{"8.8.8.8:53", "198.18.0.1:53", "9.9.9.9:53"} {
		conn, err := net.Dial("udp", address)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(2 * time.Second)) // on a fresh socket it cannot fail
		if _, err := conn.Write([]byte("question")); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, 512)
		if n, err := conn.Read(answer); err != nil || string(answer[:n]) != "question" {
			t.Errorf("%s: answer %q, %v", address, answer[:n], err)
		}
		_ = conn.Close()
	}
}

// TestRuleset reads the installed rules back with the nft tool, so that a mistake in the low-level expressions is seen in plain words.
func TestRuleset(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs the nft tool")
	}
	if !inNewNamespace(t) {
		return
	}
	l, err := Setup(Config{Networks: []netip.Prefix{netip.MustParsePrefix("10.1.2.3/16")}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	out, err := exec.Command("nft", "-n", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
	for _, want := range []string{
		"type nat hook output priority -100", "ip daddr 127.0.0.0/8 return", "ip6 daddr ::1 return", "ip daddr 198.18.0.2 return",
		"udp dport 53 redirect to", "ip daddr 198.18.0.0/15 redirect to", "ip6 daddr fdcf:d0::/96 redirect to", "ip daddr 10.1.0.0/16 redirect to",
		"ct state established,related accept", "ct status 0x20 accept", "meta mark 0x0000cf0d accept", "counter name \"refused\"",
		"limit rate 200/second burst 500 packets log prefix \"held\" group 1 snaplen 128 drop", "reject with tcp reset", "reject",
	} {
		if !strings.Contains(strings.ReplaceAll(string(out), "0x2,0x4", "established,related"), want) {
			t.Errorf("ruleset lacks %q", want)
		}
	}
	t.Logf("%s", out)
}
