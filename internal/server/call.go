package server

import (
	"context"
	"crypto/rand"
	"net/http"
	"net/netip"

	"github.com/cofferdam/cofferdam/internal/auth"
	"github.com/cofferdam/cofferdam/internal/control"
)

// call is one request and what was found out about it.
type call struct {
	id        string // public, in answers and the log
	nonce     string // of this answer's scripts
	from      netip.Addr
	encrypted bool // the client came over TLS
	operation string
	actor     control.Actor
	who       auth.Principal // the same, as package auth knows it
	cookie    bool           // the actor was known by a cookie, which browsers send by themselves
	version   int64          // from If-Match; 0: none was asked for
	request   *http.Request
	writer    http.ResponseWriter // for its headers only
}

type callKey struct{}

// callOf returns what is known of the request that ctx belongs to.
func callOf(ctx context.Context) *call {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		return c
	}
	return &call{id: rand.Text()}
}

// Nonce returns the nonce that scripts and styles of this answer's page must carry, "" outside a request.
func Nonce(ctx context.Context) string {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		return c.nonce
	}
	return ""
}

// RequestID returns the public identifier of the request, by which it is found in the log, "" outside a request.
func RequestID(ctx context.Context) string {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		return c.id
	}
	return ""
}

// ClientAddr returns where the request came from, as far as trusted proxies say; the zero Addr outside a request.
func ClientAddr(ctx context.Context) netip.Addr {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		return c.from
	}
	return netip.Addr{}
}
