package policy

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/cofferdam/cofferdam/internal/netname"
	"github.com/cofferdam/cofferdam/internal/pathname"
)

// gitEntry is one entry of git.repositories: which profile is for which repositories.
type gitEntry struct {
	upstream   string
	exact      string // a repository, or ""
	expression string // as written, or ""
	whole      *regexp.Regexp
	folded     *regexp.Regexp // the same without regard to letter case
	profile    *gitProfile
	line       int
}

func (e *gitEntry) compile() error {
	if _, err := regexp.Compile(e.expression); err != nil {
		return err // before it is wrapped: an expression such as a)|(b is none
	}
	var err error
	if e.whole, err = regexp.Compile(`\A(?:` + e.expression + `)\z`); err != nil {
		return err
	}
	e.folded, err = regexp.Compile(`(?i)\A(?:` + e.expression + `)\z`)
	return err
}

// likeness compares a repository's path. Most forges ignore its letter case, so a name that differs in case closes, and opens nothing.
func (e *gitEntry) likeness(upstream, repository string) likeness {
	switch {
	case e.upstream != upstream:
		return unlike
	case e.exact != "" && e.exact == repository, e.exact == "" && e.whole.MatchString(repository):
		return alike
	case e.exact != "" && strings.EqualFold(e.exact, repository), e.exact == "" && e.folded.MatchString(repository):
		return likeButCase
	}
	return unlike
}

// checkRepository accepts paths below an upstream: canonical, without .git. The error is one plain sentence.
func checkRepository(s string) error {
	path, err := netname.NormalisePath("/" + s)
	bad := err != nil || path.String() != "/"+s || strings.Contains(s, "%") || len(s) > maxRef
	for segment := range strings.SplitSeq(s, "/") {
		bad = bad || segment == "" || len(segment) >= 4 && strings.EqualFold(segment[len(segment)-4:], ".git") || aliases(segment)
	}
	if bad {
		return fmt.Errorf("%s is no path of a repository", showName(s))
	}
	return nil
}

// aliases reports whether some file system takes a name for another: NTFS drops dots and spaces at its end and what follows a colon, and has short names
// such as site~1; HFS+ ignores some characters. A server on one of them would answer for a repository that policy has under its own name.
func aliases(segment string) bool {
	tilde := strings.LastIndexByte(segment, '~')
	return strings.ContainsRune(segment, ':') || strings.TrimRight(segment, ". ") != segment || strings.ContainsFunc(segment, pathname.IgnoredByHFS) ||
		tilde >= 0 && tilde+1 < len(segment) && '0' <= segment[tilde+1] && segment[tilde+1] <= '9'
}

// GitRepository judges whether a repository is open at all, and returns what may be done with it, nil if it is denied. An entry that names it
// exactly goes before those with expressions; of several expressions the more closed profile wins. The order of the file does not matter.
func (p *Policy) GitRepository(upstream, repository string) (*GitProfile, Decision) {
	deny := func(format string, args ...any) (*GitProfile, Decision) {
		return nil, Decision{Rule: RuleDefault, Reason: fmt.Sprintf(format, args...)}
	}
	if _, ok := p.GitUpstream(upstream); !ok {
		return deny("there is no upstream %s here", showName(upstream))
	}
	if err := checkRepository(repository); err != nil {
		return deny("%v", err)
	}
	var parts []*gitProfile
	best, closest := unlike, ""
	for _, exact := range []bool{true, false} {
		for i := range p.git.repositories {
			e := &p.git.repositories[i]
			like := e.likeness(upstream, repository)
			if (e.exact != "") != exact || like == unlike {
				continue
			}
			best, closest = max(best, like), e.exact
			parts = append(parts, e.profile)
		}
		if len(parts) > 0 {
			break
		}
	}
	switch {
	case best == unlike:
		return deny("%s at %s is not open here", showName(repository), upstream)
	case best == likeButCase && closest != "":
		return deny("%s differs only in letter case from %s: write it so", showName(repository), closest)
	case best == likeButCase:
		return deny("%s is open here in other letter case only", showName(repository))
	}
	profile := &GitProfile{parts: compactProfiles(parts)}
	return profile, Decision{Verdict: Allow, Rule: profile.rule(), Reason: fmt.Sprintf("%s is open for %s here", repository, profile.Access().purpose())}
}

