package api

import (
	"encoding/json"
	"time"
)

// AuditQuery selects audit events. What is set narrows.
type AuditQuery struct {
	Agent      string    `json:"agent,omitempty"`
	Sandbox    string    `json:"sandbox,omitempty"`
	Host       string    `json:"host,omitempty"` // exact, or *.example.com
	Verdict    string    `json:"verdict,omitempty"`
	Access     string    `json:"access,omitempty"` // read or write
	Credential string    `json:"credential,omitempty"`
	Repository string    `json:"repository,omitempty"`
	Rule       string    `json:"rule,omitempty"`
	Kinds      []string  `json:"kinds,omitempty"`
	Since      time.Time `json:"since,omitzero"`
	Until      time.Time `json:"until,omitzero"`
	Limit      int       `json:"limit,omitempty"`
	After      string    `json:"after,omitempty"` // cursor
}

// AuditEvent is one record of the log, with who it belongs to. Record is the log's own line.
type AuditEvent struct {
	Sequence  int64           `json:"sequence"`
	Time      time.Time       `json:"time"`
	Kind      string          `json:"kind"`
	Agent     string          `json:"agent,omitempty"`
	AgentName string          `json:"agent_name,omitempty"`
	Sandbox   string          `json:"sandbox,omitempty"`
	Summary   string          `json:"summary"` // for people, inert
	Verdict   string          `json:"verdict,omitempty"`
	Record    json.RawMessage `json:"record"`
}

// SavedQuery is a question that is asked again and again.
type SavedQuery struct {
	ID      string     `json:"id" readOnly:"true"`
	Name    string     `json:"name"`
	Query   AuditQuery `json:"query"`
	BuiltIn bool       `json:"built_in,omitempty" readOnly:"true"`
	Version int64      `json:"version" readOnly:"true"`
}

// Trace is the crossings of one sandbox in time, as a waterfall.
type Trace struct {
	Sandbox   string      `json:"sandbox"`
	Start     time.Time   `json:"start"`
	End       time.Time   `json:"end"`
	Truncated bool        `json:"truncated,omitempty"`
	Spans     []TraceSpan `json:"spans"`
}

// TraceSpan is one crossing.
type TraceSpan struct {
	Crossing   uint64    `json:"crossing"`
	Sequence   uint64    `json:"sequence"`
	Start      time.Time `json:"start"`
	Millis     int64     `json:"millis"`
	Open       bool      `json:"open,omitempty"`
	Place      Place     `json:"place"`
	Verdict    string    `json:"verdict"`
	Rule       string    `json:"rule"`
	Reason     string    `json:"reason,omitempty"`
	Credential string    `json:"credential,omitempty"`
	Status     int       `json:"status,omitempty"`
	BytesIn    int64     `json:"bytes_in,omitempty"`
	BytesOut   int64     `json:"bytes_out,omitempty"`
	Error      string    `json:"error,omitempty"`
	Count      uint64    `json:"count,omitempty"`
}

// Credential is a real credential as far as anybody may see it.
type Credential struct {
	Name    string    `json:"name"`
	Kind    string    `json:"kind"`
	Hosts   []string  `json:"hosts"`
	Ports   []uint16  `json:"ports,omitempty"`
	Paths   []string  `json:"paths,omitempty"`
	Methods []string  `json:"methods,omitempty"`
	Header  string    `json:"header,omitempty"`
	User    string    `json:"user,omitempty"`
	Masked  string    `json:"masked"` // ••••
	Created time.Time `json:"created"`
	Rotated time.Time `json:"rotated,omitzero"`
	UsedBy  []string  `json:"used_by,omitempty"` // names of policies that lend it
}

// NewCredential adds a credential. Settings is for kinds beyond static and basic, as in its description. Values are taken once and never given back.
type NewCredential struct {
	Name     string            `json:"name" maxLength:"63"`
	Kind     string            `json:"kind,omitempty"` // static if left out
	Hosts    []string          `json:"hosts"`
	Ports    []uint16          `json:"ports,omitempty"`
	Paths    []string          `json:"paths,omitempty"`
	Methods  []string          `json:"methods,omitempty"`
	Header   string            `json:"header,omitempty"`
	Prefix   *string           `json:"prefix,omitempty"`
	User     string            `json:"user,omitempty"`
	Settings json.RawMessage   `json:"settings,omitempty"`
	Values   map[string]string `json:"values"` // by field: value, password, private-key, …
}

// RotateCredential replaces a credential's values.
type RotateCredential struct {
	Values map[string]string `json:"values"`
}

// Upstream is a Git server behind the Git proxy.
type Upstream struct {
	ID         string `json:"id" readOnly:"true"`
	Name       string `json:"name"`
	Type       string `json:"type"`
	URL        string `json:"url"`
	Credential string `json:"credential,omitempty"`
	API        *struct {
		URL        string `json:"url,omitempty"`
		Credential string `json:"credential,omitempty"`
	} `json:"api,omitempty"`
	LFSHosts []string  `json:"lfs_hosts,omitempty"`
	Created  time.Time `json:"created" readOnly:"true"`
	Version  int64     `json:"version" readOnly:"true"`
}

// Profile is an access profile: what an agent may do with some repositories at the Git proxy.
type Profile struct {
	ID      string    `json:"id" readOnly:"true"`
	Name    string    `json:"name"`
	Text    string    `json:"text"` // YAML of one entry of git.profiles, less its name
	Paths   []GitPath `json:"paths"`
	Agents  int       `json:"agents" readOnly:"true"`
	Created time.Time `json:"created" readOnly:"true"`
	Version int64     `json:"version" readOnly:"true"`
}

// GitPath is a path rule: which repositories of an upstream a profile is about.
type GitPath struct {
	Upstream   string `json:"upstream"`             // name
	Repository string `json:"repository,omitempty"` // exact
	Expression string `json:"expression,omitempty"` // regular expression instead
}

// Settings are a tenant's own.
type Settings struct {
	FourEyes      bool   `json:"four_eyes"`      // a rule that widens needs a second person
	RetentionDays int    `json:"retention_days"` // of the audit index; 0 keeps all
	MaxSandboxes  int    `json:"max_sandboxes"`  // at once
	DefaultPolicy string `json:"default_policy,omitempty"`
	Version       int64  `json:"version" readOnly:"true"`
}
