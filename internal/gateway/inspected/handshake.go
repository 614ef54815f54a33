package inspected

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/cofferdam/cofferdam/internal/gateway/plainhttp"
	"github.com/cofferdam/cofferdam/internal/netname"
)

// The protocols inside TLS.
const (
	HTTP1 = "http/1.1"
	HTTP2 = "h2"
)

// ErrUntrusted means that the client did not accept the certificate: it does not know the sandbox's authority, or accepts only its server's own.
var ErrUntrusted = errors.New("the client does not accept the sandbox's certificate authority")

// replayed is a client's connection of which the first bytes were read already.
type replayed struct {
	plainhttp.Conn
	first []byte
	last  [alertSize]byte // of what was read
}

// alertSize is the length of an alert's record (RFC 8446 §5.1, §6).
const alertSize = 7

func (r *replayed) Read(p []byte) (int, error) {
	if len(r.first) > 0 {
		n := copy(p, r.first)
		r.first = r.first[n:]
		return n, nil
	}
	n, err := r.Conn.Read(p)
	if n >= alertSize {
		copy(r.last[:], p[n-alertSize:n])
	} else {
		copy(r.last[:], r.last[n:])
		copy(r.last[alertSize-n:], p[:n])
	}
	return n, err
}

// distrusts says whether the last that came is an alert about our certificate in clear. OpenSSL sends it so where TLS 1.3 wants it encrypted, since in its compatible mode it
// has not changed its keys by then; crypto/tls takes that for a broken record.
func (r *replayed) distrusts() bool {
	if !bytes.HasPrefix(r.last[:], []byte{21, 3, 3, 0, 2, 2}) { // an alert, of two bytes, fatal
		return false
	}
	switch r.last[alertSize-1] {
	case 42, 43, 44, 45, 46, 48: // bad, unsupported, revoked, expired, unknown certificate; unknown authority
		return true
	}
	return false
}

// NetConn returns the connection itself.
func (r *replayed) NetConn() net.Conn { return r.Conn }

// Accept ends the TLS of a client that has sent the bytes given, as a server of the name given, whatever the client says.
func (a *Authority) Accept(ctx context.Context, client plainhttp.Conn, hello []byte, h netname.Host) (*tls.Conn, error) {
	leaf, err := a.Leaf(h)
	if err != nil {
		return nil, err
	}
	from := &replayed{Conn: client, first: hello}
	c := tls.Server(from, &tls.Config{
		Certificates: []tls.Certificate{*leaf}, NextProtos: []string{HTTP2, HTTP1}, MinVersion: tls.VersionTLS12,
		// A ticket would bring back a connection without its hello being judged by name; making one also costs time.
		SessionTicketsDisabled: true,
		// Small records, with which a connection would begin, help where packets take time; the client is on this machine.
		DynamicRecordSizingDisabled: true,
	})
	if err := c.HandshakeContext(ctx); err != nil {
		var alert tls.AlertError
		if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" || errors.As(err, &alert) || from.distrusts() {
			return nil, fmt.Errorf("%w: %w", ErrUntrusted, err)
		}
		return nil, err
	}
	return c, nil
}

// Connector makes TLS connections to upstreams. Its zero value trusts the system's roots.
type Connector struct {
	Roots    *x509.CertPool // nil: the system's
	sessions tls.ClientSessionCache
}

// NewConnector returns a Connector that resumes sessions. Each sandbox has its own.
func NewConnector(roots *x509.CertPool) *Connector {
	return &Connector{Roots: roots, sessions: tls.NewLRUClientSessionCache(64)}
}

// Connect speaks TLS on a connection that was dialled to a name. The certificate is verified for that name: only then may a credential go there.
// The connection is closed if it fails.
func (c *Connector) Connect(ctx context.Context, tcp *net.TCPConn, h netname.Host, protocols ...string) (*tls.Conn, error) {
	server := tls.Client(tcp, &tls.Config{
		ServerName: string(h), RootCAs: c.Roots, NextProtos: protocols, MinVersion: tls.VersionTLS12, ClientSessionCache: c.sessions,
	})
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	if err := server.HandshakeContext(ctx); err != nil {
		_ = tcp.Close() // it is of no use
		return nil, fmt.Errorf("TLS with %s: %w", h, err)
	}
	return server, nil
}

const handshakeTime = 10 * time.Second
