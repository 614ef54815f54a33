// Package control (CONTROL) is the operations of the service: whatever a person or a program may do with it, over the API or in a page, is one method
// of Service. Each checks who asks and in which tenant, acts, records it in the audit log, and tells whoever watches.
//
// What an actor may not see is NotFound, in the same words as what is not there.
package control

import (
	"github.com/cofferdam/cofferdam/api"
)

// Actor is who asks. Its zero value may do nothing.
type Actor struct {
	Tenant   string
	User     string // identifier
	Name     string // for people: the user's email
	Role     api.Role
	Operator bool
	// Scopes narrow what the role may do; nil means no narrowing (a session), empty means nothing.
	Scopes []string
	Via    string // "session", "token"
	ID     string // of the session or token
}

// Principal names the actor in the audit log: user:ID or token:ID.
func (a Actor) Principal() string {
	if a.Via == "token" {
		return "token:" + a.ID
	}
	return "user:" + a.User
}

// Permission is one thing that a role allows, and a scope that a token can have.
type Permission string

// The permissions.
const (
	ReadSandboxes    Permission = "sandboxes:read"
	WriteSandboxes   Permission = "sandboxes:write"
	ReadAgents       Permission = "agents:read"
	WriteAgents      Permission = "agents:write"
	ReadPolicies     Permission = "policies:read"
	WritePolicies    Permission = "policies:write"
	ReadCredentials  Permission = "credentials:read" // names and conditions, never values
	WriteCredentials Permission = "credentials:write"
	ReadReview       Permission = "review:read"
	DecideReview     Permission = "review:decide"
	ReadAudit        Permission = "audit:read"
	ReadUsers        Permission = "users:read"
	WriteUsers       Permission = "users:write"
	WriteSettings    Permission = "settings:write"
	Operate          Permission = "server:operate" // tenants and health; operators only
)

// Permissions lists them all.
func Permissions() []Permission {
	return []Permission{ReadSandboxes, WriteSandboxes, ReadAgents, WriteAgents, ReadPolicies, WritePolicies, ReadCredentials, WriteCredentials,
		ReadReview, DecideReview, ReadAudit, ReadUsers, WriteUsers, WriteSettings, Operate}
}

// Scopes lists what a token can be allowed: the permissions by their names.
func Scopes() []string {
	var list []string
	for _, p := range Permissions() {
		list = append(list, string(p))
	}
	return list
}

// Page asks for a part of a list.
type Page struct {
	Limit  int    // 50 if 0, at most 500
	After  string // cursor
	Search string
}