// compactProfiles drops profiles that come twice.
func compactProfiles(parts []*gitProfile) []*gitProfile {
	var all []*gitProfile
	seen := map[*gitProfile]bool{}
	for _, part := range parts {
		if !seen[part] {
			seen[part] = true
			all = append(all, part)
		}
	}
	return all
}

func (a Access) purpose() string {
	if a == WriteAccess {
		return "reading and pushing"
	}
	return "reading"
}

// rule names the profile that is the most closed as to access.
func (g *GitProfile) rule() string {
	for _, part := range g.parts {
		if part.access == g.Access() {
			return part.ruleName()
		}
	}
	return RuleDefault
}

// decideGit judges one operation at the Git proxy. Nothing is asked about: an operation is allowed or denied.
func (p *Policy) decideGit(c *Crossing) Decision {
	deny := func(rule, format string, args ...any) Decision {
		return Decision{Rule: rule, Reason: fmt.Sprintf(format, args...)}
	}
	op := c.Git
	if op == nil {
		return deny(RuleDefault, "this is no operation of Git")
	}
	profile, d := p.GitRepository(op.Upstream, op.Repository)
	if profile == nil {
		return d
	}
	if u, _ := p.GitUpstream(op.Upstream); !u.serves(op, c.Host, c.Port) {
		return deny(RuleDefault, "%s is no host of the upstream %s", showName(c.Host.String()), op.Upstream)
	}
	push := len(op.Refs)+len(op.Options)+len(op.Files) > 0
	switch {
	case op.Access == NoAccess || op.Access > WriteAccess || op.Access == ReadAccess && push:
		return deny(RuleDefault, "this is no operation of Git")
	case op.Access > profile.Access():
		return deny(profile.rule(), "%s is read-only here", op.Repository)
	case len(op.Refs) > profile.MaxRefs() && push:
		return deny(profile.rule(), "a push of %d refs is more than the %d allowed here", len(op.Refs), profile.MaxRefs())
	case op.LFS && push:
		return deny(RuleDefault, "this is no operation of Git")
	}
	return profile.decidePush(op, d)
}

// serves reports whether an operation can lead to a host and port: the upstream itself, for large files where they may be stored, for pull requests
// the forge's interface.
func (u *GitUpstream) serves(op *GitOperation, h netname.Host, port uint16) bool {
	proposes := len(op.Refs) > 0 && !slices.ContainsFunc(op.Refs, func(r GitRef) bool { return r.Change != GitPropose })
	switch {
	case h == u.Host && port == u.Port:
		return true
	case op.LFS && slices.ContainsFunc(u.LFSHosts, func(p netname.Pattern) bool { return p.Match(h) }):
		return true
	}
	return proposes && h != "" && h == u.API.Host && port == u.API.Port
}

// decidePush judges refs, options and files. d is the answer where nothing of them is denied.
func (g *GitProfile) decidePush(op *GitOperation, d Decision) Decision {
	for i, r := range op.Refs {
		ref := g.DecideRef(r)
		if ref.Verdict != Allow {
			return ref
		}
		if i == 0 {
			d = ref
		}
	}
	for _, option := range op.Options {
		if !g.Option(option) {
			return Decision{Rule: g.rule(), Reason: fmt.Sprintf("the push option %s is not allowed here", showName(option))}
		}
	}
	for _, path := range op.Files {
		if g.Protected(path) {
			return Decision{Rule: g.rule(), Reason: showName(path) + " is protected here: leave it unchanged, or ask for it"}
		}
	}
	if op.Access == ReadAccess {
		d.Reason = op.Repository + " is open for reading here"
	}
	return d
}
