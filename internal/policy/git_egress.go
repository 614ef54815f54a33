package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cofferdam/cofferdam/internal/netname"
)

// RuleGitThroughProxy refuses what would go to a forge past the Git proxy, where nobody judges repositories and refs.
const RuleGitThroughProxy = "git-through-proxy"

// sshDoors returns the hosts at which a public forge speaks SSH on port 443, for networks that close port 22. Sources: the forges' own pages on SSH
// over the HTTPS port; for Azure DevOps, which names them for port 22, its page on SSH keys.
func sshDoors(forge netname.Host) []netname.Host {
	switch {
	case forge == "github.com":
		return []netname.Host{"ssh.github.com"}
	case forge == "gitlab.com":
		return []netname.Host{"altssh.gitlab.com"}
	case forge == "bitbucket.org":
		return []netname.Host{"altssh.bitbucket.org"}
	case forge == "dev.azure.com" || strings.HasSuffix(forge.String(), ".visualstudio.com"):
		return []netname.Host{"ssh.dev.azure.com", "vs-ssh.visualstudio.com"}
	}
	return nil
}

// at returns the upstreams at a host, on whatever port: who reaches the machine can speak Git or SSH on any.
func (l *gitLaw) at(h netname.Host) []*GitUpstream {
	if l == nil || h == "" {
		return nil
	}
	var all []*GitUpstream
	for i := range l.upstreams {
		if l.upstreams[i].Host == h {
			all = append(all, &l.upstreams[i])
		}
	}
	return all
}

// behind returns the upstream to which a host is an SSH door, nil if it is none.
func (l *gitLaw) behind(h netname.Host) *GitUpstream {
	if l == nil || h == "" {
		return nil
	}
	for i := range l.upstreams {
		if slices.Contains(sshDoors(l.upstreams[i].Host), h) {
			return &l.upstreams[i]
		}
	}
	return nil
}

// instead names where Git belongs.
func (u *GitUpstream) instead() string { return GitProxy + u.Name + "/" }

// pastGit judges crossings to the host of a Git upstream that would be Git's own, and those to its SSH doors. False leaves the judgement to rules.
func (p *Policy) pastGit(c *Crossing) (Decision, bool) {
	if !p.ServesGit() {
		return Decision{}, false
	}
	if u := p.git.behind(c.Host); u != nil {
		return Decision{Rule: RuleGitThroughProxy, Reason: fmt.Sprintf("%s is a way to %s past the Git proxy: use %s", c.Host, u.Host, u.instead())}, true
	}
	upstreams := p.git.at(c.Host)
	if len(upstreams) == 0 {
		return Decision{}, false
	}
	u := upstreams[0]
	for _, o := range upstreams {
		if below(c.Path, o.Path) && (len(o.Path) > len(u.Path) || !below(c.Path, u.Path)) {
			u = o
		}
	}
	switch c.Protocol {
	case TCP, Unknown:
		return Decision{Rule: RuleGitThroughProxy, Reason: fmt.Sprintf("bytes that nobody reads could be Git or SSH to %s: use %s", u.Host, u.instead())}, true
	case HTTP, HTTPS:
		if c.Method != "" && gitRequest(c.Path) {
			return Decision{Rule: RuleGitThroughProxy, Reason: fmt.Sprintf("Git to %s goes through its proxy: use %s", u.Host, u.instead())}, true
		}
	}
	return Decision{}, false
}

// gitRequest reports whether a path is one of Git's over HTTP, in any reading and letter case: smart, dumb or LFS. The service of info/refs stands in
// the query, so all of them are meant.
func gitRequest(path string) bool {
	return slices.ContainsFunc(netname.Path(path).Readings(), func(reading string) bool {
		reading = strings.TrimSuffix(strings.ToLower(reading), "/")
		for _, end := range []string{"/git-upload-pack", "/git-receive-pack", "/git-upload-archive", "/ssh-upload-pack", "/ssh-receive-pack", "/info/refs", "/info/lfs"} {
			if strings.HasSuffix(reading, end) {
				return true
			}
		}
		for _, part := range []string{"/info/lfs/", "/gitlab-lfs/", ".git/objects/", ".git/head", "/objects/info/", "/objects/pack/"} {
			if strings.Contains(reading, part) {
				return true
			}
		}
		return looseObject(reading)
	})
}

// looseObject reports whether a path ends as the dumb protocol asks for one object: objects/, two hexadecimal digits, a slash, and the rest.
func looseObject(path string) bool {
	segments := strings.Split(path, "/")
	if len(segments) < 3 {
		return false
	}
	last := segments[len(segments)-3:]
	return last[0] == "objects" && len(last[1]) == 2 && (len(last[2]) == 38 || len(last[2]) == 62) && strings.Trim(last[1]+last[2], "0123456789abcdef") == ""
}

// reachesGit reports whether some connection to the host of a Git upstream could be let through, whose requests then have to be seen.
func (p *Policy) reachesGit(h netname.Host) bool {
	return len(p.git.at(h)) > 0 && (p.Default() == Ask || p.anyRule(func(r *Rule) bool { return r.Verdict != Deny && r.namesHost(h) }))
}

// blinds says which upstream's requests a rule would pass through unread, or "".
func (l *gitLaw) blinds(r *Rule) string {
	if l == nil || !r.unread() {
		return ""
	}
	for i := range l.upstreams {
		if u := &l.upstreams[i]; r.namesHost(u.Host) {
			return fmt.Sprintf("%s is the Git upstream %q, and what goes there past its proxy has to be read", u.Host, u.Name)
		}
	}
	return ""
}

// gitDoors warns of rules that open what stays closed.
func (r *reader) gitDoors() {
	rules := r.policy.layers[0].rules
	for i := range rules {
		for _, h := range rules[i].Hosts {
			if u := r.policy.git.behind(h.Base()); u != nil && !h.Wildcard() && rules[i].Verdict != Deny {
				path := fmt.Sprintf("egress.rules[%d]", i)
				r.warn(r.place(path), path, "remove it", "%s stays closed while %s is a Git upstream", h, u.Host)
			}
		}
	}
}
