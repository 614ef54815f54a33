package inspected

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"testing"
	"time"
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
