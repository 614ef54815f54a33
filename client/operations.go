package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/cofferdam/cofferdam/api"
)

// Me says who the caller is.
func (c *Client) Me(ctx context.Context) (api.Me, error) { return get[api.Me](ctx, c, "/me", nil) }

// Counts counts what an overview shows.
func (c *Client) Counts(ctx context.Context) (api.Counts, error) {
	return get[api.Counts](ctx, c, "/counts", nil)
}

// Health says how the server is, to operators.
func (c *Client) Health(ctx context.Context) (api.Health, error) {
	return get[api.Health](ctx, c, "/health", nil)
}

// Tenants lists tenants, for operators.
func (c *Client) Tenants(ctx context.Context, p Page) (api.Page[api.Tenant], error) {
	return get[api.Page[api.Tenant]](ctx, c, "/tenants", p.values())
}

// CreateTenant makes a tenant, for operators.
func (c *Client) CreateTenant(ctx context.Context, in api.NewTenant) (api.TenantMade, error) {
	return post[api.TenantMade](ctx, c, "/tenants", 0, in)
}

// Users lists the tenant's users.
func (c *Client) Users(ctx context.Context, p Page) (api.Page[api.User], error) {
	return get[api.Page[api.User]](ctx, c, "/users", p.values())
}

// User returns one user.
func (c *Client) User(ctx context.Context, id string) (api.User, error) {
	return get[api.User](ctx, c, at("users", id), nil)
}

// CreateUser invites a user.
func (c *Client) CreateUser(ctx context.Context, in api.NewUser) (api.Invitation, error) {
	return post[api.Invitation](ctx, c, "/users", 0, in)
}

// ChangeUser changes a user.
func (c *Client) ChangeUser(ctx context.Context, id string, version int64, in api.UserChange) (api.User, error) {
	return change[api.User](ctx, c, http.MethodPatch, at("users", id), version, in)
}

// ResetUser makes a link by which a user sets a new password.
func (c *Client) ResetUser(ctx context.Context, id string) (api.Invitation, error) {
	return post[api.Invitation](ctx, c, at("users", id, "reset"), 0, nil)
}

// DeleteUser removes a user.
func (c *Client) DeleteUser(ctx context.Context, id string) error {
	return c.remove(ctx, at("users", id))
}

// Sessions lists the caller's own sign-ins.
func (c *Client) Sessions(ctx context.Context) ([]api.Session, error) {
	return items(get[api.Page[api.Session]](ctx, c, "/sessions", nil))
}

// RevokeSession ends one of the caller's sign-ins.
func (c *Client) RevokeSession(ctx context.Context, id string) error {
	return c.remove(ctx, at("sessions", id))
}

// Tokens lists the caller's own API tokens.
func (c *Client) Tokens(ctx context.Context) ([]api.Token, error) {
	return items(get[api.Page[api.Token]](ctx, c, "/tokens", nil))
}

// CreateToken makes an API token.
func (c *Client) CreateToken(ctx context.Context, in api.NewToken) (api.Token, error) {
	return post[api.Token](ctx, c, "/tokens", 0, in)
}

// RevokeToken removes an API token.
func (c *Client) RevokeToken(ctx context.Context, id string) error {
	return c.remove(ctx, at("tokens", id))
}

// Settings returns the tenant's settings.
func (c *Client) Settings(ctx context.Context) (api.Settings, error) {
	return get[api.Settings](ctx, c, "/settings", nil)
}

// ChangeSettings replaces the tenant's settings; in.Version is the one they were read with.
func (c *Client) ChangeSettings(ctx context.Context, in api.Settings) (api.Settings, error) {
	var out api.Settings
	// Settings that were never changed have version 0, which is named all the same.
	match := http.Header{"If-Match": {strconv.Quote(strconv.FormatInt(in.Version, 10))}}
	err := c.call(ctx, request{method: http.MethodPut, path: "/settings", body: in, header: match}, &out)
	return out, err
}

// Agents lists agents by name.
func (c *Client) Agents(ctx context.Context, p Page) (api.Page[api.Agent], error) {
	return get[api.Page[api.Agent]](ctx, c, "/agents", p.values())
}

// Agent returns one agent, by identifier or name.
func (c *Client) Agent(ctx context.Context, id string) (api.Agent, error) {
	return get[api.Agent](ctx, c, at("agents", id), nil)
}

// CreateAgent provisions an agent.
func (c *Client) CreateAgent(ctx context.Context, in api.NewAgent) (api.Agent, error) {
	return post[api.Agent](ctx, c, "/agents", 0, in)
}

// ChangeAgent changes an agent; version 0 takes any.
func (c *Client) ChangeAgent(ctx context.Context, id string, version int64, in api.AgentChange) (api.Agent, error) {
	return change[api.Agent](ctx, c, http.MethodPatch, at("agents", id), version, in)
}

// DeleteAgent removes an agent that has no sandbox.
func (c *Client) DeleteAgent(ctx context.Context, id string) error {
	return c.remove(ctx, at("agents", id))
}

// EffectivePolicy returns the document in force for an agent.
func (c *Client) EffectivePolicy(ctx context.Context, agent string) (string, error) {
	p, err := get[api.EffectivePolicy](ctx, c, at("agents", agent, "policy"), nil)
	return p.Text, err
}

// Policies lists policies by name, without their text.
func (c *Client) Policies(ctx context.Context, p Page) (api.Page[api.Policy], error) {
	return get[api.Page[api.Policy]](ctx, c, "/policies", p.values())
}

