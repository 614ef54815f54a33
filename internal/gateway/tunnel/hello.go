// Package tunnel (GATEWAY) lets bytes through unread, once it is known where they may go: it reads a TLS ClientHello without answering
// it, and splices two connections in the kernel.
package tunnel

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"
)

// MaxHello bounds what is read before a ClientHello must be complete. It is crypto/tls's own bound on a handshake message, plus the
// record headers of a hello split into 16 records.
const MaxHello = 64<<10 + 16*5

// extensionECH is encrypted_client_hello (RFC 9849 §5): the true server name would be hidden from the gateway.
const extensionECH = 0xfe0d

// ErrNotTLS means that the bytes are no TLS ClientHello.
var ErrNotTLS = errors.New("not a TLS ClientHello")

// Hello is what a ClientHello says about where it wants to go.
type Hello struct {
	// Raw is every byte read from the client so far, to be replayed to the upstream as it is.
	Raw []byte
	// ServerName is the one host name in server_name, as sent; empty if there is none.
	ServerName string
	// Encrypted says that the client offered an encrypted hello, real or GREASE: from outside they cannot be told apart.
	Encrypted bool
}

// ReadHello reads from the client, after the bytes already read, until the ClientHello is whole, however it is split over
// segments and records. It answers nothing. The caller sets the deadline; the parser is crypto/tls's own, so what it reads is what a
// server would read. An error other than ErrNotTLS is the connection's.
func ReadHello(first []byte, client io.Reader) (Hello, error) {
	tap := &tap{seen: first, from: client}
	var hello Hello
	whole := false
	stop := errors.New("hello is whole")
	err := tls.Server(tap, &tls.Config{
		GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
			whole = true
			hello.ServerName = info.ServerName
			hello.Encrypted = slices.Contains(info.Extensions, extensionECH)
			return nil, stop
		},
	}).Handshake()
	hello.Raw = tap.seen
	switch {
	case whole:
		return hello, nil
	case tap.err != nil:
		return hello, fmt.Errorf("read client hello: %w", tap.err)
	}
	return hello, fmt.Errorf("%w: %v", ErrNotTLS, err)
}

// tap is a net.Conn that hands out the bytes of a client once and keeps them, and lets nothing out: crypto/tls's alerts end here.
type tap struct {
	seen []byte
	at   int
	from io.Reader
	err  error // of the client's connection
}

func (t *tap) Read(p []byte) (int, error) {
	if t.at == len(t.seen) {
		if err := t.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, t.seen[t.at:])
	t.at += n
	return n, nil
}

func (t *tap) fill() error {
	room := MaxHello - len(t.seen)
	if room <= 0 {
		return fmt.Errorf("hello exceeds %d bytes", MaxHello)
	}
	t.seen = slices.Grow(t.seen, min(room, 4096))
	n, err := t.from.Read(t.seen[len(t.seen):min(cap(t.seen), len(t.seen)+room)])
	t.seen = t.seen[:len(t.seen)+n]
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	t.err = err
	return err
}

func (t *tap) Write(p []byte) (int, error)      { return len(p), nil }
func (t *tap) Close() error                     { return nil }
func (t *tap) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (t *tap) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (t *tap) SetDeadline(time.Time) error      { return nil }
func (t *tap) SetReadDeadline(time.Time) error  { return nil }
func (t *tap) SetWriteDeadline(time.Time) error { return nil }
