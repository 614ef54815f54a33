package netname

import (
	"net/netip"
	"strings"
	"testing"
)

func TestSpecial(t *testing.T) {
	tests := []struct{ addr, name string }{ // an empty name: ordinary
		{"1.1.1.1", ""}, {"8.8.8.8", ""}, {"172.15.255.255", ""}, {"172.32.0.0", ""}, {"100.63.255.255", ""}, {"100.128.0.0", ""},
		{"9.255.255.255", ""}, {"11.0.0.0", ""}, {"126.255.255.255", ""}, {"128.0.0.0", ""}, {"169.253.255.255", ""}, {"169.255.0.0", ""},
		{"192.0.1.0", ""}, {"192.167.255.255", ""}, {"192.169.0.0", ""}, {"198.17.255.255", ""}, {"198.20.0.0", ""}, {"223.255.255.255", ""},
		{"203.0.112.255", ""}, {"203.0.114.0", ""}, {"1.0.0.0", ""}, {"168.63.129.15", ""}, {"168.63.129.17", ""},
		{"2606:4700:4700::1111", ""}, {"2a00::1", ""}, {"2001:200::1", ""}, {"2003::1", ""}, {"2620:4f:8001::1", ""},
		{"::ffff:8.8.8.8", ""}, {"64:ff9b::8.8.8.8", ""}, {"2a00::5efe:8.8.8.8", ""},

		{"0.0.0.0", "this host"}, {"0.1.2.3", "this network"}, {"10.0.0.1", "private"}, {"10.255.255.255", "private"},
		{"100.64.0.1", "carrier"}, {"100.127.255.255", "carrier"}, {"127.0.0.1", "loopback"}, {"127.255.255.254", "loopback"},
		{"169.254.1.1", "link-local"}, {"172.16.0.1", "private"}, {"172.31.255.255", "private"}, {"192.168.1.1", "private"},
		{"192.0.0.1", "continuity"}, {"192.0.0.9", "anycast"}, {"192.0.0.200", "IETF"}, {"192.0.2.1", "documentation"}, {"192.88.99.1", "6to4"},
		{"198.18.0.1", "benchmarking"}, {"198.19.255.255", "benchmarking"}, {"198.51.100.7", "documentation"}, {"203.0.113.7", "documentation"},
		{"192.31.196.1", "AS112"}, {"192.52.193.1", "AMT"}, {"192.175.48.1", "AS112"},
		{"224.0.0.251", "multicast"}, {"239.255.255.255", "multicast"}, {"240.0.0.1", "reserved"}, {"255.255.255.255", "broadcast"},

		{"169.254.169.254", "metadata"}, {"169.254.170.2", "credentials"}, {"100.100.100.200", "metadata"}, {"168.63.129.16", "platform"}, {"192.0.0.192", "metadata"},
		{"fd00:ec2::254", "metadata"}, {"fd20:ce::254", "metadata"}, {"fe80::a9fe:a9fe", "metadata"},

		{"::", "unspecified"}, {"::1", "loopback"}, {"::127.0.0.1", "compatible"}, {"::8.8.8.8", "compatible"}, {"fe80::1", "link-local"}, {"fec0::1", "site-local"},
		{"fc00::1", "private"}, {"fdcf:d0::1", "private"}, {"ff02::fb", "multicast"}, {"2001:db8::1", "documentation"}, {"3fff::1", "documentation"},
		{"2001::1", "Teredo"}, {"2001:2::1", "benchmarking"}, {"2001:10::1", "ORCHID"}, {"2001:20::1", "ORCHIDv2"}, {"2001:1ff::1", "IETF"},
		{"2002:7f00:1::1", "6to4"}, {"2002:808:808::1", "6to4"}, {"100::1", "discard"}, {"100:0:0:1::1", "dummy"}, {"5f00::1", "segment"}, {"2620:4f:8000::1", "AS112"},
		{"64:ff9b:1::10.0.0.1", "NAT64"}, {"64:ff9b:1::8.8.8.8", "NAT64"}, {"64:ff9b::1:0:1", "not global"}, {"4000::1", "not global"}, {"8000::1", "not global"}, {"::2:0:0", "not global"},
		{"::ffff:0:10.0.0.1", "translated"},

		{"::ffff:169.254.169.254", "metadata"}, {"::ffff:10.0.0.1", "private"}, {"::ffff:127.0.0.1", "loopback"},
		{"64:ff9b::169.254.169.254", "metadata service, inside a NAT64 address"}, {"64:ff9b::127.0.0.1", "loopback, inside"}, {"64:ff9b::10.1.2.3", "private"},
		{"2a00::5efe:10.0.0.1", "private network, inside an ISATAP"}, {"2a00::200:5efe:169.254.169.254", "metadata"},
		{"fe80::1%eth0", "zone"}, {"2606:4700::1%1", "zone"}, {"::ffff:8.8.8.8%eth0", "zone"},
	}
	for _, tt := range tests {
		b, special := Special(netip.MustParseAddr(tt.addr))
		if special != (tt.name != "") || !strings.Contains(b.Name, tt.name) {
			t.Errorf("Special(%s) = %q, %v; want %q", tt.addr, b.Name, special, tt.name)
		}
	}
	if _, special := Special(netip.Addr{}); !special {
		t.Error("no address is an ordinary one")
	}
}

