package gateway

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/policy"
)

func TestTLS(t *testing.T) {
	port := serveTLS(t)
	for _, test := range []struct {
		name, sni, rule string
	}{
		{"server name is the dialled name", "good.example.com", ""},
		{"case does not matter", "GOOD.Example.COM", ""},
		{"another name", "other.example.com", RuleNameMismatch},
		{"suffix trick", "good.example.com.evil.example", RuleNameMismatch},
		{"no server name", "", RuleNoServerName},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := start(t, allow(port, ""), nil)
			b.zone.set("good.example.com", "127.0.0.1")
			raw := b.to("good.example.com", port)
			defer raw.Close()
			c := tls.Client(raw, &tls.Config{ServerName: test.sni, InsecureSkipVerify: true})
			err := c.Handshake()
			if test.rule != "" {
				if err == nil {
					t.Fatal("handshake passed")
				}
				e := b.deniedBy(test.rule)
				if e.Host != "good.example.com" || e.Port != port || e.Protocol != "tls" {
					t.Errorf("event: %+v", e)
				}
				if q := b.zone.questions(); len(q) > 0 {
					t.Errorf("refused, but resolved %v", q)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			roundTrip(t, c, 300<<10)
			_ = c.Close()
			_ = b.stop()
			decided := b.find("decided", func(e audit.Event) bool { return e.Kind == audit.CrossingDecided && e.Protocol == "tls" })
			finished := b.find("finished", func(e audit.Event) bool { return e.Kind == audit.CrossingFinished })
			if decided.Verdict != "allow" || decided.Rule != "good" || decided.Crossing != finished.Crossing || finished.Address != "127.0.0.1" ||
				finished.BytesIn < 300<<10 || finished.BytesOut < 300<<10 {
				t.Errorf("decided %+v\nfinished %+v", decided, finished)
			}
		})
	}
}

// roundTrip sends n bytes and wants them back.
func roundTrip(t *testing.T, c io.ReadWriter, n int) {
	t.Helper()
	sent := make([]byte, n)
	_, _ = rand.Read(sent)
	go func() { _, _ = c.Write(sent) }()
	got := make([]byte, n)
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("round trip: %v", err)
	}
}

// hello returns the bytes of a real ClientHello.
func hello(t *testing.T, sni string) []byte {
	t.Helper()
	a, z := net.Pipe()
	go func() { _ = tls.Client(a, &tls.Config{ServerName: sni, InsecureSkipVerify: true}).Handshake() }()
	buf := make([]byte, 8192)
	n, err := z.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = a.Close(), z.Close()
	return buf[:n]
}

func TestFirstBytes(t *testing.T) {
	secret := serve(t, func(c net.Conn) { _, _ = c.Write([]byte("SERVER SPEAKS FIRST\n")); echo(c) })
	for _, test := range []struct {
		name, send, rule string
	}{
		{"ssh", "SSH-2.0-OpenSSH_9.2\r\n", RuleOpaqueProtocol},
		{"binary", "\x00\x01\x02\x03", RuleOpaqueProtocol},
		{"smtp", "EHLO\r\n", RuleOpaqueProtocol},
		{"record without hello", "\x16\x03\x01\x00\x05hello", RuleOpaqueProtocol},
		{"sslv2", "\x80\x2e\x01\x03\x01", RuleOpaqueProtocol},
		{"silence", "", RuleOpaqueProtocol},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := start(t, allow(secret, ""), func(c *Config) { c.Limits.FirstByte = 200 * time.Millisecond })
			b.zone.set("good.example.com", "127.0.0.1")
			c := b.to("good.example.com", secret)
			defer c.Close()
			_, _ = c.Write([]byte(test.send))
			if !isReset(c) {
				t.Error("not reset")
			}
			if e := b.deniedBy(test.rule); e.Host != "good.example.com" {
				t.Errorf("event: %+v", e)
			}
		})
	}
	t.Run("allowed by a rule of protocol tcp", func(t *testing.T) {
		b := start(t, allow(secret, "      protocol: tcp\n"), nil)
		b.zone.set("good.example.com", "127.0.0.1")
		c := b.to("good.example.com", secret)
		defer c.Close()
		got := make([]byte, 20)
		if _, err := io.ReadFull(c, got); err != nil || string(got) != "SERVER SPEAKS FIRST\n" {
			t.Fatalf("%q %v", got, err)
		}
		roundTrip(t, c, 1<<20)
		// The end of one direction passes by itself.
		_ = c.CloseWrite()
		if _, err := c.Read(got); err != io.EOF {
			t.Errorf("after half-close: %v", err)
		}
	})
}

