package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/store"
)

// PolicyData is a policy as stored, less its text: each version of that is an object of its own.
type PolicyData struct {
	Number   int      `json:"number"` // of the newest version
	Comment  string   `json:"comment,omitempty"`
	Author   string   `json:"author"`
	Warnings []string `json:"warnings,omitempty"`
	// What the newest text says, so that lists need not read it: the credentials that it lends, and whether it has a section git.
	Credentials []string `json:"credentials,omitempty"`
	Git         bool     `json:"git,omitempty"`
	// Own is the agent that it was made with, and for.
	Own string `json:"own,omitempty"`
}

// VersionData is one version of a policy. The object's parent is the policy; its identifier is POLICY-NUMBER, and none is ever changed.
type VersionData struct {
	Number  int    `json:"number"`
	Text    string `json:"text"`
	Comment string `json:"comment,omitempty"`
	Author  string `json:"author"`
}

func policies() store.Collection[PolicyData]  { return store.Of[PolicyData]("policy") }
func versions() store.Collection[VersionData] { return store.Of[VersionData]("policy-version") }

func versionID(policyID string, number int) string { return fmt.Sprintf("%s-%09d", policyID, number) }

// maxComment bounds what people write about a change.
const maxComment = 1000

func (s *Service) policy(ctx context.Context, db *store.DB, tenant, id string) (store.Object[PolicyData], error) {
	return find(ctx, db, policies(), tenant, "policy", id)
}

// policyText returns the newest text of a policy.
func (s *Service) policyText(ctx context.Context, db *store.DB, o store.Object[PolicyData]) (string, error) {
	v, err := versions().Get(ctx, db, o.Tenant, versionID(o.ID, o.Data.Number))
	if err != nil {
		return "", fmt.Errorf("version %d of the policy %s: %w", o.Data.Number, o.ID, err)
	}
	return v.Data.Text, nil
}

// Policies lists policies by name.
func (s *Service) Policies(ctx context.Context, a Actor, p Page) (api.Page[api.Policy], error) {
	var out api.Page[api.Policy]
	if err := may(a, ReadPolicies); err != nil {
		return out, err
	}
	f, err := p.filter()
	if err != nil {
		return out, err
	}
	f.ByName = true
	list, next, err := policies().List(ctx, s.DB, a.Tenant, f)
	if err != nil {
		return out, err
	}
	ids := make([]string, 0, len(list))
	for _, o := range list {
		ids = append(ids, o.ID)
	}
	counts, err := agents().CountBy(ctx, s.DB, a.Tenant, ids)
	if err != nil {
		return out, err
	}
	out.Items, out.Next = make([]api.Policy, 0, len(list)), next
	for _, o := range list {
		out.Items = append(out.Items, showPolicy(o, counts[o.ID], ""))
	}
	return out, nil
}

// Policy returns one policy, by identifier or name.
func (s *Service) Policy(ctx context.Context, a Actor, id string) (api.Policy, error) {
	if err := may(a, ReadPolicies); err != nil {
		return api.Policy{}, err
	}
	o, err := s.policy(ctx, s.DB, a.Tenant, id)
	if err != nil {
		return api.Policy{}, err
	}
	return s.showPolicyWhole(ctx, o)
}

func (s *Service) showPolicyWhole(ctx context.Context, o store.Object[PolicyData]) (api.Policy, error) {
	text, err := s.policyText(ctx, s.DB, o)
	if err != nil {
		return api.Policy{}, err
	}
	n, err := agents().Count(ctx, s.DB, o.Tenant, store.Filter{Parent: o.ID})
	return showPolicy(o, n, text), err
}

func showPolicy(o store.Object[PolicyData], count int, text string) api.Policy {
	return api.Policy{
		ID: o.ID, Name: o.Name, Number: o.Data.Number, Text: text, Comment: o.Data.Comment, Author: o.Data.Author, Warnings: o.Data.Warnings,
		Agents: count, Created: o.Created, Updated: o.Updated, Version: o.Version,
	}
}

// CreatePolicy stores a policy's first version.
func (s *Service) CreatePolicy(ctx context.Context, a Actor, in api.NewPolicy) (api.Policy, error) {
	if err := may(a, WritePolicies); err != nil {
		return api.Policy{}, err
	}
	name, err := ParseName(in.Name)
	if err != nil {
		return api.Policy{}, err
	}
	if err := freeName(ctx, s.DB, policies(), a.Tenant, "a policy", name, ""); err != nil {
		return api.Policy{}, err
	}
	if err := checkText("comment", in.Comment, maxComment, true); err != nil {
		return api.Policy{}, err
	}
	data, err := s.readPolicy(ctx, a.Tenant, in.Text)
	if err != nil {
		return api.Policy{}, err
	}
	data.Number, data.Author, data.Comment = 1, a.byline(), in.Comment
	o := store.Object[PolicyData]{ID: store.NewID(), Tenant: a.Tenant, Name: name, Data: data}
	event := audit.Event{Kind: audit.PolicyChanged, Detail: "make the policy " + name + " (" + o.ID + ")"}
	var stored store.Object[PolicyData]
	err = s.change(ctx, a, event, func(tx *store.DB) (events []store.Event, err error) {
		stored, err = insertPolicy(ctx, tx, o, in.Text)
		return []store.Event{{Type: "policy", Subject: o.ID, State: "created"}}, err
	})
	if err != nil {
		return api.Policy{}, err
	}
	return s.showPolicyWhole(ctx, stored)
}

