package gateway

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/netname"
	"github.com/cofferdam/cofferdam/internal/policy"
	up "github.com/cofferdam/cofferdam/internal/upstream"
)

// memory is an audit log in memory; full makes it refuse.
type memory struct {
	mu     sync.Mutex
	events []audit.Event
	full   atomic.Bool
	drop   bool // for benchmarks
}

func (m *memory) Append(_ context.Context, events ...audit.Event) error {
	if m.full.Load() {
		return errors.New("no space left on device")
	}
	if m.drop {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.events = append(m.events, events...)
	return nil
}

func (m *memory) all() []audit.Event {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.events)
}

// zone is a resolver in memory which remembers what it was asked. An answer list longer than one is given out by turns, to rebind.
type zone struct {
	mu    sync.Mutex
	names map[string][][]netip.Addr
	asked []string
}

func (z *zone) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.asked = append(z.asked, host)
	turns := z.names[strings.TrimSuffix(host, ".")]
	if len(turns) == 0 {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	if len(turns) > 1 {
		z.names[strings.TrimSuffix(host, ".")] = turns[1:]
	}
	return turns[0], nil
}

func (z *zone) set(name string, turns ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	var list [][]netip.Addr
	for _, turn := range turns {
		var addrs []netip.Addr
		for a := range strings.SplitSeq(turn, ",") {
			addrs = append(addrs, netip.MustParseAddr(a))
		}
		list = append(list, addrs)
	}
	if z.names == nil {
		z.names = make(map[string][][]netip.Addr)
	}
	z.names[name] = list
}

func (z *zone) questions() []string {
	z.mu.Lock()
	defer z.mu.Unlock()
	return slices.Clone(z.asked)
}

// local sends raw addresses of documentation ranges to loopback, where the tests' servers are.
type local struct{ *up.Dialer }

func (l local) Dial(ctx context.Context, addrs []netip.Addr, port uint16) (*net.TCPConn, error) {
	for i, a := range addrs {
		if netip.MustParsePrefix("192.0.2.0/24").Contains(a) {
			addrs[i] = netip.MustParseAddr("127.0.0.1")
		}
	}
	return l.Dialer.Dial(ctx, addrs, port)
}

// bench is a gateway on loopback with everything around it.
type bench struct {
	tb     testing.TB
	g      *Gateway
	log    *memory
	zone   *zone
	listen *net.TCPListener
	stop   func() error

	mu      sync.Mutex
	dests   map[netip.AddrPort]netip.AddrPort
	arrived *sync.Cond
	denied  []Denial
}

func start(tb testing.TB, yaml string, change func(*Config)) *bench {
	tb.Helper()
	b := &bench{tb: tb, log: new(memory), zone: new(zone), dests: make(map[netip.AddrPort]netip.AddrPort)}
	b.arrived = sync.NewCond(&b.mu)
	c := Config{
		Run: ident.NewRun(), Policy: parse(tb, yaml), Recorder: b.log,
		Upstream: local{up.New(up.Config{Resolver: b.zone, TTL: time.Nanosecond, Timeout: 2 * time.Second})},
		Denied: func(d Denial) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.denied = append(b.denied, d)
		},
	}
	if change != nil {
		change(&c)
	}
	g, err := New(c)
	if err != nil {
		tb.Fatal(err)
	}
	b.g = g
	g.originalDestination = b.dest
	b.listen = listen(tb)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Serve(ctx, Listeners{TCP: b.listen}) }()
	b.stop = sync.OnceValue(func() error { cancel(); return <-done })
	tb.Cleanup(func() {
		if err := b.stop(); err != nil {
			tb.Error(err)
		}
	})
	return b
}

func parse(tb testing.TB, yaml string) *policy.Policy {
	tb.Helper()
	p, err := policy.Parse("t.yaml", []byte("version: 1\n"+yaml))
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

func listen(tb testing.TB) *net.TCPListener {
	tb.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = l.Close() })
	return l.(*net.TCPListener)
}

func portOf(l net.Listener) uint16 { return l.Addr().(*net.TCPAddr).AddrPort().Port() }

// dest plays the kernel's part: it tells where a client wanted to go.
func (b *bench) dest(c *net.TCPConn) (netip.AddrPort, error) {
	peer := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		if d, ok := b.dests[peer]; ok {
			delete(b.dests, peer)
			if !d.IsValid() {
				return d, unix.ENOENT
			}
			return d, nil
		}
		b.arrived.Wait()
	}
}

// connect is a client that dials dest, which the "kernel" redirects.
func (b *bench) connect(dest netip.AddrPort) *net.TCPConn {
	b.tb.Helper()
	c, err := net.DialTCP("tcp", nil, b.listen.Addr().(*net.TCPAddr))
	if errors.Is(err, unix.ECONNRESET) {
		return nil // before the dial was over: isReset knows
	}
	if err != nil {
		b.tb.Fatal(err)
	}
	b.mu.Lock()
	b.dests[c.LocalAddr().(*net.TCPAddr).AddrPort()] = dest
	b.arrived.Broadcast()
	b.mu.Unlock()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

// to connects to a name as a program does: by the address that DNS gives it.
func (b *bench) to(name string, port uint16) *net.TCPConn {
	b.tb.Helper()
	r := b.g.Lookup(context.Background(), netname.Host(name), netip.AddrPort{})
	if !r.V4.IsValid() {
		b.tb.Fatalf("%s has no address: %+v", name, r)
	}
	return b.connect(netip.AddrPortFrom(r.V4, port))
}

// find waits until an event is recorded that fits.
func (b *bench) find(what string, fits func(audit.Event) bool) audit.Event {
	b.tb.Helper()
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		for _, e := range b.log.all() {
			if fits(e) {
				return e
			}
		}
	}
	b.tb.Fatalf("no event %s in %+v", what, b.log.all())
	return audit.Event{}
}

func (b *bench) deniedBy(rule string) audit.Event {
	b.tb.Helper()
	return b.find("denied by "+rule, func(e audit.Event) bool { return e.Verdict == "deny" && e.Rule == rule })
}

// serve runs f for each connection to a loopback server.
func serve(tb testing.TB, f func(net.Conn)) uint16 {
	tb.Helper()
	l := listen(tb)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); f(c) }()
		}
	}()
	return portOf(l)
}

func echo(c net.Conn) { _, _ = io.Copy(c, c) }

func certificate(tb testing.TB) tls.Certificate {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"good.example.com", "other.example.com"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func serveTLS(tb testing.TB) uint16 {
	config := &tls.Config{Certificates: []tls.Certificate{certificate(tb)}}
	return serve(tb, func(c net.Conn) { echo(tls.Server(c, config)) })
}

func allow(port uint16, more string) string {
	return fmt.Sprintf(`egress:
  networks: [127.0.0.0/8]
  rules:
    - name: good
      hosts: [good.example.com]
      ports: [%d]
%s`, port, more)
}

// isReset says whether a read ended by a reset.
func isReset(c net.Conn) bool {
	if tcp, ok := c.(*net.TCPConn); ok && tcp == nil {
		return true // while it was dialled
	}
	_, err := c.Read(make([]byte, 1))
	return errors.Is(err, unix.ECONNRESET)
}
