package server

import (
	"cmp"
	"context"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/control"
)

func (s *Server) accountOperations() []operation {
	return []operation{
		op("GET", "/me", "get-me", "Who the caller is, and what it may do", "", func(ctx context.Context, c *call, _ *noInput) (api.Me, error) {
			return s.control.Me(ctx, c.actor)
		}),
		op("GET", "/counts", "get-counts", "What an overview shows", control.ReadSandboxes, func(ctx context.Context, c *call, _ *noInput) (api.Counts, error) {
			n, err := s.control.Counts(ctx, c.actor)
			return api.Counts{Agents: n.Agents, Running: n.Running, Denials: n.Denials, Approvals: n.Approvals, Proposed: n.Proposed}, err
		}),
		op("GET", "/sessions", "list-sessions", "The caller's own sign-ins", "", func(ctx context.Context, c *call, _ *noInput) (api.Page[api.Session], error) {
			return whole(s.control.Sessions(ctx, c.actor))
		}),
		act("DELETE", "/sessions/{id}", "revoke-session", `End one of the caller's sign-ins; "others" ends all but this one`, "", func(ctx context.Context, c *call, in *ByID) error {
			return s.control.RevokeSession(ctx, c.actor, in.ID)
		}),
		op("GET", "/tokens", "list-tokens", "The caller's own API tokens", "", func(ctx context.Context, c *call, _ *noInput) (api.Page[api.Token], error) {
			return whole(s.control.Tokens(ctx, c.actor))
		}),
		op("POST", "/tokens", "create-token", "Make an API token for the caller; its secret is in this answer alone", "",
			func(ctx context.Context, c *call, in *body[api.NewToken]) (api.Token, error) {
				return s.control.CreateToken(ctx, c.actor, in.Body)
			}).making().showing(),
		act("DELETE", "/tokens/{id}", "revoke-token", "Revoke one of the caller's API tokens", "", func(ctx context.Context, c *call, in *ByID) error {
			return s.control.RevokeToken(ctx, c.actor, in.ID)
		}),
	}
}

func (s *Server) peopleOperations() []operation {
	return []operation{
		op("GET", "/tenants", "list-tenants", "All tenants, for operators", control.Operate, func(ctx context.Context, c *call, in *Pages) (api.Page[api.Tenant], error) {
			return listed(s.control.Tenants(ctx, c.actor, in.page()))
		}),
		op("POST", "/tenants", "create-tenant", "Make a tenant, for operators", control.Operate, func(ctx context.Context, c *call, in *body[api.NewTenant]) (api.TenantMade, error) {
			t, i, err := s.control.CreateTenant(ctx, c.actor, in.Body.Name, in.Body.Email)
			return api.TenantMade{Tenant: t, Invitation: i}, err
		}).making().showing(),
		op("GET", "/health", "get-health", "How the server is, for operators", control.Operate, func(ctx context.Context, c *call, _ *noInput) (api.Health, error) {
			return s.control.Health(ctx, c.actor)
		}),
		op("GET", "/users", "list-users", "Users of the tenant", control.ReadUsers, func(ctx context.Context, c *call, in *Pages) (api.Page[api.User], error) {
			return listed(s.control.Users(ctx, c.actor, in.page()))
		}),
		op("POST", "/users", "create-user", "Invite a user", control.WriteUsers, func(ctx context.Context, c *call, in *body[api.NewUser]) (api.Invitation, error) {
			return s.control.CreateUser(ctx, c.actor, in.Body)
		}).making().showing(),
		op("GET", "/users/{id}", "get-user", "One user", control.ReadUsers, func(ctx context.Context, c *call, in *ByID) (api.User, error) {
			return s.control.User(ctx, c.actor, in.ID)
		}),
		op("PATCH", "/users/{id}", "change-user", "Change a user's role or name, or disable the user", control.WriteUsers,
			func(ctx context.Context, c *call, in *change[api.UserChange]) (api.User, error) {
				return s.control.ChangeUser(ctx, c.actor, in.ID, c.version, in.Body)
			}).versioned(versionNeeded),
		op("POST", "/users/{id}/reset", "reset-user", "Make a link by which a user sets a new password; ends the user's sessions and second factors", control.WriteUsers,
			func(ctx context.Context, c *call, in *ByID) (api.Invitation, error) {
				return s.control.ResetUser(ctx, c.actor, in.ID)
			}).showing(),
		act("DELETE", "/users/{id}", "delete-user", "Remove a user with sessions and tokens", control.WriteUsers, func(ctx context.Context, c *call, in *ByID) error {
			return s.control.DeleteUser(ctx, c.actor, in.ID)
		}),
		op("GET", "/settings", "get-settings", "The tenant's settings", "", func(ctx context.Context, c *call, _ *noInput) (api.Settings, error) {
			return s.control.Settings(ctx, c.actor)
		}),
		op("PUT", "/settings", "change-settings", "Replace the tenant's settings", control.WriteSettings, func(ctx context.Context, c *call, in *body[api.Settings]) (api.Settings, error) {
			if c.version == 0 {
				if now, err := s.control.Settings(ctx, c.actor); err != nil || now.Version != 0 {
					return api.Settings{}, cmp.Or(err, errChanged())
				}
			}
			return s.control.ChangeSettings(ctx, c.actor, c.version, in.Body)
		}).versioned(versionFromNone),
	}
}