// insertPolicy stores a policy and its first version.
func insertPolicy(ctx context.Context, tx *store.DB, o store.Object[PolicyData], text string) (store.Object[PolicyData], error) {
	o, err := policies().Insert(ctx, tx, o)
	if err != nil {
		return o, err
	}
	return o, insertVersion(ctx, tx, o, text)
}

func insertVersion(ctx context.Context, tx *store.DB, o store.Object[PolicyData], text string) error {
	data := VersionData{Number: o.Data.Number, Text: text, Comment: o.Data.Comment, Author: o.Data.Author}
	_, err := versions().Insert(ctx, tx, store.Object[VersionData]{ID: versionID(o.ID, o.Data.Number), Tenant: o.Tenant, Parent: o.ID, Data: data})
	return err
}

// ChangePolicy makes a new version, or renames the policy. A new text is in force in the sandboxes of its agents when ChangePolicy returns.
// Version 0 changes whatever version there is.
func (s *Service) ChangePolicy(ctx context.Context, a Actor, id string, version int64, in api.PolicyChange) (api.Policy, error) {
	if err := may(a, WritePolicies); err != nil {
		return api.Policy{}, err
	}
	before, err := s.policy(ctx, s.DB, a.Tenant, id)
	if err != nil {
		return api.Policy{}, err
	}
	if err := current(before, version); err != nil {
		return api.Policy{}, err
	}
	o, text, err := s.changedPolicy(ctx, a, before, in)
	if err != nil {
		return api.Policy{}, err
	}
	if o.Name == before.Name && o.Data.Number == before.Data.Number {
		return s.showPolicyWhole(ctx, before)
	}
	users, err := s.agentsUnder(ctx, o, text)
	if err != nil {
		return api.Policy{}, err
	}
	event := audit.Event{Kind: audit.PolicyChanged, Detail: fmt.Sprintf("change the policy %s (%s): now %s, version %d", before.Name, o.ID, o.Name, o.Data.Number)}
	var stored store.Object[PolicyData]
	err = s.change(ctx, a, event, func(tx *store.DB) (events []store.Event, err error) {
		if stored, err = policies().Update(ctx, tx, o); err != nil {
			return nil, err
		}
		if o.Data.Number > before.Data.Number {
			err = insertVersion(ctx, tx, o, text)
		}
		return []store.Event{{Type: "policy", Subject: o.ID, State: "changed"}}, err
	})
	if err != nil {
		return api.Policy{}, err
	}
	if o.Data.Number > before.Data.Number {
		if err := s.applyPolicy(ctx, a.Tenant, users...); err != nil {
			return api.Policy{}, err
		}
	}
	return s.showPolicyWhole(ctx, stored)
}

// changedPolicy returns what a policy becomes, and its new text.
func (s *Service) changedPolicy(ctx context.Context, a Actor, o store.Object[PolicyData], in api.PolicyChange) (store.Object[PolicyData], string, error) {
	if err := checkText("comment", in.Comment, maxComment, true); err != nil {
		return o, "", err
	}
	if in.Name != nil {
		name, err := ParseName(*in.Name)
		if err != nil {
			return o, "", err
		}
		if err := freeName(ctx, s.DB, policies(), a.Tenant, "a policy", name, o.ID); err != nil {
			return o, "", err
		}
		o.Name = name
	}
	old, err := s.policyText(ctx, s.DB, o)
	if err != nil || in.Text == nil || *in.Text == old {
		return o, old, err
	}
	data, err := s.readPolicy(ctx, a.Tenant, *in.Text)
	if err != nil {
		return o, "", err
	}
	data.Number, data.Author, data.Comment, data.Own = o.Data.Number+1, a.byline(), in.Comment, o.Data.Own
	o.Data = data
	return o, *in.Text, nil
}

