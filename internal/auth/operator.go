package auth

import (
	"context"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// OperatorReset makes the link by which a user sets a new password, for whoever runs the server and so owns it anyhow.
func (s *Service) OperatorReset(ctx context.Context, email string) (string, error) {
	address, err := ParseEmail(email)
	if err != nil {
		return "", err
	}
	user, found, err := s.byEmail(ctx, address)
	switch {
	case err != nil:
		return "", err
	case !found:
		return "", fault.New(fault.NotFound, "no user has this email address").WithHint("an administrator invites people: Users, or cofferdam user invite")
	case user.Data.Disabled:
		return "", fault.New(fault.Conflict, "this user is disabled").WithHint("an administrator of the tenant enables users")
	}
	t, err := s.issue(ctx, kindReset, user.Tenant, user.ID, resetLife, linkData{Epoch: user.Data.Epoch})
	if err != nil {
		return "", err
	}
	return s.link(ResetPath, t), nil
}
