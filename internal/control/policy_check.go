package control

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// few is work that whoever may read can ask for, as often as they like, and that costs up to a second of a processor and a hundred megabytes each time:
// only so much of it is under way, in the whole server.
type few chan struct{}

func newFew(n int) few { return make(few, n) }

// fewWait is how long one waits for others to end.
const fewWait = 10 * time.Second

// enter waits for a place; leave must be called once if there is one.
func (f few) enter(ctx context.Context) (leave func(), err error) {
	wait := time.NewTimer(fewWait)
	defer wait.Stop()
	select {
	case f <- struct{}{}:
		return func() { <-f }, nil
	case <-wait.C:
		return nil, fault.New(fault.TooMany, "too many policies are being read").WithHint("try again in a moment")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// judgePolicy reads a document, and says what is doubtful about it here.
func (s *Service) judgePolicy(ctx context.Context, tenant, text string) (*policy.Policy, []policy.Problem, error) {
	p, err := policy.Parse("", []byte(text))
	if err != nil {
		return nil, nil, err
	}
	if mounts := p.Mounts(); len(mounts) > 0 {
		line := lineOf(text, "mounts")
		return nil, nil, &policy.Problems{List: []policy.Problem{{
			Line: line, Column: 1, Path: "mounts", Message: "folders of the server cannot be mounted", Remedy: "remove the section, and use a workspace",
		}}}
	}
	if line := overlayLine(text); line > 0 {
		return nil, nil, &policy.Problems{List: []policy.Problem{{Line: line, Column: 1, Path: "workspace.mode", Message: noOverlay, Remedy: noOverlayHint}}}
	}
	warnings := p.Warnings()
	missing, err := s.missingCredentials(ctx, tenant, credentialsOf(p))
	if err != nil {
		return nil, nil, err
	}
	for _, name := range missing {
		warnings = append(warnings, policy.Problem{
			Path: "credentials", Message: "there is no credential " + name + " here", Remedy: "add it before a sandbox starts: without it none will", Warning: true,
		})
	}
	return p, warnings, nil
}

// CheckPolicy says what is wrong with a document.
func (s *Service) CheckPolicy(ctx context.Context, a Actor, in api.PolicyText) (api.PolicyCheck, error) {
	out := api.PolicyCheck{Problems: []api.PolicyProblem{}, Warnings: []string{}}
	if err := may(a, ReadPolicies); err != nil {
		return out, err
	}
	leave, err := s.reading.enter(ctx)
	if err != nil {
		return out, err
	}
	defer leave()
	_, warnings, err := s.judgePolicy(ctx, a.Tenant, in.Text)
	if problems, ok := errors.AsType[*policy.Problems](err); ok {
		for _, p := range problems.List {
			if p.Warning {
				warnings = append(warnings, p)
				continue
			}
			text := p.Message
			if p.Path != "" {
				text = p.Path + ": " + text
			}
			out.Problems = append(out.Problems, api.PolicyProblem{Line: p.Line, Column: p.Column, Text: text, Hint: p.Remedy})
		}
	} else if err != nil {
		return out, err
	}
	for _, w := range warnings {
		out.Warnings = append(out.Warnings, w.String())
	}
	out.OK = len(out.Problems) == 0
	return out, nil
}

// Explain says what a policy decides about a destination and why.
func (s *Service) Explain(ctx context.Context, a Actor, in api.ExplainRequest) ([]api.Explanation, error) {
	if err := may(a, ReadPolicies); err != nil {
		return nil, err
	}
	leave, err := s.reading.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	p, err := s.subject(ctx, a.Tenant, in)
	if err != nil {
		return nil, err
	}
	if upstream, repository, ok := policy.ParseGitTarget(in.Target); ok {
		return explainGit(p, upstream, repository, in)
	}
	if in.Ref != "" {
		return nil, fault.New(fault.Invalid, "ref: only a repository has refs").WithHint("write the target as git:UPSTREAM/REPOSITORY, or leave the ref out")
	}
	c, err := policy.ParseTarget(in.Target)
	if err != nil {
		return nil, err
	}
	if in.Method != "" {
		if c.Method == "" {
			return nil, fault.New(fault.Invalid, "method: only a request has a method").WithHint("write the target as a URL, or leave the method out")
		}
		if strings.Trim(in.Method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ-") != "" {
			return nil, fault.New(fault.Invalid, "method: this is no method").WithHint("write one such as GET or POST")
		}
		c.Method = in.Method
	}
	return []api.Explanation{showExplanation(p.Explain(c))}, nil
}

func explainGit(p *policy.Policy, upstream, repository string, in api.ExplainRequest) ([]api.Explanation, error) {
	if in.Method != "" {
		return nil, fault.New(fault.Invalid, "method: an operation of Git has none").WithHint("leave it out; write a ref to ask about pushes to it")
	}
	if !p.ServesGit() {
		return nil, fault.New(fault.Invalid, "the policy names no Git server").WithHint("give the agent an access profile, or add a section git")
	}
	all, err := p.ExplainGit(upstream, repository, in.Ref)
	if err != nil {
		return nil, err
	}
	out := make([]api.Explanation, 0, len(all))
	for _, e := range all {
		out = append(out, showExplanation(e))
	}
	return out, nil
}

// subject is the policy that is asked about: a text, a stored policy, or all that is in force for an agent, where the text stands for the agent's policy.
func (s *Service) subject(ctx context.Context, tenant string, in api.ExplainRequest) (*policy.Policy, error) {
	if in.Agent != "" && in.Policy != "" {
		return nil, fault.New(fault.Invalid, "both a policy and an agent").WithHint("leave out one of the two")
	}
	text := in.Text
	if in.Policy != "" {
		o, err := s.policy(ctx, s.DB, tenant, in.Policy)
		if err != nil {
			return nil, err
		}
		if text == "" {
			if text, err = s.policyText(ctx, s.DB, o); err != nil {
				return nil, err
			}
		}
	}
	if in.Agent != "" {
		o, err := s.agent(ctx, s.DB, tenant, in.Agent)
		if err != nil {
			return nil, err
		}
		if text != "" { // before anything is put to it
			if _, err := policy.Parse("", []byte(text)); err != nil {
				return nil, inWords(err)
			}
		}
		if text, _, err = s.effectiveWith(ctx, tenant, o, "", text); err != nil {
			return nil, err
		}
	}
	if text == "" {
		return nil, fault.New(fault.Invalid, "no policy to ask about").WithHint("name a policy or an agent, or write a text")
	}
	p, err := policy.Parse("", []byte(text))
	if err != nil {
		return nil, inWords(err)
	}
	return p, nil
}

func showExplanation(e policy.Explanation) api.Explanation {
	out := api.Explanation{Crossing: e.Crossing, Verdict: e.Verdict, Rule: e.Rule, Line: e.Line, Reason: e.Reason, Steps: []api.ExplainStep{}}
	for _, s := range e.Steps {
		out.Steps = append(out.Steps, api.ExplainStep{Rule: s.Rule, Line: s.Line, Verdict: s.Verdict, Matched: s.Matches, Why: s.Why})
	}
	return out
}
