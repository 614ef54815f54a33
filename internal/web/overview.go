package web

import (
	"encoding/json"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/control"
)

// glance is how many entries of each list the overview shows.
const glance = 6

// overviewData is what needs a person, and what runs.
type overviewData struct {
	Counts    control.Counts
	Running   []api.Sandbox
	Recent    []api.Sandbox
	Denials   []api.Denial
	Approvals []api.Approval
	Agents    []api.Agent
	// First says that nothing has run yet: the page then shows the way to the first sandbox.
	First bool
	Form  *form
}

func (p *Pages) overview(v *visit) error {
	ctx := v.r.Context()
	var d overviewData
	var err error
	if d.Counts, err = v.ops.Counts(ctx, v.actor); err != nil {
		return err
	}
	running, err := v.ops.Sandboxes(ctx, v.actor, "", true, control.Page{Limit: glance})
	if err != nil {
		return err
	}
	recent, err := v.ops.Sandboxes(ctx, v.actor, "", false, control.Page{Limit: glance})
	if err != nil {
		return err
	}
	d.Running, d.Recent = running.Items, recent.Items
	if v.can[control.ReadReview] {
		denials, err := v.ops.Denials(ctx, v.actor, "", []api.DenialState{api.Open}, control.Page{Limit: glance})
		if err != nil {
			return err
		}
		approvals, err := v.ops.Approvals(ctx, v.actor, true, control.Page{Limit: glance})
		if err != nil {
			return err
		}
		d.Denials, d.Approvals = denials.Items, approvals.Items
	}
	if d.First = len(d.Recent) == 0 && len(d.Running) == 0; d.First {
		agents, err := v.ops.Agents(ctx, v.actor, control.Page{Limit: 1})
		if err != nil {
			return err
		}
		d.Agents = agents.Items
		d.Form = prefilled("name", "first", "policy", "nothing")
	}
	if v.htmx() {
		return v.fragment("overview", "live", d)
	}
	return v.show("overview", "Overview", "overview", d)
}

// counts are the navigation's numbers, for the script that keeps them fresh.
func (p *Pages) counts(v *visit) error {
	c, err := v.ops.Counts(v.r.Context(), v.actor)
	if err != nil {
		return err
	}
	v.w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(v.w).Encode(map[string]int{"running": c.Running, "review": c.Denials + c.Approvals, "proposed": c.Proposed, "agents": c.Agents})
}

// doneSentence says what was just done. Only these can be shown: the address of a page cannot put words into it.
func doneSentence(key string) string {
	return map[string]string{
		"agent-made":         "The agent is there. Start its first sandbox below.",
		"agent-changed":      "The agent is changed. What changed in its policy is in force.",
		"agent-suspended":    "The agent is suspended and its sandboxes are told to end.",
		"agent-resumed":      "The agent may have sandboxes again.",
		"agent-deleted":      "The agent is removed.",
		"sandbox-stopped":    "The sandbox is told to end.",
		"sandbox-paused":     "The sandbox is paused. Its deadline stays.",
		"sandbox-resumed":    "The sandbox goes on.",
		"sandbox-extended":   "The sandbox has a new deadline.",
		"uploaded":           "The file is in the sandbox.",
		"workspace-made":     "The workspace is there.",
		"workspace-deleted":  "The workspace is removed.",
		"decided":            "Decided. It is in force in the sandboxes that run.",
		"rule-approved":      "The rule is approved and in force.",
		"rule-revoked":       "The rule is revoked. What it allowed is cut.",
		"policy-made":        "The policy is stored.",
		"policy-changed":     "The new version is in force. What it denies is cut.",
		"policy-deleted":     "The policy is removed.",
		"credential-made":    "The credential is sealed. Its value cannot be read here any more.",
		"credential-rotated": "The credential has its new value. Running sandboxes use it with the next request.",
		"credential-deleted": "The credential is erased.",
		"upstream-saved":     "The Git server is stored.",
		"upstream-deleted":   "The Git server is removed.",
		"profile-saved":      "The access profile is stored and in force.",
		"profile-deleted":    "The access profile is removed.",
		"query-saved":        "The query is saved.",
		"query-deleted":      "The query is removed.",
		"user-changed":       "The user is changed.",
		"user-deleted":       "The user is removed, with sessions and tokens.",
		"password-changed":   "Your password is changed. Your other sessions have ended.",
		"totp-off":           "The authenticator app is removed from your account.",
		"passkey-added":      "The passkey is added.",
		"passkey-deleted":    "The passkey is removed.",
		"session-ended":      "The session has ended.",
		"token-revoked":      "The token is revoked.",
		"settings-changed":   "The settings are stored.",
		"signed-out":         "You are signed out.",
		"password-set":       "The password is set. Sign in with it.",
	}[key]
}