// Every IPv6 address outside 2000::/3 is refused, whatever the rows say, except where NAT64 carries an ordinary one.
func TestSpecialHoldsAllButGlobalUnicast(t *testing.T) {
	for first := range 256 {
		a := netip.AddrFrom16([16]byte{byte(first), 0x77, 15: 1})
		if _, special := Special(a); special == (first&0xe0 == 0x20) {
			t.Errorf("Special(%s) = %v", a, special)
		}
	}
}

func TestTableIsCanonical(t *testing.T) {
	seen := map[netip.Prefix]bool{}
	for _, b := range Blocks() {
		if b.Prefix != b.Prefix.Masked() || b.Name == "" || b.Source == "" || seen[b.Prefix] {
			t.Errorf("row %+v is not masked, is double, or lacks a name or source", b)
		}
		seen[b.Prefix] = true
	}
}

func TestNamed(t *testing.T) {
	tests := []struct {
		network, addr string
		want          bool
	}{
		{"10.0.0.0/8", "10.1.2.3", true},
		{"10.1.0.0/16", "10.1.2.3", true},
		{"10.1.0.0/16", "::ffff:10.1.2.3", true},
		{"10.1.0.0/16", "10.2.0.1", false},
		{"0.0.0.0/0", "10.1.2.3", false},
		{"8.0.0.0/6", "10.1.2.3", false},
		{"127.0.0.0/8", "127.0.0.1", true},
		{"169.254.0.0/16", "169.254.1.1", true},
		{"169.254.0.0/16", "169.254.169.254", false},
		{"169.254.169.254/32", "169.254.169.254", true},
		{"100.64.0.0/10", "100.100.100.200", false},
		{"fd00::/8", "fd00:ec2::254", false},
		{"fd00::/8", "fd12::1", true},
		{"::/0", "fd12::1", false},
		{"10.0.0.0/8", "64:ff9b::10.1.2.3", false},
		{"64:ff9b::/96", "64:ff9b::10.1.2.3", false},
		{"::/3", "64:ff9b::10.1.2.3", false},
		{"8.8.8.0/24", "8.8.8.8", false}, // not special: nothing to name
	}
	for _, tt := range tests {
		if got := Named(netip.MustParsePrefix(tt.network), netip.MustParseAddr(tt.addr)); got != tt.want {
			t.Errorf("Named(%s, %s) = %v, want %v", tt.network, tt.addr, got, tt.want)
		}
	}
}

func TestBlockOf(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.0/8": "10.0.0.0/8", "10.2.0.0/16": "10.0.0.0/8", "203.0.113.0/25": "203.0.113.0/24", "169.254.169.254/32": "169.254.169.254/32",
		"0.0.0.0/0": "", "8.8.8.0/24": "", "8.0.0.0/6": "", "64:ff9b::/96": "", "64:ff9b::a00:1/128": "", "::/0": "", "::ffff:10.0.0.0/104": "",
	} {
		b, ok := BlockOf(netip.MustParsePrefix(in))
		if ok != (want != "") || ok && b.Prefix.String() != want {
			t.Errorf("BlockOf(%s) = %v, %v; want %q", in, b.Prefix, ok, want)
		}
	}
}

// FuzzSpecial holds that no spelling of an IPv4 address inside an IPv6 one is judged more kindly than the IPv4 address.
func FuzzSpecial(f *testing.F) {
	f.Add(uint32(0x7f000001))
	f.Add(uint32(0xa9fea9fe))
	f.Add(uint32(0x08080808))
	f.Fuzz(func(t *testing.T, n uint32) {
		v4 := [4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
		_, plain := Special(netip.AddrFrom4(v4))
		for _, carrier := range []string{"::ffff:0:0", "64:ff9b::", "64:ff9b:1::", "::", "2a00::5efe:0:0", "2a00::200:5efe:0:0"} {
			b := netip.MustParseAddr(carrier).As16()
			copy(b[12:], v4[:])
			if _, special := Special(netip.AddrFrom16(b)); plain && !special {
				t.Fatalf("%s is special, %s is not", netip.AddrFrom4(v4), netip.AddrFrom16(b))
			}
		}
	})
}
