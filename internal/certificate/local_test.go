package certificate

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cofferdam/cofferdam/internal/config"
	"github.com/cofferdam/cofferdam/internal/fault"
)

func localOptions(dir string, j *journal, names ...string) Options {
	return Options{TLS: config.TLS{Mode: config.TLSLocal}, Names: names, Dir: filepath.Join(dir, "tls"), Log: j.logger()}
}

func mustNew(t *testing.T, o Options) *Source {
	t.Helper()
	s, err := New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *Source) leafForTest(t *testing.T) *x509.Certificate {
	t.Helper()
	c, err := s.from.get(nil)
	if err != nil {
		t.Fatal(err)
	}
	return c.Leaf
}

func TestLocal(t *testing.T) {
	var j journal
	o := localOptions(t.TempDir(), &j, "c.example.com:8443", "10.1.2.3")
	s := mustNew(t, o)
	exists(t, filepath.Join(o.Dir, caKeyFile), 0o600)
	exists(t, filepath.Join(o.Dir, leafFile), 0o600)
	exists(t, filepath.Join(o.Dir, caFile), 0o644)
	exists(t, o.Dir, 0o700)

	pem, fingerprint := s.Authority()
	if onDisk, err := os.ReadFile(filepath.Join(o.Dir, caFile)); err != nil || string(onDisk) != string(pem) {
		t.Errorf("%s differs from the authority: %v", caFile, err)
	}
	if len(fingerprint) != 32*3-1 || strings.ToUpper(fingerprint) != fingerprint {
		t.Error(fingerprint)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	leaf := s.leafForTest(t)
	for name, good := range map[string]bool{
		"c.example.com": true, "localhost": true, "127.0.0.1": true, "::1": true, "10.1.2.3": true,
		"example.com": false, "d.example.com": false, "10.1.2.4": false, "127.0.0.2": false,
	} {
		_, err := leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: name, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
		if (err == nil) != good {
			t.Errorf("%s: %v", name, err)
		}
	}
	if life := leaf.NotAfter.Sub(leaf.NotBefore); life != leafLife+clockSkew {
		t.Errorf("a leaf lives for %v", life)
	}
	ca := s.local.ca.Load()
	if ca.key != nil || !ca.cert.MaxPathLenZero || ca.cert.KeyUsage != x509.KeyUsageCertSign {
		t.Errorf("authority %+v", ca.cert)
	}
	if !strings.HasPrefix(s.Describe(), "local authority, until ") {
		t.Error(s.Describe())
	}

	address := serve(t, s, "127.0.0.1:0")
	_, port, _ := net.SplitHostPort(address)
	caPath := filepath.Join(o.Dir, caFile)
	for _, url := range []string{"https://localhost:" + port, "https://127.0.0.1:" + port, "https://c.example.com:" + port} {
		if out, err := curl(t, caPath, url, "--resolve", "c.example.com:"+port+":127.0.0.1"); err != nil || out != "hello" {
			t.Errorf("%s: %s, %v", url, out, err)
		}
	}
	if out, err := curl(t, caPath, "https://d.example.com:"+port, "--resolve", "d.example.com:"+port+":127.0.0.1"); err == nil {
		t.Errorf("curl takes the certificate for another name: %s", out)
	}

	// Another start takes what is there.
	again := mustNew(t, o)
	if _, f := again.Authority(); f != fingerprint || again.leafForTest(t).SerialNumber.Cmp(leaf.SerialNumber) != 0 {
		t.Error("a second start made something new")
	}
}

// TestLocalConstrained signs, with the authority's own key, a certificate for somebody else: nobody may take it.
func TestLocalConstrained(t *testing.T) {
	var j journal
	o := localOptions(t.TempDir(), &j, "c.example.com")
	s := mustNew(t, o)
	ca, err := loadAuthority(filepath.Join(o.Dir, caKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	pem, _ := s.Authority()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	for _, name := range []string{"bank.example", "example.com", "192.0.2.1"} {
		n, err := parseNames([]string{name})
		if err != nil {
			t.Fatal(err)
		}
		pair, _, err := ca.issue(n, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: name}); err == nil {
			t.Errorf("a certificate for %s is taken", name)
		}
		forged := &Source{protocols: []string{"http/1.1"}, from: &files{}}
		forged.from.(*files).current.Store(pair)
		address := serve(t, forged, "127.0.0.1:0")
		_, port, _ := net.SplitHostPort(address)
		if out, err := curl(t, filepath.Join(o.Dir, caFile), "https://"+name+":"+port, "--connect-to", "::127.0.0.1:"); err == nil || !strings.Contains(out, "permitted subtree") {
			t.Errorf("curl, %s: %s, %v", name, out, err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	below := &x509.Certificate{NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, below, ca.cert, key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	inter, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	n, _ := parseNames([]string{"c.example.com"})
	pair, _, err := (&authority{cert: inter, key: key}).issue(n, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	inters := x509.NewCertPool()
	inters.AddCert(inter)
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: pool, Intermediates: inters, DNSName: "c.example.com"}); err == nil {
		t.Error("an authority below the authority is taken")
	}
}

// TestLocalNames changes names: fewer need a new leaf, more need a new authority, because the old one may not vouch for them.
func TestLocalNames(t *testing.T) {
	var j journal
	dir := t.TempDir()
	two := mustNew(t, localOptions(dir, &j, "c.example.com", "d.example.com"))
	one := mustNew(t, localOptions(dir, &j, "c.example.com"))
	_, before := two.Authority()
	_, after := one.Authority()
	if before != after || one.leafForTest(t).VerifyHostname("d.example.com") == nil {
		t.Error("a name less: the authority is another, or the leaf still has the name")
	}
	below := mustNew(t, localOptions(dir, &j, "x.c.example.com"))
	if _, f := below.Authority(); f != before || below.leafForTest(t).VerifyHostname("x.c.example.com") != nil {
		t.Error("a name below a permitted one needed a new authority")
	}
	if strings.Contains(j.String(), "must trust the new one") {
		t.Error(j.String())
	}
	other := mustNew(t, localOptions(dir, &j, "e.example.com"))
	if _, f := other.Authority(); f == before || !strings.Contains(j.String(), "must trust the new one") {
		t.Errorf("a new name: %s", &j)
	}
}

func TestLocalRenews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		o := localOptions(t.TempDir(), &j, "c.example.com")
		s := mustNew(t, o)
		_, fingerprint := s.Authority()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		first := s.leafForTest(t)
		time.Sleep(59 * 24 * time.Hour)
		synctest.Wait()
		if s.leafForTest(t) != first {
			t.Error("renewed before two thirds")
		}

		// The disk is not there for a day: the old one stays, and it is told.
		away := o.Dir + ".away"
		if err := os.Rename(o.Dir, away); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * 24 * time.Hour)
		synctest.Wait()
		if s.leafForTest(t) != first || !strings.Contains(s.Describe(), "cannot be renewed") {
			t.Errorf("without its directory: %s", s.Describe())
		}
		if err := os.Rename(away, o.Dir); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		second := s.leafForTest(t)
		if second == first || !second.NotAfter.After(first.NotAfter) || strings.Contains(s.Describe(), "cannot") {
			t.Errorf("not renewed: %s; %s", s.Describe(), &j)
		}
		if _, f := s.Authority(); f != fingerprint {
			t.Error("the authority changed")
		}

		time.Sleep(authorityLife - 80*24*time.Hour) // until it could not vouch for a whole leaf
		synctest.Wait()
		if _, f := s.Authority(); f == fingerprint || !strings.Contains(j.String(), "must trust the new one") {
			t.Error("the authority was not replaced before its end")
		}
		if now := time.Now(); now.After(s.leafForTest(t).NotAfter) {
			t.Error("the certificate expired")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestLocalClock(t *testing.T) {
	var j journal
	o := localOptions(t.TempDir(), &j, "c.example.com")
	first := mustNew(t, o).leafForTest(t)
	o.Clock = func() time.Time { return time.Now().Add(61 * 24 * time.Hour) }
	if mustNew(t, o).leafForTest(t).SerialNumber.Cmp(first.SerialNumber) == 0 {
		t.Error("a start after two thirds takes the old one")
	}
	o.Clock = nil // the clock was wrong, and is right again
	if leaf := mustNew(t, o).leafForTest(t); time.Now().Before(leaf.NotBefore) {
		t.Error("a certificate of the future is in force")
	}
}

func TestLocalBroken(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(dir string) error
		want  string // in the hint; empty: mended
	}{
		"leaf gone":               {func(dir string) error { return os.Remove(filepath.Join(dir, leafFile)) }, ""},
		"leaf cut":                {func(dir string) error { return os.Truncate(filepath.Join(dir, leafFile), 100) }, ""},
		"leaf readable":           {func(dir string) error { return os.Chmod(filepath.Join(dir, leafFile), 0o644) }, ""},
		"public file gone":        {func(dir string) error { return os.Remove(filepath.Join(dir, caFile)) }, ""},
		"authority cut":           {func(dir string) error { return os.Truncate(filepath.Join(dir, caKeyFile), 100) }, "trust anew"},
		"authority is a leaf":     {func(dir string) error { return copyFile(filepath.Join(dir, leafFile), filepath.Join(dir, caKeyFile)) }, "trust anew"},
		"authority's key is open": {func(dir string) error { return os.Chmod(filepath.Join(dir, caKeyFile), 0o644) }, "chmod 600"},
	} {
		t.Run(name, func(t *testing.T) {
			var j journal
			o := localOptions(t.TempDir(), &j, "c.example.com")
			_, before := mustNew(t, o).Authority()
			if err := c.spoil(o.Dir); err != nil {
				t.Fatal(err)
			}
			s, err := New(t.Context(), o)
			if c.want != "" {
				if !strings.Contains(fault.HintOf(err), c.want) {
					t.Errorf("%v (hint %q)", err, fault.HintOf(err))
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, f := s.Authority(); f != before {
				t.Error("the authority changed")
			}
			exists(t, filepath.Join(o.Dir, caFile), 0o644)
			exists(t, filepath.Join(o.Dir, leafFile), 0o600)
		})
	}
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o600)
}
