package netns

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// outside runs f on a thread of its own in the namespace of the sandbox's end of the cable.
func outside(t *testing.T, inside *os.File, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		err := unix.Setns(int(inside.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestDevice speaks to the room from the other end of the cable, as a network stack of the sandbox's own does.
func TestDevice(t *testing.T) {
	if !inNewNamespace(t) {
		return
	}
	l, inside, err := SetupDevice(Config{Networks: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	defer inside.Close()
	listener, err := net.FileListener(l.TCP)
	if err != nil {
		t.Fatal(err)
	}
	peers := make(chan string, 100)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			peers <- conn.RemoteAddr().String()
			_ = conn.Close()
		}
	}()
	held := make(chan int)
	go func() { held <- refuseHeld(t, l) }()
	outside(t, inside, func() {
		for _, c := range []struct {
			address string
			want    error // nil: lands in the listener
		}{
			{"198.18.7.7:443", nil}, {"198.18.0.1:1", nil}, {"[fdcf:d0::7]:443", nil}, {"10.1.2.3:5432", nil},
			{"10.2.0.1:5432", unix.ECONNREFUSED}, {"169.254.169.254:80", unix.ECONNREFUSED}, {"93.184.216.34:443", unix.ECONNREFUSED}, {"[2606:4700::1111]:443", unix.ECONNREFUSED},
		} {
			conn, err := net.DialTimeout("tcp", c.address, 2*time.Second)
			if !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", c.address, err, c.want)
			}
			if err == nil {
				_ = conn.Close()
				if from := <-peers; !strings.HasPrefix(from, Own4.String()+":") && !strings.HasPrefix(from, "["+Own6.String()+"]") && !strings.HasPrefix(from, "[::ffff:"+Own4.String()+"]") {
					t.Errorf("%s: arrives from %s", c.address, from)
				}
			}
		}
		question, err := net.Dial("udp", "8.8.8.8:53")
		if err != nil {
			t.Error(err)
			return
		}
		defer question.Close()
		if _, err := question.Write([]byte("a question")); err != nil {
			t.Error(err)
		}
	})
	if n := <-held; n != 4 {
		t.Errorf("%d heads of held packets, want one for each of 4 refused connections", n)
	}
	asked := make([]byte, 100)
	if n, from, err := unix.Recvfrom(int(l.DNSPacket.Fd()), asked, unix.MSG_DONTWAIT); err != nil || string(asked[:n]) != "a question" {
		t.Errorf("the DNS socket got %q from %v, %v", asked[:max(n, 0)], from, err)
	}
}

// receivedWithin waits for a datagram of one byte.
func receivedWithin(socket *os.File, within time.Duration) (from unix.Sockaddr, ok bool) {
	fd := int(socket.Fd())
	for end := time.Now().Add(within); ; time.Sleep(time.Millisecond) {
		n, from, err := unix.Recvfrom(fd, make([]byte, 100), unix.MSG_DONTWAIT)
		if err == nil || time.Now().After(end) {
			return from, err == nil && n == 1
		}
	}
}

// TestForgedFrames writes whole frames, as whoever has taken a network stack over can: what does not come from the sandbox's own address is dropped, and on record.
func TestForgedFrames(t *testing.T) {
	if !inNewNamespace(t) {
		return
	}
	l, inside, err := SetupDevice(Config{Everything: true})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	defer inside.Close()
	frame := func(from string) []byte { // a datagram to a name server
		source, dest := netip.MustParseAddr(from).As4(), netip.MustParseAddr("8.8.8.8").As4()
		p := append([]byte{}, doorMAC...)
		p = append(append(p, insideMAC...), 0x08, 0x00)
		head := []byte{0x45, 0, 0, 29, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
		head = append(append(head, source[:]...), dest[:]...)
		sum := uint32(0)
		for i := 0; i < len(head); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(head[i:]))
		}
		for sum > 0xffff {
			sum = sum>>16 + sum&0xffff
		}
		binary.BigEndian.PutUint16(head[10:], ^uint16(sum))
		return append(append(p, head...), 0x30, 0x39, 0, 53, 0, 9, 0, 0, 'x') // without a checksum
	}
	send := func(from string) {
		outside(t, inside, func() {
			fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer unix.Close(fd)
			if err := unix.Sendto(fd, frame(from), 0, &unix.SockaddrLinklayer{Ifindex: deviceIndex}); err != nil {
				t.Error(err)
			}
		})
	}
	arrived := func(within time.Duration) bool {
		_, ok := receivedWithin(l.DNSPacket, within)
		return ok
	}
	send(Own4.String())
	if !arrived(5 * time.Second) {
		t.Error("control: an honest frame does not arrive")
	}
	b := make([]byte, 1<<16)
	for _, from := range []string{"198.18.0.1", "198.18.0.3", "127.0.0.1", "10.0.0.1", "8.8.8.8", "0.0.0.0", "255.255.255.255"} {
		send(from)
		if arrived(20 * time.Millisecond) { // what is dropped never comes
			t.Errorf("a frame from %s was believed", from)
		}
		if n, err := unix.Read(int(l.Refused.Fd()), b); err != nil || n < 20 {
			t.Errorf("a frame from %s is not on record: %v", from, err)
		}
	}
}
