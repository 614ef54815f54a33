package policy

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/cofferdam/cofferdam/internal/pathname"
)

const (
	defaultProposals = "agent/{branch}-{id}"
	defaultMaxPush   = GiB
	defaultMaxRefs   = 100
)

// GitProfile is what a sandbox may do with one repository. Where several entries are about the repository it holds all their profiles, and the more
// closed one wins. It never changes, so it is safe for concurrent use; nil allows nothing.
type GitProfile struct {
	parts []*gitProfile
}

// gitProfile is one entry of git.profiles.
type gitProfile struct {
	name      string
	access    Access
	rules     []gitRule
	options   []string    // exact, or ending in =*
	protected *protection // nil: no path is protected
	proposals string
	maxPush   int64
	maxRefs   int
	line      int
}

// gitRule says what may be done to some refs.
type gitRule struct {
	patterns []pattern // of whole refs
	allow    [GitPropose + 1]bool
	line     int
}

// readProfile is built in.
func readProfile() *gitProfile { return &gitProfile{name: "read", access: ReadAccess} }

// ruleName is what decisions and the audit log call a profile, or a rule of it. No rule of egress can have such a name.
func (g *gitProfile) ruleName() string         { return "git:" + g.name }
func (g *gitProfile) refRuleName(i int) string { return fmt.Sprintf("git:%s rule %d", g.name, i+1) }

// Name names the profile, for messages; of several all.
func (g *GitProfile) Name() string {
	if g == nil {
		return ""
	}
	var names []string
	for _, part := range g.parts {
		names = append(names, part.name)
	}
	return strings.Join(names, ", ")
}

// Access returns how far the repository is open.
func (g *GitProfile) Access() Access {
	if g == nil || len(g.parts) == 0 {
		return NoAccess
	}
	least := WriteAccess
	for _, part := range g.parts {
		least = min(least, part.access)
	}
	return least
}

// every reports whether all parts agree. Without a part nothing is agreed.
func (g *GitProfile) every(agrees func(*gitProfile) bool) bool {
	return g != nil && len(g.parts) > 0 && !slices.ContainsFunc(g.parts, func(part *gitProfile) bool { return !agrees(part) })
}

// Proposes reports whether a push to a ref becomes a pull request, and under which branch it is stored: see ProposalRef. That branch is made by the
// gateway under a name that is fresh, so the rules need not allow it.
func (g *GitProfile) Proposes(ref string) (pattern string, ok bool) {
	agreed := g.every(func(part *gitProfile) bool {
		proposed := part.decideChange(ref, GitPropose).Verdict == Allow
		if proposed && pattern == "" {
			pattern = part.proposals
		}
		return proposed || part.decideChange(ref, GitUpdate).Verdict == Allow
	})
	if !agreed || pattern == "" || checkRef(ref) != nil {
		return "", false
	}
	return pattern, true
}

// ProposalRef makes the ref under which a proposal is stored, from what Proposes returned, the branch's ref that was pushed to, and a name that is
// fresh.
func ProposalRef(pattern, ref, id string) (string, error) {
	branch, ok := strings.CutPrefix(ref, branchRefs)
	if !ok || id == "" || !strings.Contains(pattern, "{id}") {
		return "", fmt.Errorf("%s cannot be proposed", showRef(ref))
	}
	stored := branchRefs + strings.NewReplacer("{branch}", branch, "{id}", id).Replace(pattern)
	return stored, checkRef(stored)
}

// Option reports whether a push option is allowed.
func (g *GitProfile) Option(option string) bool {
	return g.every(func(part *gitProfile) bool {
		return slices.ContainsFunc(part.options, func(o string) bool {
			key, open := strings.CutSuffix(o, "*")
			return option == o || open && strings.HasPrefix(option, key)
		})
	})
}

// Protected reports whether a push must leave what stands at a path as it is, be it a file, a link or a submodule. A path that differs from a
// protected one in letter case only is protected too.
func (g *GitProfile) Protected(path string) bool {
	return !g.every(func(part *gitProfile) bool { return part.protected == nil || !part.protected.protects(path) })
}

// ProtectedBelow reports whether some path below a folder may be protected. The root is "".
func (g *GitProfile) ProtectedBelow(dir string) bool {
	return !g.every(func(part *gitProfile) bool { return part.protected == nil || !part.protected.protectsBelow(dir) })
}

// ProtectsFiles reports whether any path is protected.
func (g *GitProfile) ProtectsFiles() bool {
	return !g.every(func(part *gitProfile) bool { return part.protected == nil })
}

// MaxPush returns how many bytes one push may have.
func (g *GitProfile) MaxPush() int64 {
	least := int64(math.MaxInt64)
	if !g.every(func(part *gitProfile) bool { least = min(least, part.maxPush); return true }) {
		return 0
	}
	return least
}

// MaxRefs returns how many refs one push may change.
func (g *GitProfile) MaxRefs() int {
	least := math.MaxInt
	if !g.every(func(part *gitProfile) bool { least = min(least, part.maxRefs); return true }) {
		return 0
	}
	return least
}

