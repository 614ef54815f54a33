package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/pathname"
)

// ParseGitTarget reads a repository as people name one to ask about it, git:UPSTREAM/REPOSITORY; false for other texts.
func ParseGitTarget(text string) (upstream, repository string, ok bool) {
	rest, git := strings.CutPrefix(text, "git:")
	upstream, repository, found := strings.Cut(rest, "/")
	return upstream, strings.TrimSuffix(repository, ".git"), git && found && !strings.HasPrefix(rest, "//")
}

// ExplainGit says what policy decides about a repository: about reading and pushing at all or, with a ref, about every change of it. The order is
// that of Access and GitChange.
func (p *Policy) ExplainGit(upstream, repository, ref string) ([]Explanation, error) {
	if ref != "" {
		if err := checkRef(ref); err != nil {
			return nil, fault.New(fault.Invalid, "%v", err).WithHint("write a whole ref, as in refs/heads/main or refs/tags/v1")
		}
	}
	u, _ := p.GitUpstream(upstream)
	op := GitOperation{Upstream: upstream, Repository: repository, Access: ReadAccess}
	var all []Explanation
	explain := func(what string) {
		one := op // the crossing keeps its own
		c := Crossing{Protocol: Git, Host: u.Host, Port: u.Port, Git: &one}
		d := p.Decide(c)
		e := Explanation{Crossing: fmt.Sprintf("%s/%s, %s", showName(upstream), showName(repository), what), Verdict: d.Verdict.String(), Rule: d.Rule, Reason: d.Reason}
		e.Steps = p.gitSteps(&one)
		for _, s := range e.Steps {
			if s.Rule == d.Rule && s.Matches && e.Line == 0 {
				e.Line = s.Line
			}
		}
		all = append(all, e)
	}
	if ref == "" {
		explain("reading")
		op.Access = WriteAccess
		explain("pushing")
		return all, nil
	}
	op.Access = WriteAccess
	for change := GitCreate; change <= GitPropose; change++ {
		op.Refs = []GitRef{{Name: ref, Change: change}}
		explain(change.doing() + " " + showRef(ref))
	}
	return all, nil
}

// gitSteps says what each entry of repositories, and then each rule of the profiles that hold, has to do with an operation.
func (p *Policy) gitSteps(op *GitOperation) []Step {
	steps := []Step{}
	if !p.ServesGit() {
		return steps
	}
	exact := slices.ContainsFunc(p.git.repositories, func(e gitEntry) bool { return e.exact != "" && e.likeness(op.Upstream, op.Repository) != unlike })
	for i := range p.git.repositories {
		s := p.git.repositories[i].step(i, op)
		if exact && s.Matches && p.git.repositories[i].exact == "" {
			s.Matches, s.Why = false, "an entry that names the repository goes before it"
		}
		steps = append(steps, s)
	}
	profile, _ := p.GitRepository(op.Upstream, op.Repository)
	if profile == nil || len(op.Refs) == 0 {
		return steps
	}
	for _, part := range profile.parts {
		segments, folded := strings.Split(op.Refs[0].Name, "/"), pathname.Fold(op.Refs[0].Name)
		for i := range part.rules {
			steps = append(steps, part.step(i, segments, folded, op.Refs[0].Change))
		}
	}
	return steps
}

func (e *gitEntry) step(i int, op *GitOperation) Step {
	like := e.likeness(op.Upstream, op.Repository)
	s := Step{Rule: fmt.Sprintf("git.repositories[%d]", i), Line: e.line, Verdict: e.profile.access.String(), Matches: like != unlike}
	switch {
	case e.upstream != op.Upstream:
		s.Why = "it is about the upstream " + e.upstream
	case like == unlike:
		s.Why = "it is about other repositories"
	case like == likeButCase:
		s.Why = "it is about this repository in other letter case, which opens nothing"
	default:
		s.Why = "it gives the profile " + e.profile.name
	}
	return s
}

func (g *gitProfile) step(i int, segments, folded []string, change GitChange) Step {
	r := &g.rules[i]
	like := r.likeness(segments, folded)
	s := Step{Rule: g.refRuleName(i), Line: r.line, Verdict: Deny.String(), Matches: like != unlike, Why: "it is about this ref"}
	if r.allow[change] {
		s.Verdict = Allow.String()
	}
	switch {
	case like == unlike:
		s.Why = "it is about other refs"
	case like == likeButCase && r.allow[change]:
		s.Matches, s.Why = false, "it is about this ref in other letter case, which opens nothing"
	case like == likeButCase:
		s.Why = "it is about this ref in other letter case, which closes it"
	}
	return s
}
