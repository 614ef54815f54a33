// Package api is the wire form of Cofferdam's HTTP API, version 1: what a server at /api/v1 takes and gives, as JSON. Times are UTC, RFC 3339.
// Every identifier is opaque. Lists come in pages; objects that can be changed carry a Version, which is also their ETag.
package api

import "time"

// Page is one page of a list.
type Page[T any] struct {
	Items []T `json:"items"`
	// Next is the cursor of the page that follows; empty on the last.
	Next string `json:"next,omitempty"`
}

// Problem is an error (RFC 9457). Code is stable, Field names the offending member of the request and nothing else of its schema.
type Problem struct {
	Type   string `json:"type"` // about:blank
	Title  string `json:"title"`
	Status int    `json:"status"`
	Code   string `json:"code"` // VALIDATION_ERROR, UNAUTHENTICATED, DENIED, NOT_FOUND, CONFLICT, TOO_MANY, UNAVAILABLE, UNSUPPORTED, INTERNAL
	Detail string `json:"detail,omitempty"`
	Hint   string `json:"hint,omitempty"` // what to do next
	Field  string `json:"field,omitempty"`
	ID     string `json:"id"` // of the request, to find it in the server's log
}

// Role is what a user may do in a tenant.
type Role string

// The roles.
const (
	Viewer        Role = "viewer"        // sees everything but secrets
	Developer     Role = "developer"     // a viewer who also makes and uses sandboxes
	Reviewer      Role = "reviewer"      // a viewer who also decides denials and approvals
	Administrator Role = "administrator" // everything in the tenant
)

// Roles lists the roles, from least to most.
func Roles() []Role { return []Role{Viewer, Developer, Reviewer, Administrator} }

// Tenant is a group of people and agents that sees nothing of any other.
type Tenant struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	Version int64     `json:"version"`
}

// User is a person who signs in.
type User struct {
	ID       string    `json:"id"`
	Email    string    `json:"email"`
	Name     string    `json:"name"`
	Role     Role      `json:"role"`
	Disabled bool      `json:"disabled"`
	Operator bool      `json:"operator"` // may make tenants and see the server's health
	TOTP     bool      `json:"totp"`     // a second factor is set up
	Passkeys int       `json:"passkeys"`
	Password bool      `json:"password"` // can sign in by password
	Created  time.Time `json:"created"`
	LastSeen time.Time `json:"last_seen,omitzero"`
	Version  int64     `json:"version"`
}

// NewUser asks for a user, who gets a link to set a password.
type NewUser struct {
	Email string `json:"email" maxLength:"254"`
	Name  string `json:"name,omitempty" maxLength:"100"`
	Role  Role   `json:"role"`
}

// UserChange changes what is not nil.
type UserChange struct {
	Name     *string `json:"name,omitempty" maxLength:"100"`
	Role     *Role   `json:"role,omitempty"`
	Disabled *bool   `json:"disabled,omitempty"`
	// Operator can be given and taken by operators only; the server's last one stays one.
	Operator *bool `json:"operator,omitempty"`
}

// Invitation is a user with the link by which a password is set, shown once. It is mailed too where the server can.
type Invitation struct {
	User    User      `json:"user"`
	Link    string    `json:"link"`
	Expires time.Time `json:"expires"`
}

// Me is who the caller is.
type Me struct {
	User   User     `json:"user"`
	Tenant Tenant   `json:"tenant"`
	Scopes []string `json:"scopes"` // what this caller may do: the role's permissions, narrowed by the token's scopes
	Via    string   `json:"via"`    // session or token
}

// Session is one sign-in.
type Session struct {
	ID      string    `json:"id"`
	Current bool      `json:"current"`
	Created time.Time `json:"created"`
	Seen    time.Time `json:"seen"`
	Expires time.Time `json:"expires"`
	Address string    `json:"address,omitempty"`
	Agent   string    `json:"agent,omitempty"` // the browser, as it calls itself, inert
	Method  string    `json:"method,omitempty"`
}

// Token is an API token. Secret is given once, when it is made.
type Token struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Scopes  []string  `json:"scopes"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	Used    time.Time `json:"used,omitzero"`
	Secret  string    `json:"secret,omitempty"`
}

// NewToken asks for a token. Its scopes can only narrow what its owner may do.
type NewToken struct {
	Name    string   `json:"name" maxLength:"100"`
	Scopes  []string `json:"scopes"`
	Seconds int64    `json:"seconds,omitempty" minimum:"0" maximum:"31622400"` // how long it is good for; 30 days if left out
}

// Event is one thing that happened, as sent over server-sent events.
type Event struct {
	ID      int64     `json:"id"`
	Type    string    `json:"type"` // sandbox, run, agent, denial, approval, rule, policy, crossing, …: what changed
	Subject string    `json:"subject,omitempty"`
	Agent   string    `json:"agent,omitempty"`
	Time    time.Time `json:"time"`
	// State is the subject's new state, where it has one.
	State string `json:"state,omitempty"`
}

// Health is how the server is.
type Health struct {
	Version   string        `json:"version"`
	Started   time.Time     `json:"started"`
	Store     string        `json:"store"` // sqlite or postgres
	Sandboxes int           `json:"sandboxes"`
	Audit     AuditHealth   `json:"audit"`
	Checks    []HealthCheck `json:"checks"`
}

// AuditHealth is how far the index is behind the log.
type AuditHealth struct {
	Indexed int64 `json:"indexed"` // events in the index
	Behind  int64 `json:"behind"`  // bytes of the log that are not yet in it
}

// HealthCheck is one thing that should hold.
type HealthCheck struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
	Remedy string `json:"remedy,omitempty"`
}
