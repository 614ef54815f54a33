package control

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/store"
)

// The bounds of an agent.
const (
	maxDescription = 1000
	maxVariables   = 256
	maxArguments   = 256
	maxCommandSize = 64 << 10
	maxGrants      = 64
)

// closedPolicy is what an agent gets that nobody wrote a policy for.
const closedPolicy = `version: 1
# Nothing is allowed yet. What the agent tries and is denied waits in the review inbox: allow it there, or write it here.
`

// chosenPolicy is the policy that a new agent gets.
type chosenPolicy struct {
	object store.Object[PolicyData]
	text   string
	made   bool // with the agent
}

// policyFor chooses or makes the policy of a new agent.
func (s *Service) policyFor(ctx context.Context, a Actor, o store.Object[AgentData], in api.NewAgent) (chosenPolicy, error) {
	var c chosenPolicy
	if in.Policy != "" && in.PolicyText != "" {
		return c, fault.New(fault.Invalid, "both a policy and the text of one").WithHint("leave out one of the two")
	}
	settings, err := s.settings(ctx, a.Tenant)
	if err != nil {
		return c, err
	}
	which := in.Policy
	if which == "" && in.PolicyText == "" {
		which = settings.DefaultPolicy
	}
	if which != "" {
		if c.object, err = s.policy(ctx, s.DB, a.Tenant, which); err != nil {
			return c, err
		}
		c.text, err = s.policyText(ctx, s.DB, c.object)
		return c, err
	}
	if _, err := ParseName(o.Name); err != nil {
		return c, err
	}
	c.made, c.text = true, in.PolicyText
	if c.text == "" {
		c.text = closedPolicy
	}
	data, err := s.readPolicy(ctx, a.Tenant, c.text)
	if err != nil {
		return c, err
	}
	data.Number, data.Author, data.Comment, data.Own = 1, a.byline(), "made with the agent "+o.Name, o.ID
	c.object = store.Object[PolicyData]{ID: store.NewID(), Tenant: a.Tenant, Data: data}
	c.object.Name, err = s.freePolicyName(ctx, a.Tenant, o.Name)
	return c, err
}

// freePolicyName derives a free name for a policy.
func (s *Service) freePolicyName(ctx context.Context, tenant, name string) (string, error) {
	for i := 1; i <= 20; i++ {
		try := name
		if i > 1 {
			ending := fmt.Sprintf("-%d", i)
			try = name[:min(len(name), maxName-len(ending))] + ending
		}
		_, err := policies().ByName(ctx, s.DB, tenant, try)
		if fault.KindOf(err) == fault.NotFound {
			return try, nil
		}
		if err != nil {
			return "", err
		}
	}
	return "", fault.New(fault.Conflict, "there are policies of that name").WithHint("make a policy under another name first, and name it here")
}

// checkAgent holds an agent to what it can be, brings it into its stored form, and sees that its policy and its profiles go together.
func (s *Service) checkAgent(ctx context.Context, o *store.Object[AgentData], text string) error {
	if _, err := ParseName(o.Name); err != nil {
		return err
	}
	if err := freeName(ctx, s.DB, agents(), o.Tenant, "an agent", o.Name, o.ID); err != nil {
		return err
	}
	if err := checkText("description", o.Data.Description, maxDescription, true); err != nil {
		return err
	}
	if err := checkCommand(o.Data.Command); err != nil {
		return err
	}
	if err := checkEnvironment(o.Data.Environment); err != nil {
		return err
	}
	if err := s.resolveProfiles(ctx, o); err != nil {
		return err
	}
	law, err := policy.Parse("policy", []byte(text))
	if err != nil {
		return fmt.Errorf("the stored policy of agent %s: %w", o.ID, err)
	}
	if err := checkIsolation(o.Data.Isolation, law.Isolation()); err != nil {
		return err
	}
	_, err = s.compose(ctx, s.DB, o.Tenant, text, o.Data)
	return err
}

// freeName refuses a name that another object of the kind has. A transaction that finds it taken all the same fails too; this one says so in words.
func freeName[T any](ctx context.Context, db *store.DB, c store.Collection[T], tenant, what, name, self string) error {
	o, err := c.ByName(ctx, db, tenant, name)
	switch {
	case fault.KindOf(err) == fault.NotFound:
		return nil
	case err == nil && o.ID != self:
		return fault.New(fault.Conflict, "there is %s of that name", what).WithHint("choose another name")
	}
	return err
}

// checkIsolation reads an agent's own level. It can only make the wall stronger.
func checkIsolation(text string, least policy.Level) error {
	if text == "" {
		return nil
	}
	level, err := policy.ParseLevel(text)
	if err != nil {
		return err
	}
	if level < least {
		return fault.New(fault.Invalid, "%s is weaker than the policy's isolation level, %s", level, least).WithHint("leave it out, or change the policy")
	}
	return nil
}

func checkCommand(command []string) error {
	size := 0
	for _, word := range command {
		size += len(word) + 1
		if strings.IndexByte(word, 0) >= 0 {
			return fault.New(fault.Invalid, "the command holds a NUL byte").WithHint("leave the byte out: no program can receive it")
		}
	}
	switch {
	case len(command) > maxArguments || size > maxCommandSize:
		return fault.New(fault.Invalid, "the command has more than %d words or %d bytes", maxArguments, maxCommandSize).WithHint("write a script into the workspace, and run that")
	case len(command) > 0 && command[0] == "":
		return fault.New(fault.Invalid, "the command's first word is empty").WithHint("write the program to run, or leave the command out")
	}
	return nil
}

// checkEnvironment reads variables as policies do, and refuses what looks like a real credential. It never prints a value.
func checkEnvironment(environment map[string]string) error {
	if len(environment) > maxVariables {
		return fault.New(fault.Invalid, "there are %d variables, more than %d", len(environment), maxVariables).WithHint("put them into a file of the workspace")
	}
	for name, value := range environment {
		parsed, _, err := policy.ParseVariable(name + "=" + value)
		if err != nil {
			return err
		}
		if parsed != name {
			return fault.New(fault.Invalid, "%.80q cannot be the name of a variable", name).WithHint("write a name of letters, digits and underscores that does not begin with a digit")
		}
		if policy.LooksLikeCredential(name, value) {
			return fault.New(fault.Invalid, "the variable %s looks like a real credential, which has no place inside a sandbox", name).
				WithHint("store it as a credential, and lend it in the policy: credentials: [{use: NAME, hosts: [HOST], env: %s}]", name)
		}
	}
	return nil
}

// resolveProfiles turns names of profiles into identifiers, each once.
func (s *Service) resolveProfiles(ctx context.Context, o *store.Object[AgentData]) error {
	if len(o.Data.Profiles) > maxGrants {
		return fault.New(fault.Invalid, "there are %d access profiles, more than %d", len(o.Data.Profiles), maxGrants).WithHint("join some of them")
	}
	var ids []string
	for _, which := range o.Data.Profiles {
		p, err := find(ctx, s.DB, profiles(), o.Tenant, "access profile", which)
		if err != nil {
			return err
		}
		if !slices.Contains(ids, p.ID) {
			ids = append(ids, p.ID)
		}
	}
	slices.Sort(ids)
	o.Data.Profiles = ids
	return nil
}
