package credential

import (
	"context"
	"crypto/x509"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/seal"
	"github.com/cofferdam/cofferdam/internal/secret"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func testStore(t testing.TB) (*Store, *seal.Keyring) {
	t.Helper()
	s, err := OpenStore(filepath.Join(t.TempDir(), "credentials"))
	must(t, err)
	return s, seal.NewKeyring(seal.NewKey())
}

func text(s string) secret.Bytes { return secret.New([]byte(s)) }

// staticMeta is a token for example.com.
func staticMeta(name Name) Meta {
	return Meta{Name: name, Kind: Static, Scope: Scope{Hosts: []string{"example.com"}}}
}

func request() Request {
	return Request{Channel: VerifiedTLS, Host: "example.com", Port: 443, Method: "GET", Path: "/"}
}

func open(t testing.TB, s *Store, ring *seal.Keyring, o Options, names ...Name) *Lender {
	t.Helper()
	l, err := s.Open(t.Context(), ring, o, names...)
	must(t, err)
	t.Cleanup(func() { must(t, l.Close()) })
	return l
}

// lent returns the header that a credential is lent as.
func lent(t testing.TB, l *Lender, name Name) string {
	t.Helper()
	g, err := l.Lend(t.Context(), name, request())
	must(t, err)
	h := http.Header{}
	must(t, g.Inject(h))
	for _, v := range h {
		return strings.Join(v, "|")
	}
	return ""
}

// endpoint is a token server for https://example.com, whatever the port.
func endpoint(t testing.TB, handler http.HandlerFunc) *http.Client {
	t.Helper()
	server := httptest.NewTLSServer(handler)
	t.Cleanup(server.Close)
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	client := NewClient(func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", server.Listener.Addr().String())
	}, roots)
	t.Cleanup(client.CloseIdleConnections)
	return client
}

// clock is a time that tests set.
type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

func fileOf(t testing.TB, s *Store, name Name) string {
	t.Helper()
	data, err := os.ReadFile(s.path(name))
	must(t, err)
	return string(data)
}
