package server

import (
	"errors"
	"net"
	"net/netip"
	"sync"
)

// How many connections may come from one place. What stands before us, and what runs on the same machine, speaks for many.
const (
	maxConnections = 256
	maxRelayed     = 4096
)

// Bound returns a listener that closes connections of an address (an IPv6 network of 64 bits) that has too many, before a byte of them is read. It goes
// below TLS.
func (s *Server) Bound(l net.Listener) net.Listener {
	return &boundListener{Listener: l, s: s, others: newCrowd(maxConnections), relays: newCrowd(maxRelayed)}
}

type boundListener struct {
	net.Listener
	s              *Server
	others, relays *crowd
}

// Accept returns the next connection that is not one too many.
func (l *boundListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		leave, ok := l.enter(c.RemoteAddr())
		if !ok {
			_ = c.Close() // whoever it is learns it by that
			continue
		}
		return &boundConn{Conn: c, leave: sync.OnceFunc(leave)}, nil
	}
}

func (l *boundListener) enter(from net.Addr) (leave func(), ok bool) {
	ap, err := netip.ParseAddrPort(from.String())
	if err != nil { // a Unix socket: of the same machine
		return l.relays.enter("")
	}
	a := ap.Addr().Unmap().WithZone("")
	if a.IsLoopback() || l.s.trusted(a) {
		return l.relays.enter(a.String())
	}
	return l.others.enter(neighbourhood(a))
}

// boundConn is a connection that counts until it is closed.
type boundConn struct {
	net.Conn
	leave func()
}

// Close closes the connection and makes room for another.
func (c *boundConn) Close() error {
	c.leave()
	return c.Conn.Close()
}

// CloseWrite ends what we send: net/http does so before it closes, so that a client that still sends reads the answer.
func (c *boundConn) CloseWrite() error {
	if tcp, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return tcp.CloseWrite()
	}
	return errors.ErrUnsupported
}
