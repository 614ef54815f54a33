package certificate

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// authority signs certificates. It is constrained: whoever steals its key from this server can pretend to be this server, to people who trust it,
// and not to be their bank.
type authority struct {
	cert        *x509.Certificate
	pem         []byte
	fingerprint string
	key         crypto.Signer // nil in what is kept in memory
}

// newAuthority makes an authority that may vouch for names, for servers only, with no other authority below it.
func newAuthority(n names, now time.Time) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the authority's key: %w", err)
	}
	template := &x509.Certificate{
		Subject:                     pkix.Name{CommonName: "Cofferdam on " + n.first(), Organization: []string{"Cofferdam local authority"}},
		NotBefore:                   now.Add(-clockSkew),
		NotAfter:                    now.Add(authorityLife),
		IsCA:                        true,
		BasicConstraintsValid:       true,
		MaxPathLenZero:              true,
		KeyUsage:                    x509.KeyUsageCertSign,
		ExtKeyUsage:                 []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         n.dns,
	}
	// Loopback names are always among them, so there is a constraint of either kind; without one, that kind would be unlimited.
	for _, a := range n.ips {
		template.PermittedIPRanges = append(template.PermittedIPRanges, &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())})
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign the authority's certificate: %w", err)
	}
	return readAuthority(der, key)
}

func readAuthority(der []byte, key crypto.Signer) (*authority, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read the authority's certificate: %w", err)
	}
	sum := sha256.Sum256(der)
	return &authority{
		cert: cert, key: key, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		fingerprint: strings.ReplaceAll(fmt.Sprintf("% X", sum[:]), " ", ":"),
	}, nil
}

func loadAuthority(path string) (*authority, error) {
	data, err := readPrivate(path)
	if err != nil {
		return nil, err
	}
	defer clear(data)
	pair, err := tls.X509KeyPair(data, data)
	if err != nil || !pair.Leaf.IsCA {
		return nil, fault.New(fault.Invalid, "the server's own authority %s cannot be used", path).
			WithHint("bring the file back from a backup, or remove it: then a new authority is made, which people must trust anew").Because(err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("the key in %s cannot sign", path)
	}
	return readAuthority(pair.Leaf.Raw, key)
}

// covers says whether the authority may vouch for every name. A name permits those below it (RFC 5280, section 4.2.1.10).
func (a *authority) covers(n names) bool {
	for _, name := range n.dns {
		if !slices.ContainsFunc(a.cert.PermittedDNSDomains, func(d string) bool { return name == d || strings.HasSuffix(name, "."+d) }) {
			return false
		}
	}
	return !slices.ContainsFunc(n.ips, func(ip netip.Addr) bool {
		return !slices.ContainsFunc(a.cert.PermittedIPRanges, func(r *net.IPNet) bool { return r.Contains(ip.AsSlice()) })
	})
}

// save writes certificate and key.
func (a *authority) save(path string) error {
	data, err := encode(a.cert.Raw, a.key)
	if err != nil {
		return err
	}
	defer clear(data)
	return writeFile(path, data, modeSecret)
}

// issue makes a leaf with a new key, and returns it for use and as PEM.
func (a *authority) issue(n names, now time.Time) (*tls.Certificate, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make the server's key: %w", err)
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: n.first()},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(leafLife),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:              n.dns,
		IPAddresses:           n.netIPs(),
	}
	if template.NotAfter.After(a.cert.NotAfter) {
		template.NotAfter = a.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, nil, fmt.Errorf("sign the server's certificate: %w", err)
	}
	data, err := encode(der, key)
	if err != nil {
		return nil, nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("read the server's certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, data, nil
}

// encode writes a certificate and its key as PEM.
func encode(der []byte, key crypto.Signer) ([]byte, error) {
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a key: %w", err)
	}
	defer clear(private)
	var b bytes.Buffer
	err = errors.Join(pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.Encode(&b, &pem.Block{Type: "PRIVATE KEY", Bytes: private}))
	return b.Bytes(), err
}

// writeIfOther writes a public file unless it is as wanted.
func writeIfOther(path string, data []byte) error {
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, data) {
		return nil
	}
	return writeFile(path, data, modePublic)
}

// writeFile puts a file in place at a stroke, and on the disk before it returns.
func writeFile(path string, data []byte, mode os.FileMode) error {
	fail := func(err error) error {
		return fault.New(fault.Unavailable, "cannot write %s", path).WithHint("let the service's user write that directory, and see that the disk is not full").Because(err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return fail(err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fail(errors.Join(err, os.Remove(f.Name())))
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fail(err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fail(err)
	}
	return nil
}
