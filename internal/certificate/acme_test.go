package certificate

import (
	"context"
	"crypto/x509"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/config"
	"github.com/cofferdam/cofferdam/internal/fault"
)

func acmeOptions(t *testing.T, p *pebble, port int, j *journal) Options {
	return Options{
		TLS:   config.TLS{Mode: config.TLSACME, ACME: &config.ACME{Email: "ops@example.com", Directory: p.directory, CA: p.ca}},
		Names: []string{"c.example.com", "d.example.com:8443", "localhost"}, Dir: t.TempDir(), Host: "127.0.0.1", Port: port, Log: j.logger(),
		checkEvery: 250 * time.Millisecond,
	}
}

// start runs a source and returns how to stop it.
func start(t *testing.T, s *Source) func() {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		begun := time.Now()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("stopping took %v", took)
		}
	}
	t.Cleanup(stop)
	return stop
}

// TestACME gets certificates by TLS-ALPN-01 on our own listener, sees them renewed, and a second start that takes them from the disk.
func TestACME(t *testing.T) {
	var j journal
	port := freePort(t)
	p := startPebble(t, port, freePort(t), 12)
	o := acmeOptions(t, p, port, &j)
	// Names of this run alone: certmagic remembers for the whole process for how long not to renew what it could not, such as at the end of a test.
	c, d := fmt.Sprintf("c%d.example.com", port), fmt.Sprintf("d%d.example.com", port)
	o.Names = []string{c, d + ":8443", "localhost"}
	s := mustNew(t, o)
	address := serve(t, s, net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if !strings.HasPrefix(s.Describe(), "acme, "+c+" not yet, "+d+" not yet") {
		t.Error(s.Describe())
	}
	stop := start(t, s)
	first := map[string]*x509.Certificate{}
	for _, name := range []string{c, d} {
		eventually(t, 30*time.Second, "no certificate for "+name, func() bool {
			leaf, err := visit(address, name, p.roots)
			first[name] = leaf
			return err == nil
		})
	}
	if !strings.Contains(s.Describe(), c+" until ") || strings.Contains(s.Describe(), "localhost") {
		t.Error(s.Describe())
	}
	if _, err := visit(address, "e.example.com", p.roots); err == nil || !strings.Contains(err.Error(), c) {
		t.Errorf("another name: %v, want a certificate for %s", err, c)
	}
	for name, old := range first {
		eventually(t, 30*time.Second, "not renewed: "+name, func() bool {
			leaf, err := visit(address, name, p.roots)
			return err == nil && leaf.SerialNumber.Cmp(old.SerialNumber) != 0 && leaf.NotAfter.After(old.NotAfter)
		})
	}
	stop()
	private(t, filepath.Join(o.Dir, "acme"))
	if log := j.String(); !strings.Contains(log, `msg="got a certificate" name=`+c) || !strings.Contains(log, "challenge=tls-alpn-01") || strings.Contains(log, "level=ERROR") {
		t.Error(log)
	}

	// A start whose next look would be in an hour renews at once what ends before.
	o.checkEvery = time.Hour
	again := mustNew(t, o)
	second := serve(t, again, "127.0.0.1:0")
	before := s.from.(*acme).stored(c)
	start(t, again)
	eventually(t, 30*time.Second, "not renewed at the start", func() bool {
		leaf, err := visit(second, c, p.roots)
		return err == nil && leaf.SerialNumber.Cmp(before.SerialNumber) != 0
	})
}

// TestACMERestart takes from the disk what an earlier run got, without an order to the authority.
func TestACMERestart(t *testing.T) {
	var j journal
	port := freePort(t)
	p := startPebble(t, port, freePort(t), 24*60*60)
	o := acmeOptions(t, p, port, &j)
	s := mustNew(t, o)
	address := serve(t, s, net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	stop := start(t, s)
	var leaf *x509.Certificate
	eventually(t, 30*time.Second, "no certificate", func() (ok bool) {
		var err error
		leaf, err = visit(address, "c.example.com", p.roots)
		return err == nil && s.from.(*acme).stored("d.example.com") != nil
	})
	stop()

	again := mustNew(t, o)
	if !strings.Contains(again.Describe(), "c.example.com until ") {
		t.Error(again.Describe())
	}
	orders := strings.Count(p.out.String(), "/order-plz")
	second := serve(t, again, "127.0.0.1:0")
	start(t, again)()
	start(t, mustNew(t, o)) // stopped at once, and started again: nothing is locked
	got, err := visit(second, "c.example.com", p.roots)
	if err != nil || got.SerialNumber.Cmp(leaf.SerialNumber) != 0 {
		t.Errorf("%v, %v", got, err)
	}
	if n := strings.Count(p.out.String(), "/order-plz"); n != orders {
		t.Errorf("%d orders, then %d", orders, n)
	}
}

// TestACMEByHTTP lets the authority reach nothing of ours but the port for HTTP-01, which is open for the length of a challenge only.
func TestACMEByHTTP(t *testing.T) {
	var j journal
	port, httpPort := freePort(t), freePort(t)
	p := startPebble(t, freePort(t), httpPort, 24*60*60)
	o := acmeOptions(t, p, port, &j)
	o.Names, o.TLS.ACME.HTTPPort = []string{"c.example.com"}, httpPort
	s := mustNew(t, o)
	address := serve(t, s, net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	start(t, s)
	eventually(t, 30*time.Second, "no certificate", func() bool {
		_, err := visit(address, "c.example.com", p.roots)
		return err == nil
	})
	if log := j.String(); !strings.Contains(log, "challenge=http-01") {
		t.Error(log)
	}
	if c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(httpPort))); err == nil {
		c.Close()
		t.Error("the port for challenges stays open")
	}
}

// TestACMEFails says what is wrong while the authority cannot be reached or does not believe us, and ends quickly all the same.
func TestACMEFails(t *testing.T) {
	var j journal
	port := freePort(t)
	p := startPebble(t, freePort(t), freePort(t), 60) // its checks arrive nowhere
	for name, c := range map[string]struct {
		directory string
		want      string
	}{
		"no answer":    {"https://127.0.0.1:" + strconv.Itoa(freePort(t)) + "/dir", "connection refused"},
		"not believed": {p.directory, "unauthorized"},
	} {
		t.Run(name, func(t *testing.T) {
			o := acmeOptions(t, p, port, &j)
			o.Names, o.TLS.ACME.Directory = []string{"c.example.com"}, c.directory
			s := mustNew(t, o)
			serve(t, s, net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
			stop := start(t, s)
			eventually(t, 30*time.Second, "nothing is told", func() bool { return strings.Contains(s.Describe(), "c.example.com not yet (") })
			if !strings.Contains(s.Describe(), c.want) {
				t.Error(s.Describe())
			}
			stop()
			locks, err := filepath.Glob(filepath.Join(o.Dir, "acme", "locks", "*"))
			if err != nil || len(locks) != 0 {
				t.Errorf("locks stay: %v, %v", locks, err)
			}
		})
	}
}

func TestACMERefused(t *testing.T) {
	noCA := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(noCA, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		acme  config.ACME
		names []string
		port  int
		want  string
	}{
		"address at Let's Encrypt": {config.ACME{}, []string{"192.0.2.1"}, 443, "192.0.2.1"},
		"short name":               {config.ACME{}, []string{"host"}, 443, "host"},
		"inner name":               {config.ACME{}, []string{"host.internal"}, 443, "host.internal"},
		"only loopback":            {config.ACME{Directory: "https://ca.example/dir"}, []string{"localhost", "127.0.0.1", "x.localhost"}, 443, "can reach"},
		"no port":                  {config.ACME{}, []string{"c.example.com"}, 0, "port"},
		"plain directory":          {config.ACME{Directory: "http://ca.example/dir"}, []string{"c.example.com"}, 443, "http://ca.example/dir"},
		"port for HTTP":            {config.ACME{HTTPPort: 70000}, []string{"c.example.com"}, 443, "70000"},
		"no authority's file":      {config.ACME{CA: noCA + ".not"}, []string{"c.example.com"}, 443, noCA + ".not"},
		"authority's file without": {config.ACME{CA: noCA}, []string{"c.example.com"}, 443, noCA},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(t.Context(), Options{TLS: config.TLS{Mode: config.TLSACME, ACME: &c.acme}, Names: c.names, Dir: t.TempDir(), Port: c.port})
			if fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), c.want) || fault.HintOf(err) == "" {
				t.Errorf("%v (hint %q)", err, fault.HintOf(err))
			}
		})
	}
	s := mustNew(t, Options{TLS: config.TLS{Mode: config.TLSACME}, Names: []string{"c.example.com"}, Dir: t.TempDir(), Port: 443})
	if p := s.Config().NextProtos; p[len(p)-1] != challengeProtocol {
		t.Error(p)
	}
}

// private fails if anything below dir can be used by others.
func private(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
