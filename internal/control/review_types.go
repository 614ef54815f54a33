package control

import (
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/store"
)

// RuleData is a reviewer's rule as stored. The object's parent is the agent, its state one of proposed, active, used, expired, revoked, rejected.
type RuleData struct {
	Agent      string        `json:"agent"`
	Sandbox    string        `json:"sandbox,omitempty"` // scopes once and run
	Verdict    string        `json:"verdict"`           // allow or deny
	Scope      api.Scope     `json:"scope"`
	Rule       string        `json:"rule"` // as policy.ParseSnippet reads it
	Warnings   []api.Warning `json:"warnings,omitempty"`
	Until      time.Time     `json:"until,omitzero"`
	Comment    string        `json:"comment,omitempty"`
	ProposedBy string        `json:"proposed_by"`           // for people
	ProposedID string        `json:"proposed_id,omitempty"` // of the user
	ApprovedBy string        `json:"approved_by,omitempty"`
	Denial     string        `json:"denial,omitempty"`
}

func rules() store.Collection[RuleData] { return store.Of[RuleData]("rule") }