// agentsUnder lists the agents that have a policy, and sees that a new text goes together with what each of them has besides.
func (s *Service) agentsUnder(ctx context.Context, o store.Object[PolicyData], text string) ([]string, error) {
	var ids []string
	seen := map[string]bool{} // most agents of one policy have the same profiles
	err := every(ctx, s.DB, agents(), o.Tenant, store.Filter{Parent: o.ID}, func(agent store.Object[AgentData]) error {
		ids = append(ids, agent.ID)
		key := fmt.Sprint(agent.Data.Isolation, agent.Data.Profiles)
		if seen[key] {
			return nil
		}
		seen[key] = true
		if _, err := s.compose(ctx, s.DB, o.Tenant, text, agent.Data); err != nil {
			return forAgent(agent.Name, err)
		}
		return nil
	})
	return ids, err
}

// forAgent says of which agent something is wrong.
func forAgent(name string, err error) error {
	if fault.KindOf(err) == fault.Internal {
		return fmt.Errorf("agent %s: %w", name, err)
	}
	return fault.New(fault.KindOf(err), "agent %s: %s", name, fault.Public(err)).WithHint("%s", fault.HintOf(err)).Because(errors.Unwrap(err))
}

// applyPolicy brings what is in force now to the sandboxes of some agents. It goes on when whoever asked has gone.
func (s *Service) applyPolicy(ctx context.Context, tenant string, agentIDs ...string) error {
	if len(agentIDs) == 0 {
		return nil
	}
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), afterwards)
	defer stop()
	_, err := s.enforce(ctx, tenant, agentIDs...)
	return err
}

// DeletePolicy removes a policy that no agent has, with all its versions.
func (s *Service) DeletePolicy(ctx context.Context, a Actor, id string) error {
	if err := may(a, WritePolicies); err != nil {
		return err
	}
	o, err := s.policy(ctx, s.DB, a.Tenant, id)
	if err != nil {
		return err
	}
	unused := func(db *store.DB) error {
		n, err := agents().Count(ctx, db, a.Tenant, store.Filter{Parent: o.ID})
		if err == nil && n > 0 {
			return fault.New(fault.Conflict, "the policy is that of %d agents", n).WithHint("give them another policy first")
		}
		if err != nil {
			return err
		}
		settings, err := s.settingsObject(ctx, db, a.Tenant)
		if err == nil && settings.Data.DefaultPolicy == o.ID {
			return fault.New(fault.Conflict, "the policy is the one that new agents get").WithHint("choose another in the settings first")
		}
		return err
	}
	if err := unused(s.DB); err != nil {
		return err
	}
	event := audit.Event{Kind: audit.PolicyChanged, Detail: "remove the policy " + o.Name + " (" + o.ID + ")"}
	return s.change(ctx, a, event, func(tx *store.DB) ([]store.Event, error) {
		if err := unused(tx); err != nil {
			return nil, err
		}
		return []store.Event{{Type: "policy", Subject: o.ID, State: "deleted"}}, deletePolicy(ctx, tx, o)
	})
}

func deletePolicy(ctx context.Context, tx *store.DB, o store.Object[PolicyData]) error {
	if err := deleteAll(ctx, tx, versions(), o.Tenant, o.ID); err != nil {
		return err
	}
	return policies().Delete(ctx, tx, o.Tenant, o.ID, 0)
}

// readPolicy reads a document strictly, and returns what is stored beside it.
func (s *Service) readPolicy(ctx context.Context, tenant, text string) (PolicyData, error) {
	p, warnings, err := s.judgePolicy(ctx, tenant, text)
	if err != nil {
		return PolicyData{}, inWords(err)
	}
	data := PolicyData{Git: hasSection(text, "git"), Credentials: credentialsOf(p)}
	for _, w := range warnings {
		data.Warnings = append(data.Warnings, w.String())
	}
	return data, nil
}

// credentialsOf lists the names of all credentials that a policy lends, to requests or to Git servers.
func credentialsOf(p *policy.Policy) []string {
	var names []string
	for _, c := range p.Credentials() {
		names = append(names, c.Use)
	}
	for _, u := range p.GitUpstreams() {
		names = append(names, u.Credential, u.API.Credential)
	}
	slices.Sort(names)
	return slices.DeleteFunc(slices.Compact(names), func(n string) bool { return n == "" })
}

// inWords turns the mistakes of a document into one sentence that names the first of them.
func inWords(err error) error {
	problems, ok := errors.AsType[*policy.Problems](err)
	if !ok {
		return err
	}
	i := slices.IndexFunc(problems.List, func(p policy.Problem) bool { return !p.Warning })
	if i < 0 {
		return err
	}
	p := problems.List[i]
	hint := cmp.Or(p.Remedy, "correct it")
	if n := len(problems.List); n > 1 {
		hint += fmt.Sprintf("; check the document to see all %d places", n)
	}
	p.Remedy = ""
	return fault.New(fault.Invalid, "the policy has a mistake: %s", p).WithHint("%s", hint)
}