// DecideRef judges what a push does to one ref, and to what it stands for. The answer is never Ask.
func (g *GitProfile) DecideRef(r GitRef) Decision {
	d := g.decideRef(r.Name, r.Change)
	if d.Verdict != Allow || r.Target == "" || r.Target == r.Name {
		return d
	}
	if t := g.decideRef(r.Target, r.Change); t.Verdict != Allow {
		t.Reason = fmt.Sprintf("%s stands for %s there: %s", showRef(r.Name), showRef(r.Target), t.Reason)
		return t
	}
	return d
}

func (g *GitProfile) decideRef(name string, change GitChange) Decision {
	if g.Access() != WriteAccess {
		return Decision{Rule: RuleDefault, Reason: "pushing is not allowed here"}
	}
	if err := checkRef(name); err != nil {
		return Decision{Rule: RuleDefault, Reason: err.Error()}
	}
	if change == GitPropose {
		return g.decideProposal(name)
	}
	var first Decision
	for i, part := range g.parts {
		d := part.decideChange(name, change)
		if d.Verdict != Allow {
			return d
		}
		if i == 0 {
			first = d
		}
	}
	return first
}

func (g *GitProfile) decideProposal(name string) Decision {
	if _, ok := g.Proposes(name); !ok {
		return Decision{Rule: RuleDefault, Reason: fmt.Sprintf("pull requests against %s are not allowed here", showRef(name))}
	}
	for _, part := range g.parts {
		if d := part.decideChange(name, GitPropose); d.Verdict == Allow {
			return d
		}
	}
	return Decision{Rule: RuleDefault}
}

func (r *gitRule) likeness(segments, folded []string) likeness {
	best := unlike
	for i := range r.patterns {
		best = max(best, r.patterns[i].likeness(segments, folded))
	}
	return best
}

// decideChange finds the first rule about a ref. A rule that the ref misses by letter case alone can close it and not open it: on a file system that
// ignores case, Main is main.
func (g *gitProfile) decideChange(name string, change GitChange) Decision {
	if change == 0 || change > GitPropose {
		return Decision{Rule: RuleDefault, Reason: "no such change"}
	}
	segments, folded := strings.Split(name, "/"), pathname.Fold(name)
	for i := range g.rules {
		r := &g.rules[i]
		like := r.likeness(segments, folded)
		switch {
		case like == unlike || like == likeButCase && r.allow[change]:
		case r.allow[change]:
			return Decision{Verdict: Allow, Rule: g.refRuleName(i), Reason: fmt.Sprintf("%s %s is allowed", change.doing(), showRef(name))}
		default:
			return Decision{Rule: g.refRuleName(i), Reason: g.closed(name, change, r, like == likeButCase)}
		}
	}
	return Decision{Rule: RuleDefault, Reason: g.closed(name, change, nil, false)}
}

func (c GitChange) doing() string {
	switch c {
	case GitCreate:
		return "creating"
	case GitUpdate:
		return "updating"
	case GitForce:
		return "force-pushing"
	case GitDelete:
		return "deleting"
	case GitPropose:
		return "a pull request against"
	}
	return "changing"
}

// closed says why a ref cannot be changed so, and what can be done instead. r is the rule that closes it, nil if none is about it.
func (g *gitProfile) closed(name string, change GitChange, r *gitRule, butCase bool) string {
	shown := showRef(name)
	switch {
	case butCase:
		return shown + " differs only in letter case from a name that is protected here"
	case r != nil && r.allow[GitPropose] && change != GitDelete:
		return shown + " is protected here: it changes by pull request only"
	case r != nil && r.allow != [GitPropose + 1]bool{} || change == GitDelete && strings.HasPrefix(name, branchRefs):
		return fmt.Sprintf("%s %s is not allowed here", change.doing(), shown)
	case strings.HasPrefix(name, branchRefs):
		if open := g.openBranches(); open != "" {
			return fmt.Sprintf("%s is protected here; push to %s instead", shown, open)
		}
		return shown + " is protected here"
	case !strings.HasPrefix(name, tagRefs):
		return shown + " is not allowed here: it is neither a branch nor a tag"
	case !g.about(tagRefs):
		return "tags are not allowed here"
	}
	return shown + " is not allowed here"
}

// about reports whether some rule allows anything below a prefix.
func (g *gitProfile) about(prefix string) bool {
	return slices.ContainsFunc(g.rules, func(r gitRule) bool {
		return r.allow != [GitPropose + 1]bool{} && slices.ContainsFunc(r.patterns, func(p pattern) bool { return strings.HasPrefix(p.text, prefix) })
	})
}

// openBranches shows the first pattern under which a branch may be made, "" if there is none: agent/….
func (g *gitProfile) openBranches() string {
	for _, r := range g.rules {
		for _, p := range r.patterns {
			if branch, ok := strings.CutPrefix(p.text, branchRefs); ok && r.allow[GitCreate] && branch != "**" && branch != "*" {
				return strings.ReplaceAll(strings.ReplaceAll(branch, "**", "*"), "*", "…")
			}
		}
	}
	return ""
}
