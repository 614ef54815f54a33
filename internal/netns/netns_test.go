package netns

import (
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
	heads := make([]byte, 1<<16)
	n, err := unix.Read(int(l.Refused.Fd()), heads)
	if err != nil || n < 40 {
		t.Errorf("heads of refused packets: %d bytes, %v", n, err)
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
		"ct state established,related accept", "ct status 0x20 accept", "counter name \"refused\"", "reject with tcp reset", "reject",
	} {
		if !strings.Contains(strings.ReplaceAll(string(out), "0x2,0x4", "established,related"), want) {
			t.Errorf("ruleset lacks %q", want)
		}
	}
	t.Logf("%s", out)
}
