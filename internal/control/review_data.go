package control

import (
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/store"
)

// DenialData is a group of denials as stored. The object's name is its review.Key, its parent the agent, its state an api.DenialState.
type DenialData struct {
	Place      api.Place `json:"place"`
	Rule       string    `json:"rule"`
	Reason     string    `json:"reason,omitempty"`
	Credential string    `json:"credential,omitempty"`
	Process    string    `json:"process,omitempty"`
	// Resolved is the address that a name had when it was refused for that.
	Resolved  string    `json:"resolved,omitempty"`
	Count     uint64    `json:"count"`
	First     time.Time `json:"first"`
	Last      time.Time `json:"last"`
	Sandbox   string    `json:"sandbox"`
	Sequence  uint64    `json:"sequence"` // of the last one's record
	DecidedBy string    `json:"decided_by,omitempty"`
}

// event is the denial as the audit log has it, as far as suggestions need it.
func (d *DenialData) event() *audit.Event {
	e := placeEvent(d.Place, d.Rule)
	if d.Resolved != "" {
		e.Address = d.Resolved
	}
	return e
}

func placeEvent(p api.Place, rule string) *audit.Event {
	return &audit.Event{
		Kind: audit.CrossingDecided, Protocol: p.Protocol, Host: p.Host, Address: p.Address, Port: p.Port, Method: p.Method, Path: p.Path,
		Repository: p.Repository, Refs: p.Refs, Verdict: "deny", Rule: rule,
	}
}

// ApprovalData is a crossing that waits for a person, or waited. The object's name is SANDBOX/ASK, its parent the agent.
type ApprovalData struct {
	Sandbox   string    `json:"sandbox"`
	Ask       string    `json:"ask"` // the keeper's identifier
	Place     api.Place `json:"place"`
	Rule      string    `json:"rule"`
	Process   string    `json:"process,omitempty"`
	Deadline  time.Time `json:"deadline"`
	DecidedBy string    `json:"decided_by,omitempty"`
}

// The states of an approval.
const (
	approvalWaiting   = "waiting"
	approvalAllowed   = "allowed"
	approvalDenied    = "denied"
	approvalExpired   = "expired"
	approvalWithdrawn = "withdrawn"
)

// The states of a reviewer's rule.
const (
	ruleProposed = "proposed" // waits for a second person
	ruleActive   = "active"
	ruleUsed     = "used" // scope once
	ruleExpired  = "expired"
	ruleRevoked  = "revoked"
	ruleRejected = "rejected"
)

func denials() store.Collection[DenialData]     { return store.Of[DenialData]("denial") }
func approvals() store.Collection[ApprovalData] { return store.Of[ApprovalData]("approval") }
