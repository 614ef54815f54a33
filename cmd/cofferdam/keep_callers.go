package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/frame"
)

const (
	// maxUnproven bounds the connections to the control address that have not proved themselves. Any program inside can make such; the oldest is given up for
	// the newest, so that none of them keeps the runner out, which proves itself with its first bytes.
	maxUnproven = 64
	// provenWithin is how long a connection may take to prove itself: the runner does with its first bytes.
	provenWithin = 5 * time.Second
	// maxHello bounds the frame by which it does; package frame has the same bound.
	maxHello = 4 << 10
)

// callers tells the runner's calls to the control address from those of other programs inside, by tokens that are used once. Its zero value is ready. It is
// safe for concurrent use.
type callers struct {
	mu       sync.Mutex
	expected []*expected
	unproven []net.Conn // the oldest first
}

// expected is a call that the runner is about to make.
type expected struct {
	of   *callers
	hash [sha256.Size]byte // of the token
	came chan *proven
}

// expect returns a call to wait for, and the token that proves it. The caller waits for the call, or forgets it.
func (c *callers) expect() (call *expected, token []byte) {
	var b [32]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails since Go 1.24
	token = hex.AppendEncode(nil, b[:])
	call = &expected{of: c, hash: sha256.Sum256(token), came: make(chan *proven, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expected = append(c.expected, call)
	return call, token
}

// wait returns the runner's connection, within a time.
func (x *expected) wait(ctx context.Context, patience time.Duration) (io.ReadWriteCloser, error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case conn := <-x.came:
		return conn, nil
	case <-ctx.Done():
		x.forget()
		return nil, fault.New(fault.Unavailable, "the sandbox ended before its runner called")
	case <-timer.C:
		x.forget()
		return nil, fault.New(fault.Unavailable, "the runner did not answer within %v", patience)
	}
}

// forget makes the token worthless, and closes the connection if it came in this moment.
func (x *expected) forget() {
	x.of.mu.Lock()
	defer x.of.mu.Unlock()
	x.of.expected = slices.DeleteFunc(x.of.expected, func(other *expected) bool { return other == x })
	select {
	case conn := <-x.came:
		_ = conn.Close() // nobody wants it
	default:
	}
}

// take serves a connection to the control address: it returns when whoever expected it has closed it. One that does not prove itself is not taken.
func (c *callers) take(conn net.Conn) bool {
	c.enter(conn)
	token, hello, err := readHello(conn)
	c.mu.Lock()
	c.unproven = slices.DeleteFunc(c.unproven, func(other net.Conn) bool { return other == conn })
	var p *proven
	if err == nil {
		p = c.match(token, hello, conn)
	}
	c.mu.Unlock()
	clear(token)
	if p == nil {
		return false
	}
	<-p.over // the gateway closes the connection when this returns
	return true
}

// enter notes a connection that has not proved itself, in the place of the oldest if there are too many.
func (c *callers) enter(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = conn.SetReadDeadline(time.Now().Add(provenWithin)) // a connection that is gone is read no better
	if len(c.unproven) >= maxUnproven {
		_ = c.unproven[0].SetReadDeadline(time.Unix(1, 0))
		c.unproven = slices.Delete(c.unproven, 0, 1)
	}
	c.unproven = append(c.unproven, conn)
}

// match hands a connection to who expects it, and makes its token worthless; nil if nobody does. c.mu is held.
func (c *callers) match(token, hello []byte, conn net.Conn) *proven {
	hash := sha256.Sum256(token)
	for i, x := range c.expected {
		if subtle.ConstantTimeCompare(hash[:], x.hash[:]) != 1 {
			continue
		}
		if conn.SetReadDeadline(time.Time{}) != nil {
			return nil // it is gone
		}
		c.expected = slices.Delete(c.expected, i, i+1)
		p := &proven{Conn: conn, first: bytes.NewReader(hello), over: make(chan struct{})}
		p.leave = sync.OnceFunc(func() { close(p.over) })
		x.came <- p
		return p
	}
	return nil
}

// readHello reads the one frame by which a runner introduces itself, and not a byte more. It returns the token, and the frame without it, for whoever
// takes the connection over.
func readHello(conn io.Reader) (token, hello []byte, err error) {
	head := make([]byte, 6) // type, stream, length
	if _, err := io.ReadFull(conn, head); err != nil {
		return nil, nil, err
	}
	n := binary.BigEndian.Uint32(head[2:])
	if n > maxHello {
		return nil, nil, errors.New("no introduction")
	}
	wire := append(head, make([]byte, n)...)
	if _, err := io.ReadFull(conn, wire[len(head):]); err != nil {
		return nil, nil, err
	}
	f, err := frame.NewReader(bytes.NewReader(wire)).Next()
	if err != nil {
		return nil, nil, err
	}
	// The payload is the version in two bytes, the token with its length in one, and facts.
	if f.Type != frame.TypeHello || len(f.Payload) < 3+int(f.Payload[2]) || f.Payload[2] == 0 {
		return nil, nil, errors.New("no introduction")
	}
	end := 3 + int(f.Payload[2])
	token = bytes.Clone(f.Payload[3:end])
	rest := append([]byte{f.Payload[0], f.Payload[1], 0}, f.Payload[end:]...)
	clear(wire)
	return token, frame.Append(nil, frame.Frame{Type: frame.TypeHello, Payload: rest}), nil
}

// proven is a connection of the runner's. What is read from it begins with its introduction, without the token.
type proven struct {
	net.Conn
	first *bytes.Reader
	over  chan struct{}
	leave func()
}

// Read reads the introduction, and then the connection.
func (p *proven) Read(b []byte) (int, error) {
	if p.first.Len() > 0 {
		return p.first.Read(b)
	}
	return p.Conn.Read(b)
}

// Close closes the connection.
func (p *proven) Close() error {
	defer p.leave()
	return p.Conn.Close()
}
