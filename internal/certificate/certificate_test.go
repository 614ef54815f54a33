package certificate

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/config"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// journal is a log that a test reads.
type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.String()
}

func (j *journal) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(j, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// writePair writes a certificate for a name, valid from an hour before a time, and its key, and returns the authority.
func writePair(t *testing.T, certFile, keyFile, name string, from time.Time) *x509.CertPool {
	t.Helper()
	n, err := parseNames([]string{name})
	if err != nil {
		t.Fatal(err)
	}
	ca, err := newAuthority(n.withLoopback(), from)
	if err != nil {
		t.Fatal(err)
	}
	_, data, err := ca.issue(n.withLoopback(), from)
	if err != nil {
		t.Fatal(err)
	}
	cert, key, ok := bytes.Cut(data, []byte("-----BEGIN PRIVATE"))
	if !ok {
		t.Fatal("no key")
	}
	for file, content := range map[string][]byte{certFile: cert, keyFile: append([]byte("-----BEGIN PRIVATE"), key...)} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	return pool
}

// serve answers "hello" with a source's certificate on an address, and returns the address.
func serve(t *testing.T, s *Source, address string) string {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{
		Handler:   http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }),
		TLSConfig: s.Config(), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.ServeTLS(l, "", "") // ends by Close
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	return l.Addr().String()
}

// visit does a verified handshake and returns the certificate that was shown.
func visit(address, name string, pool *x509.CertPool) (*x509.Certificate, error) {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", address, &tls.Config{RootCAs: pool, ServerName: name, NextProtos: []string{"h2"}})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0], nil
}

// curl fetches a page with an authority's file and no other.
func curl(t *testing.T, ca, url string, more ...string) (string, error) {
	t.Helper()
	testenv.Need(t, "tool:curl")
	args := append([]string{"--silent", "--show-error", "--max-time", "10", "--noproxy", "*", "--cacert", ca}, more...)
	out, err := exec.Command("curl", append(args, url)...).CombinedOutput()
	return string(out), err
}

func TestNames(t *testing.T) {
	for _, c := range []struct {
		hosts []string
		want  string // empty: refused
	}{
		{[]string{"C.example.com:8443", "c.example.com"}, "c.example.com"},
		{[]string{"[::1]:443", "::1", "10.0.0.7", "10.0.0.7:80"}, "::1 10.0.0.7"},
		{[]string{"[fd00::1]"}, "fd00::1"},
		{[]string{"host"}, "host"},
		{[]string{"*.example.com"}, ""},
		{[]string{"a b"}, ""},
		{[]string{""}, ""},
		{[]string{"fe80::1%eth0"}, ""},
		{[]string{"bücher.example"}, ""},
	} {
		n, err := parseNames(c.hosts)
		if got := strings.Join(n.all(), " "); got != c.want || (err != nil) != (c.want == "") {
			t.Errorf("%q: %q, %v, want %q", c.hosts, got, err, c.want)
		}
		if err != nil && fault.HintOf(err) == "" {
			t.Errorf("%q: no hint", c.hosts)
		}
	}
}

func TestConfig(t *testing.T) {
	dir := t.TempDir()
	s, err := New(t.Context(), Options{TLS: config.TLS{Mode: config.TLSLocal}, Names: []string{"c.example.com"}, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	c := s.Config()
	if c.MinVersion != tls.VersionTLS12 || !slices.Equal(c.NextProtos, []string{"h2", "http/1.1"}) || c.MaxVersion != 0 {
		t.Errorf("%+v", c)
	}
	address := serve(t, s, "127.0.0.1:0")
	for _, version := range []uint16{tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13} {
		conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, MinVersion: version, MaxVersion: version}) // only the version is looked at
		if (err == nil) != (version >= tls.VersionTLS12) {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		if err == nil {
			conn.Close()
		}
	}
	for _, mode := range []string{config.TLSOff, "", "other"} {
		if _, err := New(t.Context(), Options{TLS: config.TLS{Mode: mode}, Dir: dir}); fault.KindOf(err) != fault.Invalid {
			t.Errorf("mode %q: %v", mode, err)
		}
	}
}

func exists(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != mode {
		t.Errorf("%s: %v, %v, want mode %v", filepath.Base(path), info, err, mode)
	}
}
