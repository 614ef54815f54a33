package runner

import (
	"io"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func TestParseKernelAddr(t *testing.T) {
	tests := []struct{ in, want string }{ // as a little-endian kernel prints them
		{"0100007F:0050", "127.0.0.1:80"},
		{"00000000:0000", "0.0.0.0:0"},
		{"00000000000000000000000001000000:1F90", "[::1]:8080"},
		{"0000000000000000FFFF00000100007F:01BB", "127.0.0.1:443"},
		{"0100007F", ""}, {"0100007F:", ""}, {"0100007F:10000", ""}, {"0100007G:0050", ""}, {"01:0050", ""}, {"", ""}, {":", ""},
		{"0100007F0100007F:0050", ""},
	}
	for _, test := range tests {
		got, err := parseKernelAddr(test.in)
		if (err == nil) != (test.want != "") || err == nil && got.String() != test.want {
			t.Errorf("parseKernelAddr(%q) = %v, %v, want %q", test.in, got, err, test.want)
		}
	}
}

func TestMatchLine(t *testing.T) {
	const (
		tcp  = "   3: 0100007F:C350 010012C6:01BB 01 00000000:00000000 00:00000000 00000000  1000        0 4242 1 0000000000000000 20 4 30 10 -1"
		gone = "   3: 0100007F:C350 010012C6:01BB 06 00000000:00000000 00:00000000 00000000  1000        0 0 1 0000000000000000 20 4 30 10 -1"
		syn  = "   1: 020012C6:A8E8 00000000:0000 02 00000000:00000000 00:00000000 00000000     0        0        2 1 0000000000000000 0 0 0 0 -1"
		wait = "   1: 020012C6:A8E8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0        2 1 0000000000000000 0 0 0 0 -1"
		any4 = "  12: 00000000:C350 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 77 2 0000000000000000 0"
		any6 = "  12: 00000000000000000000000000000000:C350 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 78 2 0000000000000000 0"
	)
	tests := []struct {
		name, src, dst, line string
		udp                  bool
		want                 string
	}{
		{"tcp", "127.0.0.1:50000", "198.18.0.1:443", tcp, false, "4242"},
		{"tcp, mapped", "[::ffff:127.0.0.1]:50000", "[::ffff:198.18.0.1]:443", tcp, false, "4242"},
		{"tcp, any destination", "127.0.0.1:50000", "", tcp, false, "4242"},
		{"tcp, other source port", "127.0.0.1:50001", "198.18.0.1:443", tcp, false, ""},
		{"tcp, other source", "127.0.0.2:50000", "198.18.0.1:443", tcp, false, ""},
		{"tcp, other destination", "127.0.0.1:50000", "198.18.0.1:80", tcp, false, ""},
		{"tcp, closed", "127.0.0.1:50000", "198.18.0.1:443", gone, false, ""},
		{"tcp does not match unbound", "127.0.0.1:50000", "198.18.0.1:443", any4, false, ""},
		{"tcp, connecting, gVisor", "198.18.0.2:43240", "203.0.113.7:80", syn, false, "2"},
		{"tcp, connecting from elsewhere, gVisor", "198.18.0.3:43240", "203.0.113.7:80", syn, false, ""},
		{"tcp, listening", "198.18.0.2:43240", "203.0.113.7:80", wait, false, ""},
		{"udp, unbound", "127.0.0.1:50000", "192.0.2.1:443", any4, true, "77"},
		{"udp, unbound dual stack", "127.0.0.1:50000", "192.0.2.1:443", any6, true, "78"},
		{"udp, other port", "127.0.0.1:50001", "192.0.2.1:443", any4, true, ""},
		{"heading", "127.0.0.1:50000", "", "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode", false, ""},
		{"nothing", "127.0.0.1:50000", "", "", false, ""},
	}
	for _, test := range tests {
		m := match{datagram: test.udp, src: unmap(netip.MustParseAddrPort(test.src))}
		if test.dst != "" {
			m.dst = unmap(netip.MustParseAddrPort(test.dst))
		}
		if got, ok := m.line(test.line); got != test.want || ok != (test.want != "") {
			t.Errorf("%s: got %q, %v, want %q", test.name, got, ok, test.want)
		}
	}
}

// What is asked for is found in the tables where it can be, and nothing else is.
func TestLooks(t *testing.T) {
	const (
		echo  = "  1: 00000000:0007 00000000:0000 07 00000000:00000000 00:00000000 00000000  1000        0 11 2 0000000000000000 0"
		tied  = "  1: 020012C6:0007 097100CB:0401 01 00000000:00000000 00:00000000 00000000  1000        0 12 2 0000000000000000 0"
		echo6 = "  1: 00000000000000000000000000000000:0007 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000  0        0 13 2 0000000000000000 0"
		raw   = "  1: 00000000:0001 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 14 2 0000000000000000 0"
		raw6  = " 58: 00000000000000000000000000000000:003A 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000  0        0 15 2 0000000000000000 0"
		own   = "  1: 00000000:00FF 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 16 2 0000000000000000 0"
		gre   = "  1: 00000000:002F 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 17 2 0000000000000000 0"
	)
	tests := []struct{ name, network, src, dst, table, line, want string }{
		{"ping", "icmp", "198.18.0.2:7", "203.0.113.9:0", "icmp", echo, "11"},
		{"ping, connected", "icmp", "198.18.0.2:7", "203.0.113.9:0", "icmp", tied, "12"},
		{"ping, connected elsewhere", "icmp", "198.18.0.2:7", "203.0.113.8:0", "icmp", tied, ""},
		{"another's ping", "icmp", "198.18.0.2:8", "203.0.113.9:0", "icmp", echo, ""},
		{"ping, IPv6", "icmp", "[fdcf:d0::2]:7", "[2001:db8::9]:0", "icmp", echo6, "13"},
		{"ping by a raw socket", "icmp", "198.18.0.2:7", "203.0.113.9:0", "raw", raw, "14"},
		{"ping by a raw socket, IPv6", "icmp", "[fdcf:d0::2]:7", "[2001:db8::9]:0", "raw", raw6, "15"},
		{"ping by a socket for whole packets", "icmp", "198.18.0.2:7", "203.0.113.9:0", "raw", own, "16"},
		{"another protocol", "raw", "198.18.0.2:47", "203.0.113.9:0", "raw", gre, "17"},
		{"yet another protocol", "raw", "198.18.0.2:46", "203.0.113.9:0", "raw", gre, ""},
		{"unknown kind", "unix", "198.18.0.2:47", "203.0.113.9:0", "raw", gre, ""},
	}
	for _, test := range tests {
		got := ""
		for _, look := range looks(test.network, netip.MustParseAddrPort(test.src), netip.MustParseAddrPort(test.dst)) {
			if inode, ok := look.match.line(test.line); ok && look.table == test.table {
				got = inode
			}
		}
		if got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

// What a line matches has the port that was asked for, whatever the line.
func FuzzMatchLine(f *testing.F) {
	f.Add("   3: 0100007F:C350 010012C6:01BB 01 00000000:00000000 00:00000000 00000000  1000        0 4242 1")
	m := match{src: netip.MustParseAddrPort("127.0.0.1:50000"), datagram: true}
	f.Fuzz(func(t *testing.T, line string) {
		if inode, ok := m.line(line); ok && (inode == "" || !strings.Contains(strings.ToUpper(line), "C350")) {
			t.Errorf("%q matched", line)
		}
	})
}

func TestReadBoot(t *testing.T) {
	const line = `{"control":"198.18.0.1:1","token":"ab12"}`
	for name, r := range map[string]io.Reader{"at once": strings.NewReader(line + "\n"), "in pieces": iotest.OneByteReader(strings.NewReader(line + "\n")), "to the end": strings.NewReader(line), "with more": strings.NewReader(line + "\nrest")} {
		b, err := readBoot(r)
		if err != nil || b.Control != "198.18.0.1:1" || string(b.Token) != "ab12" {
			t.Errorf("%s: got %+v, %v", name, b, err)
		}
	}
	for name, text := range map[string]string{"too long": strings.Repeat(" ", maxBoot) + line, "nothing": ""} {
		if _, err := readBoot(strings.NewReader(text)); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := readBoot(strings.NewReader(`{"control":"x","token":"se\u0063ret` + "\"")); err == nil || strings.Contains(err.Error(), "se") && strings.Contains(err.Error(), "ret") {
		t.Errorf("a broken line: %v", err)
	}
}

func TestProcessTableFindsNothingInTime(t *testing.T) {
	var p processTable
	if pid := p.process("1", time.Now().Add(answerIn)); pid != 0 {
		t.Errorf("process %d owns a socket that does not exist", pid)
	}
	for range 20 {
		p.remember(os.Getpid())
		p.remember(len(p.recent) + 1)
	}
	if len(p.recent) > remembered {
		t.Errorf("%d processes remembered", len(p.recent))
	}
	if name := processName(os.Getpid()); name == "" || len(name) > 64 {
		t.Errorf("this process is called %q", name)
	}
}
