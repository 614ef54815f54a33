package api

import "time"

// Place is where a crossing went, and what it wanted there.
type Place struct {
	Protocol   string   `json:"protocol"`
	Host       string   `json:"host,omitempty"`
	Address    string   `json:"address,omitempty"`
	Port       uint16   `json:"port,omitempty"`
	Method     string   `json:"method,omitempty"`
	Path       string   `json:"path,omitempty"`
	Repository string   `json:"repository,omitempty"`
	Refs       []string `json:"refs,omitempty"`
}

// DenialState is what became of a group of denials.
type DenialState string

// The states.
const (
	Open      DenialState = "open"
	Allowed   DenialState = "allowed"   // a rule allows it now
	Refused   DenialState = "refused"   // denied for good
	Dismissed DenialState = "dismissed" // looked at, nothing to do; opens again when it happens again
)

// Denial is a group of denials that are the same to a reviewer: of one agent, to one destination, for one operation, by one rule.
// All its text was influenced by what runs inside: show it inert.
type Denial struct {
	ID          string      `json:"id"`
	Agent       string      `json:"agent"`
	AgentName   string      `json:"agent_name"`
	Place       Place       `json:"place"`
	Destination string      `json:"destination"` // in words
	Operation   string      `json:"operation"`   // connect, GET /path, push main, name, …
	Rule        string      `json:"rule"`        // that denied
	Reason      string      `json:"reason"`
	Credential  string      `json:"credential,omitempty"`
	Process     string      `json:"process,omitempty"` // as the sandbox itself reports it
	Count       uint64      `json:"count"`
	First       time.Time   `json:"first"`
	Last        time.Time   `json:"last"`
	Sandbox     string      `json:"sandbox"` // the last one
	Sequence    uint64      `json:"sequence"`
	State       DenialState `json:"state"`
	DecidedBy   string      `json:"decided_by,omitempty"`
	// Suggestion is the narrowest rule that would allow it; nil where no rule can.
	Suggestion *Suggestion `json:"suggestion,omitempty"`
	Version    int64       `json:"version"`
}

// Suggestion is a rule to consider.
type Suggestion struct {
	Rule     string    `json:"rule"`     // YAML, as under egress.rules
	Warnings []Warning `json:"warnings"` // what it would widen
	// Reach is what the rule would have allowed among recorded crossings.
	Reach *Replay `json:"reach,omitempty"`
}

// Warning is one way in which a rule widens what an agent can reach.
type Warning struct {
	Kind string `json:"kind"` // destination, credential, write, wildcard, private-network, opaque, other
	Text string `json:"text"`
}

// Approval is a crossing that waits for a person.
type Approval struct {
	ID          string      `json:"id"`
	Agent       string      `json:"agent"`
	AgentName   string      `json:"agent_name"`
	Sandbox     string      `json:"sandbox"`
	Place       Place       `json:"place"`
	Destination string      `json:"destination"`
	Operation   string      `json:"operation"`
	Rule        string      `json:"rule"` // that asks
	Process     string      `json:"process,omitempty"`
	Created     time.Time   `json:"created"`
	Deadline    time.Time   `json:"deadline"` // it is refused then
	State       string      `json:"state"`    // waiting, allowed, denied, expired, withdrawn
	DecidedBy   string      `json:"decided_by,omitempty"`
	Suggestion  *Suggestion `json:"suggestion,omitempty"`
	Version     int64       `json:"version"`
}

// Scope says how far a decision reaches.
type Scope string

// The scopes.
const (
	Once     Scope = "once"  // this one crossing; for a denial, the next one like it
	ForRun   Scope = "run"   // in the sandbox where it happened
	ForAgent Scope = "agent" // in every sandbox of the agent, until a date
)

// Decide answers a denial or an approval.
type Decide struct {
	Verdict string    `json:"verdict"` // allow, deny, dismiss (denials only)
	Scope   Scope     `json:"scope,omitempty"`
	Until   time.Time `json:"until,omitzero"`                   // scope agent: when the rule ends; never if left out
	Rule    string    `json:"rule,omitempty" maxLength:"10000"` // instead of the suggestion
	Comment string    `json:"comment,omitempty" maxLength:"1000"`
	// Widens says that the warnings were read. A rule with warnings is refused without it.
	Widens bool `json:"widens,omitempty"`
}

// Rule is a decision of a reviewer that is, or was, in force beside an agent's policy.
type Rule struct {
	ID         string    `json:"id"`
	Agent      string    `json:"agent"`
	AgentName  string    `json:"agent_name"`
	Sandbox    string    `json:"sandbox,omitempty"` // scope once and run
	Verdict    string    `json:"verdict"`
	Scope      Scope     `json:"scope"`
	Rule       string    `json:"rule"`
	Warnings   []Warning `json:"warnings,omitempty"`
	State      string    `json:"state"` // proposed (waits for a second person), active, used, expired, revoked, rejected
	Until      time.Time `json:"until,omitzero"`
	Comment    string    `json:"comment,omitempty"`
	ProposedBy string    `json:"proposed_by"`
	ApprovedBy string    `json:"approved_by,omitempty"`
	Denial     string    `json:"denial,omitempty"`
	Created    time.Time `json:"created"`
	Version    int64     `json:"version"`
}

// Decision is what came of deciding.
type Decision struct {
	Denial   *Denial   `json:"denial,omitempty"`
	Approval *Approval `json:"approval,omitempty"`
	Rule     *Rule     `json:"rule,omitempty"`
	// InForce lists the sandboxes in which it is in force already.
	InForce []string `json:"in_force"`
}
