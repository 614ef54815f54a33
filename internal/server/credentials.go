package server

import (
	"context"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/control"
)

type (
	ByName struct {
		Name string `path:"name" maxLength:"100"`
	}
	rotation struct {
		ByName
		Body api.RotateCredential
	}
)

func (s *Server) credentialOperations() []operation {
	return []operation{
		op("GET", "/credentials", "list-credentials", "Credentials, masked", control.ReadCredentials, func(ctx context.Context, c *call, _ *noInput) (api.Page[api.Credential], error) {
			return whole(s.control.Credentials(ctx, c.actor))
		}),
		op("POST", "/credentials", "create-credential", "Seal a credential; its values are never given back", control.WriteCredentials,
			func(ctx context.Context, c *call, in *body[api.NewCredential]) (api.Credential, error) {
				return s.control.CreateCredential(ctx, c.actor, in.Body)
			}).making(),
		op("GET", "/credentials/{name}", "get-credential", "One credential, masked", control.ReadCredentials, func(ctx context.Context, c *call, in *ByName) (api.Credential, error) {
			return s.control.Credential(ctx, c.actor, in.Name)
		}),
		op("POST", "/credentials/{name}/rotate", "rotate-credential", "Replace a credential's values; running sandboxes use them with the next request", control.WriteCredentials,
			func(ctx context.Context, c *call, in *rotation) (api.Credential, error) {
				return s.control.RotateCredential(ctx, c.actor, in.Name, in.Body)
			}),
		act("DELETE", "/credentials/{name}", "delete-credential", "Erase a credential; connections that use it are cut", control.WriteCredentials, func(ctx context.Context, c *call, in *ByName) error {
			return s.control.DeleteCredential(ctx, c.actor, in.Name)
		}),
	}
}

func (s *Server) gitOperations() []operation {
	return []operation{
		op("GET", "/git/upstreams", "list-upstreams", "Git servers", control.ReadPolicies, func(ctx context.Context, c *call, _ *noInput) (api.Page[api.Upstream], error) {
			return whole(s.control.Upstreams(ctx, c.actor))
		}),
		op("POST", "/git/upstreams", "create-upstream", "Add a Git server", control.WritePolicies, func(ctx context.Context, c *call, in *body[api.Upstream]) (api.Upstream, error) {
			return s.control.CreateUpstream(ctx, c.actor, in.Body)
		}).making(),
		op("PUT", "/git/upstreams/{id}", "change-upstream", "Replace a Git server's settings", control.WritePolicies, func(ctx context.Context, c *call, in *change[api.Upstream]) (api.Upstream, error) {
			return s.control.ChangeUpstream(ctx, c.actor, in.ID, c.version, in.Body)
		}).versioned(versionOptional),
		act("DELETE", "/git/upstreams/{id}", "delete-upstream", "Remove a Git server that no path rule names", control.WritePolicies, func(ctx context.Context, c *call, in *ByID) error {
			return s.control.DeleteUpstream(ctx, c.actor, in.ID)
		}),
		op("GET", "/git/profiles", "list-profiles", "Access profiles", control.ReadPolicies, func(ctx context.Context, c *call, _ *noInput) (api.Page[api.Profile], error) {
			return whole(s.control.Profiles(ctx, c.actor))
		}),
		op("POST", "/git/profiles", "create-profile", "Add an access profile with its path rules", control.WritePolicies, func(ctx context.Context, c *call, in *body[api.Profile]) (api.Profile, error) {
			return s.control.CreateProfile(ctx, c.actor, in.Body)
		}).making(),
		op("PUT", "/git/profiles/{id}", "change-profile", "Replace an access profile; in force at once", control.WritePolicies, func(ctx context.Context, c *call, in *change[api.Profile]) (api.Profile, error) {
			return s.control.ChangeProfile(ctx, c.actor, in.ID, c.version, in.Body)
		}).versioned(versionOptional),
		act("DELETE", "/git/profiles/{id}", "delete-profile", "Remove an access profile that no agent has", control.WritePolicies, func(ctx context.Context, c *call, in *ByID) error {
			return s.control.DeleteProfile(ctx, c.actor, in.ID)
		}),
	}
}
