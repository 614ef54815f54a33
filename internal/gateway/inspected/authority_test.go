package inspected

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

func authority(t *testing.T, life time.Duration) (*Authority, *x509.Certificate) {
	t.Helper()
	a, err := NewAuthority("abcd2345", life)
	if err != nil {
		t.Fatal(err)
	}
	block, rest := pem.Decode(a.PEM())
	if block == nil || len(rest) > 0 {
		t.Fatalf("%s", a.PEM())
	}
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return a, ca
}

func TestAuthority(t *testing.T) {
	a, ca := authority(t, time.Minute)
	if !ca.IsCA || !ca.MaxPathLenZero || ca.KeyUsage != x509.KeyUsageCertSign || len(ca.SubjectKeyId) == 0 || !bytes.Equal(ca.SubjectKeyId, ca.AuthorityKeyId) && len(ca.AuthorityKeyId) > 0 {
		t.Errorf("%+v", ca)
	}
	for _, e := range ca.Extensions {
		if id := e.Id.String(); (id == "2.5.29.19" || id == "2.5.29.15") && !e.Critical {
			t.Errorf("extension %s is not critical", id)
		}
	}
	if left := time.Until(ca.NotAfter); left > time.Minute+skew || left < skew {
		t.Errorf("valid for %v", left)
	}
	if _, unlimited := authority(t, 0); time.Until(unlimited.NotAfter) > maxLife+skew {
		t.Errorf("valid until %v", unlimited.NotAfter)
	}
	leaf, err := a.Leaf("good.example.com")
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	if _, err := leaf.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "good.example.com"}); err != nil {
		t.Error(err)
	}
	if _, err := leaf.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "other.example.com"}); err == nil {
		t.Error("good for another name")
	}
	if l := leaf.Leaf; l.IsCA || l.KeyUsage != x509.KeyUsageDigitalSignature || !bytes.Equal(l.AuthorityKeyId, ca.SubjectKeyId) || l.NotAfter.After(ca.NotAfter) || l.Subject.CommonName != "" {
		t.Errorf("%+v", l)
	}
	if again, err := a.Leaf("good.example.com"); err != nil || again != leaf {
		t.Error("the certificate is not kept")
	}
	// Another sandbox's authority is another one.
	_, other := authority(t, time.Minute)
	strangers := x509.NewCertPool()
	strangers.AddCert(other)
	if _, err := leaf.Leaf.Verify(x509.VerifyOptions{Roots: strangers, DNSName: "good.example.com"}); err == nil {
		t.Error("another sandbox trusts it")
	}
}

// TestDistrust: whoever does not know the authority is recognised as such, in both versions of TLS, with OpenSSL as with Go.
func TestDistrust(t *testing.T) {
	testenv.Need(t, "tool:openssl")
	a, ca := authority(t, time.Minute)
	known := filepath.Join(t.TempDir(), "known.pem")
	if err := os.WriteFile(known, a.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	_, stranger := authority(t, time.Minute)
	unknown := filepath.Join(t.TempDir(), "unknown.pem")
	if err := os.WriteFile(unknown, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: stranger.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	openssl := func(file, version string) func(string) error {
		return func(address string) error {
			return exec.CommandContext(t.Context(), "openssl", "s_client", "-connect", address, "-servername", "good.example.com", "-CAfile", file, "-no-CApath", "-no-CAstore", "-verify_return_error", version).Run()
		}
	}
	golang := func(ca *x509.Certificate) func(string) error {
		return func(address string) error {
			roots := x509.NewCertPool()
			roots.AddCert(ca)
			c, err := tls.Dial("tcp", address, &tls.Config{ServerName: "good.example.com", RootCAs: roots})
			if err == nil {
				err = c.Close()
			}
			return err
		}
	}
	for _, test := range []struct {
		name    string
		dial    func(string) error
		accepts bool
	}{
		{"openssl 1.3", openssl(known, "-tls1_3"), true}, {"openssl 1.2", openssl(known, "-tls1_2"), true}, {"go", golang(ca), true},
		{"openssl 1.3, a stranger", openssl(unknown, "-tls1_3"), false}, {"openssl 1.2, a stranger", openssl(unknown, "-tls1_2"), false}, {"go, a stranger", golang(stranger), false},
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		dialled := make(chan error, 1)
		go func() { dialled <- test.dial(l.Addr().String()) }()
		tcp, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c, err := a.Accept(t.Context(), tcp.(*net.TCPConn), nil, "good.example.com")
		if (err == nil) != test.accepts || !test.accepts && !errors.Is(err, ErrUntrusted) {
			t.Errorf("%s: %v", test.name, err)
		}
		if err == nil {
			_ = c.Close() // it has served
		}
		_ = tcp.Close() // closed already, or of no use
		if err := <-dialled; (err == nil) != test.accepts {
			t.Errorf("%s: the client says %v", test.name, err)
		}
		_ = l.Close() // nobody else comes
	}
}

func BenchmarkLeaf(b *testing.B) {
	a, err := NewAuthority("abcd2345", 0)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		clear(a.leaves)
		if _, err := a.Leaf("good.example.com"); err != nil {
			b.Fatal(err)
		}
	}
}
