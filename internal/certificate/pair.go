package certificate

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// maxFile bounds what is read of a file: a chain with its key has a few kilobytes.
const maxFile = 1 << 20

// loadPair reads a certificate and its key.
func loadPair(certFile, keyFile string) (*tls.Certificate, error) {
	cert, err := readFile(certFile, "certificate")
	if err != nil {
		return nil, err
	}
	key, err := readPrivate(keyFile)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the certificate %s and the key %s cannot be used", certFile, keyFile).
			WithHint("both must be PEM, the key unencrypted, and the first certificate in the file the one that belongs to the key, before those of authorities").Because(err)
	}
	return &pair, nil
}

func readFile(name, what string) ([]byte, error) {
	f, err := open(name, what)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(f, what)
}

// readPrivate reads a key's file, unless everybody on this machine can too: then the key is no secret any more.
func readPrivate(name string) ([]byte, error) {
	f, err := open(name, "key")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("look at key %s: %w", name, err)
	}
	// Its group may read it: that is how distributions share keys with services.
	if info.Mode().Perm()&0o007 != 0 {
		return nil, fault.New(fault.Invalid, "the key %s can be used by every user of this machine (mode %#o)", name, info.Mode().Perm()).WithHint("chmod 600 %s", name)
	}
	return readAll(f, "key")
}

func open(name, what string) (*os.File, error) {
	f, err := os.Open(name)
	if err != nil {
		e := fault.New(fault.Invalid, "cannot read the %s %s", what, name).Because(err)
		if errors.Is(err, fs.ErrPermission) {
			return nil, e.WithHint("let the service's user read it")
		}
		return nil, e.WithHint("name an existing file in tls.cert and tls.key")
	}
	return f, nil
}

func readAll(f *os.File, what string) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = errors.New("it is larger than 1 MiB")
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, "cannot read the %s %s", what, f.Name()).Because(err)
	}
	return data, nil
}

// span says in a few words how long a certificate is valid.
func span(leaf *x509.Certificate, now time.Time) string {
	switch {
	case now.Before(leaf.NotBefore):
		return "not valid before " + day(leaf.NotBefore)
	case now.After(leaf.NotAfter):
		return "expired " + day(leaf.NotAfter)
	}
	return "until " + day(leaf.NotAfter)
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// cut bounds what others wrote before it is logged or shown.
func cut(text string) string {
	const most = 500
	if len(text) > most {
		return text[:most] + "…"
	}
	return text
}
