// Package inspected (GATEWAY) ends TLS for one sandbox under an authority of its own, and speaks HTTP/2. It translates: requests are judged,
// credentials lent and connections dialled by the pipeline.
package inspected

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"sync"
	"time"

	"github.com/cofferdam/cofferdam/internal/netname"
)

const (
	// skew is how far clocks may be apart.
	skew = time.Hour
	// maxLife bounds an authority whose run has no time limit. Clients refuse leaves beyond 397 days; nothing runs that long.
	maxLife = 31 * 24 * time.Hour
	// maxLeaves bounds the cache; the gateway's name table bounds distinct names, so a full cache is simply emptied.
	maxLeaves = 1024
)

// Authority signs certificates for the names that one sandbox dials. Its key is made here, stays in memory, and dies with the process: what a
// client inside trusts is worth nothing outside of its run. It is safe for concurrent use.
type Authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	leaf *ecdsa.PrivateKey // one for all names: they have the same holder

	mu     sync.Mutex
	leaves map[netname.Host]*tls.Certificate
}

// NewAuthority makes an authority for a run that lives as long as given, 0 for no limit.
func NewAuthority(run string, life time.Duration) (*Authority, error) {
	if life <= 0 || life > maxLife {
		life = maxLife
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the key of the authority: %w", err)
	}
	leaf, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the key of certificates: %w", err)
	}
	public, err := key.PublicKey.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode the key of the authority: %w", err)
	}
	id := sha256.Sum256(public)
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{Organization: []string{"Cofferdam"}, CommonName: "Cofferdam sandbox " + run},
		NotBefore: now.Add(-skew), NotAfter: now.Add(life + skew),
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true, // Go marks both extensions critical, as RFC 5280 §4.2.1 wants
		KeyUsage:     x509.KeyUsageCertSign,
		SubjectKeyId: id[:20], AuthorityKeyId: id[:20],
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign the authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read the authority: %w", err)
	}
	return &Authority{key: key, cert: cert, leaf: leaf, leaves: make(map[netname.Host]*tls.Certificate)}, nil
}

// serial returns 128 random bits.
func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b[:])
}

// PEM returns the authority's certificate, for the sandbox's trust store.
func (a *Authority) PEM() []byte {
	var out bytes.Buffer
	_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}) // a buffer takes everything
	return out.Bytes()
}

// Leaf returns the certificate of a name, made when it is first asked for.
func (a *Authority) Leaf(h netname.Host) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.leaves[h]; c != nil {
		return c, nil
	}
	template := &x509.Certificate{
		// No common name: a name stands in subjectAltName or nowhere (RFC 9525 §2).
		SerialNumber: serial(), Subject: pkix.Name{Organization: []string{"Cofferdam"}},
		NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{string(h)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, a.leaf.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate for %s: %w", h, err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read the certificate for %s: %w", h, err)
	}
	if len(a.leaves) >= maxLeaves {
		clear(a.leaves)
	}
	c := &tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: a.leaf, Leaf: parsed}
	a.leaves[h] = c
	return c, nil
}