func TestSplitHello(t *testing.T) {
	port := serveTLS(t)
	raw := hello(t, "good.example.com")
	for _, size := range []int{1, 7, 100} {
		b := start(t, allow(port, ""), nil)
		b.zone.set("good.example.com", "127.0.0.1")
		c := b.to("good.example.com", port)
		for part := range slices.Chunk(records(raw, 40), size) {
			_, _ = c.Write(part)
		}
		head := make([]byte, 1)
		if _, err := io.ReadFull(c, head); err != nil || head[0] != 0x16 {
			t.Errorf("chunks of %d: answer % x, %v", size, head, err)
		}
		_ = c.Close()
	}
}

// records splits the one handshake record of a hello into records of n bytes each.
func records(raw []byte, n int) []byte {
	var out []byte
	for part := range slices.Chunk(raw[5:], n) {
		out = append(out, raw[0], raw[1], raw[2], byte(len(part)>>8), byte(len(part)))
		out = append(out, part...)
	}
	return out
}

func TestEncryptedHello(t *testing.T) {
	port := serveTLS(t)
	b := start(t, allow(port, ""), nil)
	raw := hello(t, "good.example.com")
	// Add a GREASE encrypted_client_hello at the end of the extensions and mend the three lengths.
	ext := []byte{0xfe, 0x0d, 0, 11, 0, 0, 1, 0, 1, 5, 0, 0, 0, 1, 0xff}
	at := 5 + 4 + 2 + 32
	at += 1 + int(raw[at])
	at += 2 + int(raw[at])<<8 + int(raw[at+1])
	at += 1 + int(raw[at])
	add := func(b []byte) { v := int(b[0])<<8 + int(b[1]) + len(ext); b[0], b[1] = byte(v>>8), byte(v) }
	add(raw[3:])
	add(raw[7:])
	add(raw[at:])
	c := b.to("good.example.com", port)
	defer c.Close()
	_, _ = c.Write(append(raw, ext...))
	if !isReset(c) {
		t.Error("not reset")
	}
	b.deniedBy(RuleEncryptedHello)
}

func TestDestinations(t *testing.T) {
	port := serveTLS(t)
	rules := allow(port, fmt.Sprintf(`    - name: net
      networks: [192.0.2.0/24]
      ports: [%d]
      protocol: auto
`, port))
	at := func(a string) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(a), port) }
	for _, test := range []struct {
		name string
		dest netip.AddrPort
		sni  string
		rule string
	}{
		{"raw address of an allowed network", at("192.0.2.7"), "", ""},
		{"raw address and an allowed name", at("192.0.2.7"), "good.example.com", ""},
		{"raw address and another name", at("192.0.2.7"), "other.example.com", policy.RuleDefault},
		{"another raw address", at("203.0.113.9"), "good.example.com", ""},
		{"metadata", netip.MustParseAddrPort("169.254.169.254:80"), "", ""},
		{"synthetic address without a name", at("198.18.77.77"), "good.example.com", RuleUnknownName},
		{"v6 synthetic address without a name", at("fdcf:d0::99"), "good.example.com", RuleUnknownName},
		{"the gateway's own address", at("198.18.0.1"), "", RuleGatewayClosed},
		{"control without a control plane", netip.MustParseAddrPort("198.18.0.1:1"), "", RuleGatewayClosed},
		{"the listener itself", netip.AddrPort{}, "", RuleDirectListener},
		{"loopback", at("127.0.0.1"), "good.example.com", RuleDirectListener},
		{"mapped loopback", at("::ffff:127.0.0.1"), "good.example.com", RuleDirectListener},
		{"v6 loopback", at("::1"), "good.example.com", RuleDirectListener},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := start(t, rules, nil)
			raw := b.connect(test.dest)
			defer raw.Close()
			c := tls.Client(raw, &tls.Config{ServerName: test.sni, InsecureSkipVerify: true})
			allowed := strings.HasPrefix(test.name, "raw address") && test.rule == ""
			if err := c.Handshake(); (err == nil) != allowed {
				t.Fatalf("handshake: %v", err)
			}
			if !allowed {
				b.find("denied", func(e audit.Event) bool {
					return e.Verdict == "deny" && (e.Rule == test.rule || test.rule == "" && e.Rule != "")
				})
			}
		})
	}
}

