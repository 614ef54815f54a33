package certificate

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cofferdam/cofferdam/internal/config"
	"github.com/cofferdam/cofferdam/internal/fault"
)

func fileOptions(dir string, j *journal) Options {
	return Options{
		TLS:   config.TLS{Mode: config.TLSFiles, Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")},
		Names: []string{"c.example.com:8443"}, Log: j.logger(),
	}
}

func TestFilesRefused(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(cert, key string) error
		want  string // in the error
		hint  string
	}{
		"no certificate":  {func(cert, _ string) error { return os.Remove(cert) }, "cert.pem", "existing"},
		"no key":          {func(_, key string) error { return os.Remove(key) }, "key.pem", "existing"},
		"readable by all": {func(_, key string) error { return os.Chmod(key, 0o644) }, "key.pem", "chmod 600"},
		"empty":           {func(cert, _ string) error { return os.WriteFile(cert, nil, 0o600) }, "cert.pem", "PEM"},
		"key is no key":   {func(_, key string) error { return os.WriteFile(key, []byte("hello"), 0o600) }, "key.pem", "PEM"},
		"a huge file":     {func(cert, _ string) error { return os.WriteFile(cert, make([]byte, maxFile+1), 0o600) }, "1 MiB", ""},
		"another key":     {nil, "does not match", "belongs to the key"},
		"a directory":     {func(_, key string) error { return replaceByDir(key) }, "key.pem", ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			o := fileOptions(dir, &journal{})
			writePair(t, o.TLS.Cert, o.TLS.Key, "c.example.com", time.Now())
			if c.spoil == nil {
				writePair(t, filepath.Join(dir, "other.pem"), o.TLS.Key, "c.example.com", time.Now())
			} else if err := c.spoil(o.TLS.Cert, o.TLS.Key); err != nil {
				t.Fatal(err)
			}
			_, err := New(t.Context(), o)
			if fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), c.want) || !strings.Contains(fault.HintOf(err), c.hint) {
				t.Errorf("%v (hint %q)", err, fault.HintOf(err))
			}
		})
	}
}

func replaceByDir(path string) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	return os.Mkdir(path, 0o700)
}

func TestFilesGroupMayRead(t *testing.T) {
	o := fileOptions(t.TempDir(), &journal{})
	writePair(t, o.TLS.Cert, o.TLS.Key, "c.example.com", time.Now())
	if err := os.Chmod(o.TLS.Key, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := New(t.Context(), o); err != nil {
		t.Error(err)
	}
}

func TestFilesWarn(t *testing.T) {
	for name, c := range map[string]struct {
		certName string
		age      time.Duration
		want     string // in the log; empty: nothing
		describe string
	}{
		"fine":         {"c.example.com", 0, "", "files, until "},
		"expired":      {"c.example.com", 100 * 24 * time.Hour, "expired", "files, expired "},
		"ends soon":    {"c.example.com", 80 * 24 * time.Hour, "not for long", "files, until "},
		"not yet":      {"c.example.com", -2 * time.Hour, "not valid before", "files, not valid before "},
		"another name": {"d.example.com", 0, "names=c.example.com", "files, until "},
	} {
		t.Run(name, func(t *testing.T) {
			var j journal
			o := fileOptions(t.TempDir(), &j)
			writePair(t, o.TLS.Cert, o.TLS.Key, c.certName, time.Now().Add(-c.age))
			s, err := New(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if got := j.String(); !strings.Contains(got, c.want) || (got == "") != (c.want == "") {
				t.Errorf("logged %q", got)
			}
			if !strings.HasPrefix(s.Describe(), c.describe) {
				t.Error(s.Describe())
			}
		})
	}
}

// TestFilesReload exchanges the files under a source that runs: whole, half, and by a link that points elsewhere.
func TestFilesReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		dir := t.TempDir()
		o := fileOptions(dir, &j)
		writePair(t, o.TLS.Cert, o.TLS.Key, "c.example.com", time.Now())
		s, err := New(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		serial := func() string {
			time.Sleep(10 * time.Second)
			synctest.Wait()
			c, err := s.Config().GetCertificate(nil)
			if err != nil {
				t.Fatal(err)
			}
			return c.Leaf.SerialNumber.String()
		}
		first := serial()
		if serial() != first || j.String() != "" {
			t.Fatalf("something happened: %s", &j)
		}

		// Only the certificate so far: the old pair stays, and the log says so once.
		newKey := filepath.Join(dir, "new-key.pem")
		writePair(t, o.TLS.Cert, newKey, "c.example.com", time.Now())
		for range 2 {
			if serial() != first {
				t.Error("half a pair is in force")
			}
		}
		if n := strings.Count(j.String(), "the old one stays"); n != 1 {
			t.Errorf("logged %d times: %s", n, &j)
		}
		if !strings.Contains(s.Describe(), "cannot be used") {
			t.Error(s.Describe())
		}

		if err := os.Rename(newKey, o.TLS.Key); err != nil {
			t.Fatal(err)
		}
		second := serial()
		if second == first || strings.Contains(s.Describe(), "cannot be used") {
			t.Errorf("the new pair is not in force: %s", s.Describe())
		}

		// As container orchestrators do it: the names are links into a directory, which is exchanged.
		third := exchangeByLinks(t, dir, o.TLS)
		if got := serial(); got == second || got != third() {
			t.Error("the pair behind links is not in force")
		}
		if err := os.Remove(o.TLS.Key); err != nil {
			t.Fatal(err)
		}
		if serial() != third() {
			t.Error("without a key the old pair does not stay")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func exchangeByLinks(t *testing.T, dir string, c config.TLS) func() string {
	t.Helper()
	below := filepath.Join(dir, "v2")
	if err := os.Mkdir(below, 0o700); err != nil {
		t.Fatal(err)
	}
	cert, key := filepath.Join(below, "cert.pem"), filepath.Join(below, "key.pem")
	writePair(t, cert, key, "c.example.com", time.Now())
	for from, to := range map[string]string{c.Cert: cert, c.Key: key} {
		if err := os.Remove(from); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, from); err != nil {
			t.Fatal(err)
		}
	}
	return func() string {
		pair, err := loadPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		return pair.Leaf.SerialNumber.String()
	}
}
