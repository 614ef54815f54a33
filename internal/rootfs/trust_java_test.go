package rootfs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

func authority(t testing.TB) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func place(t testing.TB, root, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(root+path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(root+path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestJavaTrust: keytool, which checks the hash, reads what is made of a store in each form.
func TestJavaTrust(t *testing.T) {
	testenv.Need(t, "tool:keytool")
	list := func(data []byte) string {
		t.Helper()
		file := filepath.Join(t.TempDir(), "store")
		place(t, "", file, data)
		out, err := exec.Command("keytool", "-J-Duser.language=en", "-list", "-keystore", file, "-storepass", "changeit").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	system, own := append(authority(t), authority(t)...), authority(t)
	for _, form := range []string{"jks", "pkcs12"} {
		root := t.TempDir()
		store, cert := filepath.Join(root, JavaStores()[0]), filepath.Join(root, "cert.pem")
		place(t, root, Bundles()[0], system)
		place(t, root, JavaStores()[0], nil)
		place(t, root, "/cert.pem", authority(t))
		if err := os.Remove(store); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("keytool", "-importcert", "-noprompt", "-alias", "company", "-file", cert, "-storetype", form, "-keystore", store, "-storepass", "changeit").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		data, err := listing{root, ""}.java(JavaStores()[0], own)
		if err != nil {
			t.Fatal(err)
		}
		want := map[string][]string{"jks": {"2 entries", "company", "cofferdam-1"}, "pkcs12": {"3 entries", "system-1", "system-2", "cofferdam-1"}}[form]
		for _, text := range want {
			if out := list(data); !strings.Contains(out, text) {
				t.Errorf("%s: no %q in %s", form, text, out)
			}
		}
		if data, err := (listing{filepath.Join(root, "etc"), "/etc"}).java(JavaStores()[0], own); err != nil || !strings.Contains(list(data), want[0]) {
			t.Errorf("%s: of a part of a tree: %v", form, err)
		}
	}
	root := t.TempDir()
	if data, err := (listing{root, ""}).java(JavaStores()[0], own); data != nil || err != nil {
		t.Errorf("a store where there was none: %v", err)
	}
	place(t, root, JavaStores()[0], []byte("no store"))
	if data, err := (listing{root, ""}).java(JavaStores()[0], own); data != nil || err != nil {
		t.Errorf("a store of nothing: %v", err)
	}
}

// FuzzJKS: what is taken for a store is written back byte for byte, and still is one with more in it.
func FuzzJKS(f *testing.F) {
	var s javaStore
	f.Add(s.encode())
	s.add("one", authority(f))
	f.Add(s.encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := parseJKS(data)
		if err != nil {
			return
		}
		if !bytes.Equal(s.encode(), data) {
			t.Fatal("changed")
		}
		count := s.count
		s.add("one", authority(t))
		if again, err := parseJKS(s.encode()); err != nil || again.count != count+1 || !bytes.HasPrefix(again.entries, data[jksHead:len(data)-20]) {
			t.Fatal(again.count, err)
		}
	})
}