func TestResolvedAddresses(t *testing.T) {
	port := serve(t, echo)
	rule := allow(port, "      protocol: tcp\n")
	strict := strings.Replace(rule, "networks: [127.0.0.0/8]", "networks: []", 1)
	for _, test := range []struct {
		name, yaml, answer, rule string
	}{
		{"named network", rule, "127.0.0.1", ""},
		{"one good among bad", rule, "169.254.169.254,127.0.0.1", ""},
		{"loopback not named", strict, "127.0.0.1", policy.RuleSpecialAddress},
		{"mapped", strict, "::ffff:127.0.0.1", policy.RuleSpecialAddress},
		{"mapped metadata", rule, "::ffff:169.254.169.254", policy.RuleSpecialAddress},
		{"nat64 metadata", rule, "64:ff9b::a9fe:a9fe", policy.RuleSpecialAddress},
		{"6to4 loopback", rule, "2002:7f00:1::1", policy.RuleSpecialAddress},
		{"private", rule, "10.0.0.1", policy.RuleSpecialAddress},
		{"synthetic", rule, "198.18.1.1", policy.RuleSpecialAddress},
		{"v6 loopback", rule, "::1", policy.RuleSpecialAddress},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := start(t, rule, nil)
			b.g.SetPolicy(parse(t, test.yaml))
			b.zone.set("good.example.com", test.answer)
			c := b.to("good.example.com", port)
			defer c.Close()
			if test.rule == "" {
				roundTrip(t, c, 100)
				return
			}
			if !isReset(c) {
				t.Error("not reset")
			}
			if e := b.deniedBy(test.rule); e.Address == "" || e.Host != "good.example.com" {
				t.Errorf("event: %+v", e)
			}
		})
	}
}

// TestRebind has the resolver answer well first and badly afterwards: one look-up, and what was checked is what is dialled.
func TestRebind(t *testing.T) {
	port := serve(t, echo)
	b := start(t, allow(port, "      protocol: tcp\n"), nil)
	b.zone.set("good.example.com", "127.0.0.1", "169.254.169.254")
	c := b.to("good.example.com", port)
	roundTrip(t, c, 10)
	_ = c.Close()
	if q := b.zone.questions(); len(q) != 1 || q[0] != "good.example.com." {
		t.Errorf("questions: %q", q)
	}
	c = b.to("good.example.com", port)
	defer c.Close()
	if !isReset(c) {
		t.Error("rebound name was dialled")
	}
	b.deniedBy(policy.RuleSpecialAddress)
}

func TestUpstreamFails(t *testing.T) {
	closed := listen(t)
	port := portOf(closed)
	_ = closed.Close()
	b := start(t, allow(port, "      protocol: tcp\n"), nil)
	c := b.to("good.example.com", port)
	if !isReset(c) {
		t.Error("not reset: no such host")
	}
	b.zone.set("good.example.com", "127.0.0.1")
	c = b.to("good.example.com", port)
	if !isReset(c) {
		t.Error("not reset: refused")
	}
	b.find("no such host", func(e audit.Event) bool { return strings.Contains(e.Error, "no such host") })
	b.find("refused", func(e audit.Event) bool { return strings.Contains(e.Error, "refused") })
}

func TestAuditFailureDenies(t *testing.T) {
	reached := atomic.Bool{}
	port := serve(t, func(c net.Conn) { reached.Store(true); echo(c) })
	b := start(t, allow(port, "      protocol: tcp\n"), nil)
	b.zone.set("good.example.com", "127.0.0.1")
	c := b.to("good.example.com", port)
	roundTrip(t, c, 10)
	_ = c.Close()
	reached.Store(false)
	b.log.full.Store(true)
	if c = b.to("good.example.com", port); !isReset(c) || reached.Load() {
		t.Error("crossing without a record")
	}
	b.log.full.Store(false)
	// The refusal itself was kept and is recorded once that works again.
	b.deniedBy(RuleAuditUnavailable)
}

func TestConnectionLimit(t *testing.T) {
	port := serve(t, echo)
	b := start(t, allow(port, "      protocol: tcp\n"), func(c *Config) { c.Limits.Connections = 2 })
	b.zone.set("good.example.com", "127.0.0.1")
	for range 2 {
		c := b.to("good.example.com", port)
		defer c.Close()
		roundTrip(t, c, 10)
	}
	for range 3 {
		if c := b.to("good.example.com", port); !isReset(c) {
			t.Error("over the limit")
		}
	}
	_ = b.stop()
	var n uint64
	for _, e := range b.log.all() {
		if e.Rule == RuleConnectionLimit {
			n += e.Count
		}
	}
	if n != 3 {
		t.Errorf("%d recorded, want 3", n)
	}
}

func TestSetPolicyCuts(t *testing.T) {
	port := serve(t, echo)
	b := start(t, allow(port, "      protocol: tcp\n"), nil)
	b.zone.set("good.example.com", "127.0.0.1")
	c := b.to("good.example.com", port)
	defer c.Close()
	roundTrip(t, c, 10)
	b.g.SetPolicy(parse(t, allow(port, "      protocol: tcp\n")))
	roundTrip(t, c, 10)
	b.g.SetPolicy(parse(t, ""))
	if !isReset(c) {
		t.Error("still open")
	}
	b.find("cut", func(e audit.Event) bool {
		return strings.HasPrefix(e.Error, "cut: policy has changed") && e.BytesIn == 20
	})
}
