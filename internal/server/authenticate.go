package server

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/internal/auth"
	"github.com/cofferdam/cofferdam/internal/control"
	"github.com/cofferdam/cofferdam/internal/fault"
)

// authenticate finds out who calls: by a token in Authorization, or by the cookie of a session. Whoever sends a token that is not good is not tried by
// cookie: a program must learn that its token is void.
func (s *Server) authenticate(r *http.Request, c *call) error {
	who, cookie, err := s.identify(r)
	if err != nil {
		return err
	}
	c.actor, c.who, c.cookie = actorOf(who), who, cookie
	return nil
}

func (s *Server) identify(r *http.Request) (who auth.Principal, cookie bool, err error) {
	if given := r.Header.Values("Authorization"); len(given) > 0 {
		scheme, text, _ := strings.Cut(given[0], " ")
		if len(given) > 1 || !strings.EqualFold(scheme, "Bearer") {
			return who, false, fault.New(fault.Unauthenticated, "this is not how to show a token").WithHint("send Authorization: Bearer %s…", auth.TokenPrefix)
		}
		who, err = s.auth.Token(r.Context(), strings.TrimSpace(text))
		return who, false, err
	}
	text := s.auth.ReadCookie(r, auth.SessionCookie)
	if text == "" {
		return who, false, fault.New(fault.Unauthenticated, "you are not signed in").WithHint("sign in, or send a token")
	}
	who, err = s.auth.Session(r.Context(), text)
	return who, true, err
}

// actorOf is who a principal is to the operations.
func actorOf(p auth.Principal) control.Actor {
	a := control.Actor{Tenant: p.Tenant, User: p.User, Name: p.Email, Role: p.Role, Operator: p.Operator, Via: p.Via.String(), ID: p.SessionID}
	if p.Via == auth.ViaToken {
		a.ID, a.Scopes = p.TokenID, p.Scopes
		if a.Scopes == nil {
			a.Scopes = []string{} // a token is always narrowed
		}
	}
	return a
}

// still says whether the caller of something that lasts is who they were, and may do what they might.
func (s *Server) still(ctx context.Context, c *call) error {
	who, _, err := s.identify(c.request.WithContext(ctx))
	if err != nil {
		if fault.KindOf(err) == fault.Unauthenticated {
			return errSignedOut()
		}
		return err
	}
	now := actorOf(who)
	if now.Tenant != c.actor.Tenant || now.User != c.actor.User || now.Role != c.actor.Role || now.Operator != c.actor.Operator || !slices.Equal(now.Scopes, c.actor.Scopes) {
		return errSignedOut()
	}
	return nil
}

// lookout sees to it that something that lasts ends soon after the caller is signed out, however much is going on. Not each time that it is asked: each
// look asks the store.
type lookout struct {
	s    *Server
	c    *call
	last time.Time
}

func (s *Server) lookout(c *call) *lookout { return &lookout{s: s, c: c, last: s.clock()} }

// look is an error if the caller is no longer who they were.
func (l *lookout) look() error {
	now := l.s.clock()
	if now.Sub(l.last) < recheck {
		return nil
	}
	l.last = now
	return l.s.still(l.c.request.Context(), l.c)
}

// watchedReader is what a caller sends, as long as they may.
type watchedReader struct {
	io.Reader
	l *lookout
}

func (r watchedReader) Read(b []byte) (int, error) {
	if err := r.l.look(); err != nil {
		return 0, err
	}
	return r.Reader.Read(b)
}

// watchedWriter is what a caller gets, as long as they may.
type watchedWriter struct {
	io.Writer
	l *lookout
}

func (w watchedWriter) Write(b []byte) (int, error) {
	if err := w.l.look(); err != nil {
		return 0, err
	}
	return w.Writer.Write(b)
}

func errSignedOut() error {
	return fault.New(fault.Unauthenticated, "you are no longer signed in, or may do other things now").WithHint("sign in again")
}

// may says in advance whether an operation that needs a permission would be refused for want of it.
func (s *Server) may(ctx context.Context, c *call, p control.Permission) error {
	me, err := s.control.Me(ctx, c.actor)
	if err != nil {
		return err
	}
	if !slices.Contains(me.Scopes, string(p)) {
		return fault.New(fault.Denied, "your role, or this token, does not allow this").WithHint("it needs %s", p)
	}
	return nil
}
