package certificate

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/cofferdam/cofferdam/internal/config"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// pebble is an ACME authority: the test server of Let's Encrypt, a process of its own, to which every name is this machine.
type pebble struct {
	directory string
	ca        string         // file with the authority that signed the directory's own certificate
	roots     *x509.CertPool // what signs the certificates that it gives
	out       *journal
}

// startPebble starts one whose checks arrive at two ports and whose certificates are valid for a number of seconds.
func startPebble(t *testing.T, tlsPort, httpPort, seconds int) *pebble {
	t.Helper()
	testenv.Need(t, "network") // for its module, where it was never built
	find := exec.Command("go", "tool", "-modfile=tools.mod", "-n", "pebble")
	find.Dir = testenv.Module()
	var said bytes.Buffer
	find.Stderr = &said
	found, err := find.Output() // builds it if need be
	if err != nil {
		t.Fatalf("build pebble: %v: %s", err, said.String())
	}
	dir := t.TempDir()
	own := mustNew(t, Options{TLS: config.TLS{Mode: config.TLSLocal}, Dir: dir})
	listen, manage := freePort(t), freePort(t)
	settings, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": "127.0.0.1:" + strconv.Itoa(listen), "managementListenAddress": "127.0.0.1:" + strconv.Itoa(manage),
		"certificate": filepath.Join(dir, leafFile), "privateKey": filepath.Join(dir, leafFile),
		"httpPort": httpPort, "tlsPort": tlsPort, "keyAlgorithm": "ecdsa",
		"retryAfter": map[string]int{"authz": 1, "order": 1},
		"profiles":   map[string]any{"default": map[string]any{"description": "short", "validityPeriod": seconds}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "pebble.json")
	if err := os.WriteFile(file, settings, 0o600); err != nil {
		t.Fatal(err)
	}
	p := &pebble{directory: fmt.Sprintf("https://127.0.0.1:%d/dir", listen), ca: filepath.Join(dir, caFile), out: &journal{}}
	cmd := exec.Command(strings.TrimSpace(string(found)), "-strict", "-config", file, "-dnsserver", serveDNS(t))
	cmd.Stdout, cmd.Stderr = p.out, p.out
	cmd.Env = append(os.Environ(), "PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=0", "PEBBLE_AUTHZREUSE=0")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("pebble: %s", p.out)
		}
	})
	pem, _ := own.Authority()
	p.roots = fetchRoot(t, fmt.Sprintf("https://127.0.0.1:%d/roots/0", manage), pem)
	return p
}

// fetchRoot gets the root that this run of pebble made, once it answers.
func fetchRoot(t *testing.T, url string, trust []byte) *x509.CertPool {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(trust)
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}
	roots := x509.NewCertPool()
	eventually(t, 15*time.Second, "pebble does not answer", func() bool {
		r, err := client.Get(url)
		if err != nil {
			return false
		}
		defer r.Body.Close()
		data, err := io.ReadAll(io.LimitReader(r.Body, maxFile))
		return err == nil && roots.AppendCertsFromPEM(data)
	})
	return roots
}

func eventually(t *testing.T, within time.Duration, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// freePort is one that nothing listens on now.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// serveDNS answers every question for an address with 127.0.0.1, over TCP as pebble asks, and returns where.
func serveDNS(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	group.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			group.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(5 * time.Second))
				answerDNS(c)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		group.Wait()
	})
	return l.Addr().String()
}

func answerDNS(c net.Conn) {
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return
	}
	data := make([]byte, binary.BigEndian.Uint16(size[:]))
	var m dnsmessage.Message
	if _, err := io.ReadFull(c, data); err != nil || m.Unpack(data) != nil || len(m.Questions) != 1 {
		return
	}
	q := m.Questions[0]
	m.Response, m.Additionals = true, nil
	if q.Type == dnsmessage.TypeA {
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1},
			Body:   &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}},
		}}
	}
	out, err := m.AppendPack(make([]byte, 2))
	if err != nil {
		return
	}
	binary.BigEndian.PutUint16(out, uint16(len(out)-2))
	_, _ = io.Copy(c, bytes.NewReader(out)) // the next question comes on another connection
}
