package control

import (
	"context"

	"github.com/cofferdam/cofferdam/internal/audit"
)

// ChangeAccount lets a person change how they prove who they are: it records what is about to be done, does it, and records it where it did not happen.
// do calls package auth, which asks for the password again.
func (s *Service) ChangeAccount(ctx context.Context, a Actor, what string, do func() error) error {
	if err := inPerson(a); err != nil {
		return err
	}
	e := audit.Event{Kind: audit.UserChanged, Detail: "own account: " + what}
	if err := s.note(ctx, a, e); err != nil {
		return err
	}
	if err := do(); err != nil {
		return s.undone(ctx, a, e, err)
	}
	return nil
}
