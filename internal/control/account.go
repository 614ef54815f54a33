package control

import (
	"context"
	"strings"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

// Sessions lists the caller's own sign-ins.
func (s *Service) Sessions(ctx context.Context, a Actor) ([]api.Session, error) {
	if err := inPerson(a); err != nil {
		return nil, err
	}
	return s.Auth.Sessions(ctx, a.principal())
}

// RevokeSession ends one of the caller's sessions, "others" ends all but this.
func (s *Service) RevokeSession(ctx context.Context, a Actor, id string) error {
	if err := inPerson(a); err != nil {
		return err
	}
	list, err := s.Auth.Sessions(ctx, a.principal())
	if err != nil {
		return err
	}
	var ids []string
	for _, session := range list {
		if session.ID == id || id == "others" && session.ID != a.ID {
			ids = append(ids, session.ID)
		}
	}
	switch {
	case len(ids) == 0 && id == "others":
		return nil
	case len(ids) == 0:
		return absent("session")
	}
	event := audit.Event{Kind: audit.SessionEnded, Detail: "end the session " + id}
	if id == "others" {
		event.Detail = "end all sessions but this one"
	}
	return s.change(ctx, a, event, func(tx *store.DB) ([]store.Event, error) {
		for _, one := range ids {
			if err := s.Auth.In(tx).EndSession(ctx, a.principal(), one); err != nil && fault.KindOf(err) != fault.NotFound { // it ended by itself
				return nil, err
			}
		}
		return nil, nil
	})
}

// Tokens lists the caller's own API tokens.
func (s *Service) Tokens(ctx context.Context, a Actor) ([]api.Token, error) {
	if err := inPerson(a); err != nil {
		return nil, err
	}
	return s.Auth.Tokens(ctx, a.principal())
}

// CreateToken makes an API token for the caller. It can do at most what its owner can at the moment of each request.
func (s *Service) CreateToken(ctx context.Context, a Actor, in api.NewToken) (api.Token, error) {
	if err := inPerson(a); err != nil {
		return api.Token{}, err
	}
	if err := checkText("name", in.Name, maxTenantName, false); err != nil {
		return api.Token{}, err
	}
	for _, scope := range in.Scopes {
		if err := may(a, Permission(scope)); err != nil {
			return api.Token{}, fault.New(fault.Invalid, "scopes: you cannot give what you may not do yourself, or what is no scope").
				WithHint("yours are %s", strings.Join(a.permissions(), ", "))
		}
	}
	var t api.Token
	event := audit.Event{Kind: audit.TokenChanged, Detail: "make the token " + in.Name + " for " + strings.Join(in.Scopes, " ")}
	err := s.change(ctx, a, event, func(tx *store.DB) (events []store.Event, err error) {
		t, err = s.Auth.In(tx).NewToken(ctx, a.principal(), in)
		return nil, err
	})
	return t, err
}

// RevokeToken removes one of the caller's tokens. A token can remove itself, and no other.
func (s *Service) RevokeToken(ctx context.Context, a Actor, id string) error {
	if err := known(a); err != nil {
		return err
	}
	if !(a.Via == "token" && a.ID == id) {
		if err := inPerson(a); err != nil {
			return err
		}
	}
	list, err := s.Auth.Tokens(ctx, a.principal())
	if err != nil {
		return err
	}
	for _, t := range list {
		if t.ID != id {
			continue
		}
		event := audit.Event{Kind: audit.TokenChanged, Detail: "remove the token " + t.Name + " (" + t.ID + ")"}
		return s.change(ctx, a, event, func(tx *store.DB) ([]store.Event, error) {
			return nil, s.Auth.In(tx).EndToken(ctx, a.principal(), id)
		})
	}
	return absent("token")
}
