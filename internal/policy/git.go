package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cofferdam/cofferdam/internal/netname"
)

// GitProxy is where programs inside reach the Git proxy. An upstream follows as the first segment of the path, then the repository.
const GitProxy = "http://git.cofferdam.internal/"

// Access is how far a repository is open. The zero value is not at all.
type Access uint8

// The kinds of access, from closed to open.
const (
	NoAccess    Access = iota
	ReadAccess         // clone and fetch
	WriteAccess        // also push, as far as the rules for refs go
)

// GitChange is what a push does to a ref. The zero value is invalid, and never allowed.
type GitChange uint8

// The changes.
const (
	_          GitChange = iota
	GitCreate            // there was no such ref
	GitUpdate            // fast-forward: the old commit is an ancestor of the new one
	GitForce             // any other update
	GitDelete            // there is no such ref afterwards
	GitPropose           // the ref stays as it is, and a pull request against it is opened
)

// ForgeType is what kind of server an upstream is, which decides how pull requests are opened there. The zero value is PlainGit.
type ForgeType uint8

// The types of forges.
const (
	PlainGit ForgeType = iota // Git only: no pull requests
	GitHub
	Gitea // Forgejo too
	GitLab
	AzureDevOps
)

// GitAPI is where a forge's own interface is reached over verified TLS. A zero Host means that there is none.
type GitAPI struct {
	Host       netname.Host
	Port       uint16
	Path       string // of the interface's root, without a slash at its end; for Gitea it ends in /api/v1, for GitLab in /api/v4
	Credential string // name in the store, "" for none
}

// GitUpstream is a server of repositories, reached over verified TLS.
type GitUpstream struct {
	Name       string // the first segment of the path at the proxy
	Type       ForgeType
	Host       netname.Host
	Port       uint16
	Path       string // above all repositories, without a slash at its end: "" or as in /git
	Credential string // name in the store, "" for none
	API        GitAPI
	// LFSHosts are the hosts besides the upstream itself at which large files may be stored.
	LFSHosts []netname.Pattern
	// Line is where it stands in its file.
	Line int
}

func (u GitUpstream) clone() GitUpstream {
	u.LFSHosts = slices.Clone(u.LFSHosts)
	return u
}

// GitRef is what a push wants to do to one ref.
type GitRef struct {
	Name   string // whole, as in refs/heads/main
	Change GitChange
	// Target is what the ref points to if it is a symbolic one at the upstream, else "". It is judged as well.
	Target string
}

// GitOperation is what a program wants of one repository. The zero value is never allowed.
type GitOperation struct {
	Upstream string
	// Repository is the path below the upstream without .git, in netname's canonical form less the leading slash: acme/site.
	Repository string
	Access     Access
	// Refs, Options and Files are of a push: its commands, its push options, and the protected files that it changes, each as a path from the root.
	Refs    []GitRef
	Options []string
	Files   []string
	LFS     bool // objects of Git LFS; no ref is changed
}

// gitLaw is the section git of one document. It never changes once read, so policies share it.
type gitLaw struct {
	upstreams    []GitUpstream
	profiles     []*gitProfile
	repositories []gitEntry
}

// text is everything that the section says, less the lines where it says so.
func (l *gitLaw) text() string {
	if l == nil {
		return ""
	}
	var b strings.Builder
	for _, u := range l.upstreams {
		u.Line = 0
		fmt.Fprintf(&b, "%+v\n", u)
	}
	for _, g := range l.profiles {
		fmt.Fprintf(&b, "%s %s %q %q %d %d", g.name, g.access, g.options, g.proposals, g.maxPush, g.maxRefs)
		if g.protected != nil {
			fmt.Fprintf(&b, " %q", g.protected.texts)
		}
		for _, rule := range g.rules {
			fmt.Fprintf(&b, " %v", rule.allow)
			for _, p := range rule.patterns {
				fmt.Fprintf(&b, " %q", p.text)
			}
		}
		b.WriteByte('\n')
	}
	for _, e := range l.repositories {
		fmt.Fprintf(&b, "%s %q %q %s\n", e.upstream, e.exact, e.expression, e.profile.name)
	}
	return b.String()
}

// ServesGit reports whether there is a Git proxy for this policy: whether it names any upstream.
func (p *Policy) ServesGit() bool { return p != nil && p.git != nil && len(p.git.upstreams) > 0 }

// GitUpstreams returns the upstreams in the order of the file.
func (p *Policy) GitUpstreams() []GitUpstream {
	if !p.ServesGit() {
		return nil
	}
	var all []GitUpstream
	for _, u := range p.git.upstreams {
		all = append(all, u.clone())
	}
	return all
}

// GitUpstream returns the upstream with a name.
func (p *Policy) GitUpstream(name string) (GitUpstream, bool) {
	if !p.ServesGit() {
		return GitUpstream{}, false
	}
	i := slices.IndexFunc(p.git.upstreams, func(u GitUpstream) bool { return u.Name == name })
	if i < 0 {
		return GitUpstream{}, false
	}
	return p.git.upstreams[i].clone(), true
}
