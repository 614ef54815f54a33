package netns

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// vnetHeader is the length in bytes of struct virtio_net_hdr; zeros say that a frame is one packet with its checksum.
const vnetHeader = 10

// datagram is a frame to a name server's port, from an address, as a machine would write it.
func datagram(from, to string) []byte {
	source, dest := netip.MustParseAddr(from).As4(), netip.MustParseAddr(to).As4()
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
	p := append(append(make([]byte, vnetHeader), doorMAC...), insideMAC...)
	p = append(append(p, 0x08, 0x00), head...)
	return append(p, 0x30, 0x39, 0, 53, 0, 9, 0, 0, 'x') // from port 12345, without a checksum
}

// TestTap speaks to the room through a machine's device.
func TestTap(t *testing.T) {
	if !inNewNamespace(t) {
		return
	}
	if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
		t.Skipf("needs /dev/net/tun: %v", err)
	} else {
		_ = f.Close() // nothing was made
	}
	l, wire, err := SetupTap(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	send := func(p []byte) {
		t.Helper()
		if _, err := unix.Write(int(wire.Fd()), p); err != nil {
			t.Fatal(err)
		}
	}
	arrived := func() (unix.Sockaddr, bool) {
		return receivedWithin(l.DNSPacket, 20*time.Millisecond) // what is dropped never comes
	}
	send(datagram(Own4.String(), "8.8.8.8"))
	from, ok := receivedWithin(l.DNSPacket, 5*time.Second)
	if !ok {
		t.Fatal("an honest frame does not arrive")
	}
	for _, forged := range []string{"198.18.0.1", "198.18.0.3", "127.0.0.1", "10.0.0.1", "8.8.8.8", "0.0.0.0", "255.255.255.255"} {
		send(datagram(forged, "8.8.8.8"))
		if _, ok := arrived(); ok {
			t.Errorf("a frame from %s was believed", forged)
		}
		if n, err := unix.Read(int(l.Refused.Fd()), make([]byte, 1<<16)); err != nil || n < 20 {
			t.Errorf("a frame from %s is not on record: %v", forged, err)
		}
	}
	for _, broken := range [][]byte{datagram(Own4.String(), "8.8.8.8")[:vnetHeader+20], append(make([]byte, vnetHeader), bytes.Repeat([]byte{0xff}, 100)...)} {
		send(broken)
		if _, ok := arrived(); ok {
			t.Error("a broken frame was believed")
		}
	}
	// The answer comes as a frame to the machine's own address: nobody was asked for it.
	if err := unix.Sendto(int(l.DNSPacket.Fd()), []byte("an answer"), 0, from); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(int(wire.Fd()), true); err != nil {
		t.Fatal(err)
	}
	frame := make([]byte, 2000)
	for range 100 {
		n, err := unix.Read(int(wire.Fd()), frame)
		if err != nil {
			t.Fatalf("no answer on the wire: %v", err)
		}
		if bytes.HasSuffix(frame[:n], []byte("an answer")) {
			break
		}
	}
	if got := frame[vnetHeader:]; !bytes.Equal(got[:6], insideMAC) || !bytes.Equal(got[6:12], doorMAC) || !bytes.Equal(got[vnetHeader+16:vnetHeader+20], []byte{8, 8, 8, 8}) {
		t.Errorf("the answer is % x", got[:60])
	}
	_ = wire.Close() // the device goes with it
	name, err := unix.NewIfreq(DoorName)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlIfreq(int(l.DNSPacket.Fd()), unix.SIOCGIFINDEX, name); err != unix.ENODEV {
		t.Errorf("the device outlives its holder: %v", err)
	}
}