// Policy returns one policy, by identifier or name.
func (c *Client) Policy(ctx context.Context, id string) (api.Policy, error) {
	return get[api.Policy](ctx, c, at("policies", id), nil)
}

// CreatePolicy stores a policy.
func (c *Client) CreatePolicy(ctx context.Context, in api.NewPolicy) (api.Policy, error) {
	return post[api.Policy](ctx, c, "/policies", 0, in)
}

// ChangePolicy makes a new version of a policy, in force at once.
func (c *Client) ChangePolicy(ctx context.Context, id string, version int64, in api.PolicyChange) (api.Policy, error) {
	return change[api.Policy](ctx, c, http.MethodPatch, at("policies", id), version, in)
}

// DeletePolicy removes a policy that no agent has.
func (c *Client) DeletePolicy(ctx context.Context, id string) error {
	return c.remove(ctx, at("policies", id))
}

// PolicyVersions lists a policy's versions, newest first.
func (c *Client) PolicyVersions(ctx context.Context, id string, p Page) (api.Page[api.PolicyVersion], error) {
	return get[api.Page[api.PolicyVersion]](ctx, c, at("policies", id, "versions"), p.values())
}

// PolicyVersion returns one version.
func (c *Client) PolicyVersion(ctx context.Context, id string, number int) (api.PolicyVersion, error) {
	return get[api.PolicyVersion](ctx, c, at("policies", id, "versions", strconv.Itoa(number)), nil)
}

// DiffPolicy is a unified diff of two versions.
func (c *Client) DiffPolicy(ctx context.Context, id string, from, to int) (string, error) {
	q := url.Values{"from": {strconv.Itoa(from)}, "to": {strconv.Itoa(to)}}
	d, err := get[api.PolicyDiff](ctx, c, at("policies", id, "diff"), q)
	return d.Diff, err
}

// CheckPolicy says what is wrong with a document.
func (c *Client) CheckPolicy(ctx context.Context, text string) (api.PolicyCheck, error) {
	return post[api.PolicyCheck](ctx, c, "/policies/check", 0, api.PolicyText{Text: text})
}

// Explain says what is decided about a destination, and why.
func (c *Client) Explain(ctx context.Context, in api.ExplainRequest) ([]api.Explanation, error) {
	return items(post[api.Page[api.Explanation]](ctx, c, "/policies/explain", 0, in))
}

// Replay says what another text would have decided about recorded crossings.
func (c *Client) Replay(ctx context.Context, policy string, in api.ReplayRequest) (api.Replay, error) {
	return post[api.Replay](ctx, c, at("policies", policy, "replay"), 0, in)
}

// Credentials lists credentials, masked.
func (c *Client) Credentials(ctx context.Context) ([]api.Credential, error) {
	return items(get[api.Page[api.Credential]](ctx, c, "/credentials", nil))
}

// Credential returns one credential, masked.
func (c *Client) Credential(ctx context.Context, name string) (api.Credential, error) {
	return get[api.Credential](ctx, c, at("credentials", name), nil)
}

// CreateCredential seals a credential.
func (c *Client) CreateCredential(ctx context.Context, in api.NewCredential) (api.Credential, error) {
	return post[api.Credential](ctx, c, "/credentials", 0, in)
}

// RotateCredential replaces a credential's values.
func (c *Client) RotateCredential(ctx context.Context, name string, in api.RotateCredential) (api.Credential, error) {
	return post[api.Credential](ctx, c, at("credentials", name, "rotate"), 0, in)
}

// DeleteCredential erases a credential.
func (c *Client) DeleteCredential(ctx context.Context, name string) error {
	return c.remove(ctx, at("credentials", name))
}

// Upstreams lists Git servers.
func (c *Client) Upstreams(ctx context.Context) ([]api.Upstream, error) {
	return items(get[api.Page[api.Upstream]](ctx, c, "/git/upstreams", nil))
}

// CreateUpstream adds a Git server.
func (c *Client) CreateUpstream(ctx context.Context, in api.Upstream) (api.Upstream, error) {
	return post[api.Upstream](ctx, c, "/git/upstreams", 0, in)
}

// ChangeUpstream replaces a Git server's settings; in.Version is the one they were read with, 0 takes any.
func (c *Client) ChangeUpstream(ctx context.Context, id string, in api.Upstream) (api.Upstream, error) {
	return change[api.Upstream](ctx, c, http.MethodPut, at("git", "upstreams", id), in.Version, in)
}

// DeleteUpstream removes a Git server.
func (c *Client) DeleteUpstream(ctx context.Context, id string) error {
	return c.remove(ctx, at("git", "upstreams", id))
}

// Profiles lists access profiles.
func (c *Client) Profiles(ctx context.Context) ([]api.Profile, error) {
	return items(get[api.Page[api.Profile]](ctx, c, "/git/profiles", nil))
}

// CreateProfile adds an access profile.
func (c *Client) CreateProfile(ctx context.Context, in api.Profile) (api.Profile, error) {
	return post[api.Profile](ctx, c, "/git/profiles", 0, in)
}

// ChangeProfile replaces an access profile; in.Version is the one it was read with, 0 takes any.
func (c *Client) ChangeProfile(ctx context.Context, id string, in api.Profile) (api.Profile, error) {
	return change[api.Profile](ctx, c, http.MethodPut, at("git", "profiles", id), in.Version, in)
}

// DeleteProfile removes an access profile.
func (c *Client) DeleteProfile(ctx context.Context, id string) error {
	return c.remove(ctx, at("git", "profiles", id))
}
