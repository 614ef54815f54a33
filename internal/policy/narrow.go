package policy

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/cofferdam/cofferdam/internal/netname"
)

// Narrow puts a repository's own policy below a ceiling that a trusted person set. The result allows only what both allow: a crossing gets the
// more closed of the two verdicts, a limit is the smaller one. Where the repository asks for more than the ceiling gives, Narrow reports every
// such place as a *Problems and makes no policy.
//
// What the repository leaves out does not narrow limits, workspace, mounts and variables. Egress is different: a document that allows nothing
// allows nothing. A repository may say allow where the ceiling asks: a human is asked.
func Narrow(ceiling, repository *Policy) (*Policy, error) {
	if repository == nil || len(repository.layers) == 0 {
		return nil, &Problems{List: []Problem{{Message: "there is no repository policy", Remedy: "leave it out, or begin it with: version: 1"}}}
	}
	n := &narrower{ceiling: ceiling.clone(), repository: repository, result: ceiling.clone()}
	n.result.layers = append(n.result.layers, repository.clone().layers...)
	n.result.warnings = append(slices.Clone(n.ceiling.warnings), repository.warnings...)
	n.isolation()
	n.resources()
	n.workspace()
	n.mounts()
	n.environment()
	n.egress()
	n.git()
	if len(n.problems) > 0 {
		return nil, &Problems{File: repository.file, List: n.problems}
	}
	return n.result, nil
}

type narrower struct {
	ceiling, repository, result *Policy
	problems                    []Problem
}

// wider notes a place where the repository asks for more than it can have.
func (n *narrower) wider(path, remedy, format string, args ...any) {
	at := n.repository.marks[path]
	n.problems = append(n.problems, Problem{Line: at.line, Column: at.column, Path: path, Message: fmt.Sprintf(format, args...), Remedy: remedy})
}

// isolation lets the repository ask for a stronger wall, never for a weaker one, and for no files to start from but the ceiling's.
func (n *narrower) isolation() {
	ask, limit := n.repository.isolation, n.ceiling.Isolation()
	if ask.Level != 0 && ask.Level < limit {
		n.wider("isolation.level", "write level: "+limit.String(), "%s is weaker than the ceiling's %s", ask.Level, limit)
	}
	if own := cmp.Or(n.ceiling.isolation.Platform, Systrap); ask.Platform != 0 && ask.Platform != own { // neither is the stronger one, and one opens a device of the host's
		n.wider("isolation.platform", "write platform: "+own.String()+", or ask for the other yourself with --isolation gvisor --gvisor-platform "+ask.Platform.String(),
			"gVisor's platform is the ceiling's, %s", own)
	}
	if ask.Image != "" && ask.Image != n.ceiling.isolation.Image {
		n.wider("isolation.image", "remove it, or name it yourself with --image", "a repository's policy names no image that you do not name alike")
	}
	n.result.isolation.Level = max(ask.Level, ask.Minimum, limit)
	n.result.isolation.Minimum = max(ask.Minimum, n.ceiling.isolation.Minimum)
	if n.result.Isolation() != GVisor { // a stronger one
		n.result.isolation.Platform = 0
	}
}

func (n *narrower) resources() {
	ceiling, ask := n.ceiling.resources.OrDefaults(), n.repository.resources
	ceiling.Files = ceiling.ScratchFiles()
	for _, l := range limits() {
		most, want := *l.of(&ceiling), *l.of(&ask)
		switch {
		case want == 0:
		case most != 0 && want > most:
			n.wider("resources."+l.name, fmt.Sprintf("write %s or less", l.show(most)), "%s is more than the ceiling of %s", l.show(want), l.show(most))
		default:
			*l.of(&n.result.resources) = want
		}
	}
	// Neither kind of scratch is less than the other: one takes memory, the other the disk.
	if ask.Scratch != 0 && ask.Scratch != ceiling.Scratch {
		n.wider("resources.scratch", "write scratch: "+ceiling.Scratch.String(), "scratch lies where the ceiling has it, in kind %s", ceiling.Scratch)
	}
}

// stated reports whether the repository's document says something at path. A policy of flags says everything.
func (n *narrower) stated(path string) bool {
	_, ok := n.repository.marks[path]
	return ok || n.repository.marks == nil
}

func (n *narrower) workspace() {
	ask, limit := n.repository.workspace, n.ceiling.workspace
	if n.stated("workspace.mode") {
		if ask.Mode.openness() > limit.Mode.openness() {
			n.wider("workspace.mode", "write mode: "+limit.Mode.String(), "%s is more than the ceiling's %s", ask.Mode, limit.Mode)
		}
		n.result.workspace.Mode = ask.Mode
	}
	if !n.stated("workspace.unprotected") {
		return
	}
	for i, path := range ask.Unprotected {
		if !slices.Contains(limit.Unprotected, path) {
			n.wider("workspace.unprotected", "remove it", "entry %d, %q: the ceiling keeps it protected", i+1, path)
		}
	}
	n.result.workspace.Unprotected = slices.Clone(ask.Unprotected)
}

func (n *narrower) mounts() {
	if !n.stated("mounts") {
		return
	}
	n.result.mounts = nil
	for i, m := range n.repository.mounts {
		path := fmt.Sprintf("mounts[%d]", i)
		at := slices.IndexFunc(n.ceiling.mounts, func(c Mount) bool { return c.Source == m.Source && c.Target == m.Target })
		switch {
		case at < 0:
			n.wider(path, "remove it, or have the ceiling list it", "the ceiling has no mount of %q on %q", m.Source, m.Target)
		case m.Mode > n.ceiling.mounts[at].Mode:
			n.wider(path, "write mode: ro", "the ceiling mounts %q read-only", m.Source)
		default:
			n.result.mounts = append(n.result.mounts, m)
		}
	}
}

func (n *narrower) environment() {
	for _, name := range slices.Sorted(maps.Keys(n.repository.environment)) {
		// A variable is no limit: LD_PRELOAD or a registry's address would steer the person's own command.
		if value, set := n.ceiling.environment[name]; !set || value != n.repository.environment[name] {
			n.wider("environment."+name, "remove it, or set it yourself with --env", "a repository's policy sets no variables that you do not set alike")
		}
	}
}

func (n *narrower) egress() {
	for li := range n.repository.layers {
		l := &n.repository.layers[li]
		if l.fallback > n.ceiling.Default() {
			n.wider("egress.default", "write default: deny", "to ask is more than the ceiling, which denies")
		}
		for i, network := range l.networks {
			if !n.ceiling.resolvesInto(network) {
				n.wider(fmt.Sprintf("egress.networks[%d]", i), "remove it", "the ceiling lets no name resolve into %s", network)
			}
		}
		for i := range l.rules {
			n.rule(fmt.Sprintf("egress.rules[%d]", i), &l.rules[i])
		}
		for i := range l.credentials {
			n.wider(fmt.Sprintf("credentials[%d]", i), "remove the section, and have the ceiling lend it", "a repository's own policy cannot lend itself the credential %q", l.credentials[i].Use)
		}
	}
}

// git refuses the section, which from there could only widen or confuse: two documents' profiles have no order between them.
func (n *narrower) git() {
	if n.repository.git != nil {
		n.wider("git", "remove the section, and have the ceiling say what Git may do", "a repository's own policy cannot have a section git")
	}
}

// resolvesInto reports whether every layer names a network that holds this one.
func (p *Policy) resolvesInto(network netip.Prefix) bool {
	return !slices.ContainsFunc(p.layers, func(l layer) bool {
		return !slices.ContainsFunc(l.networks, func(c netip.Prefix) bool { return c.Bits() <= network.Bits() && c.Contains(network.Addr()) })
	})
}

// rule reports what a rule of the repository opens and the ceiling keeps closed, once per host or network.
func (n *narrower) rule(path string, r *Rule) {
	if r.Verdict == Deny {
		return
	}
	for i := range n.ceiling.layers {
		if why := n.ceiling.layers[i].readers().contradict(r); why != "" {
			n.wider(path, "leave tls: tunnel or protocol: tcp out", "rule %q passes bytes through unread, but in the ceiling %s", r.Name, why)
		}
	}
	if why := n.ceiling.git.blinds(r); why != "" {
		n.wider(path, "leave tls: tunnel or protocol: tcp out", "rule %q passes bytes through unread, but in the ceiling %s", r.Name, why)
	}
	tell := func(what string, closed []uint16) {
		if len(closed) > 0 {
			n.wider(path, "remove it from the rule, or have the ceiling allow it", "rule %q: the ceiling does not allow %s on port %s", r.Name, what, joinPorts(closed))
		}
	}
	for _, h := range r.Hosts {
		tell(h.String(), n.closedPorts(r, func(c *Rule) bool {
			return c.coversRequests(r) && slices.ContainsFunc(c.Hosts, func(p netname.Pattern) bool { return p.Covers(h) })
		}))
	}
	for _, network := range r.Networks {
		tell(network.String(), n.closedPorts(r, func(c *Rule) bool {
			return slices.ContainsFunc(c.Networks, func(p netip.Prefix) bool { return p.Bits() <= network.Bits() && p.Contains(network.Addr()) })
		}))
	}
}

// coversRequests reports whether every request that o is about is one that r is about. A rule that denies some requests does not deny all of o's.
func (r *Rule) coversRequests(o *Rule) bool {
	within := func(len1, len2 int, all bool) bool { return len1 == 0 || len2 > 0 && all }
	return within(len(r.Methods), len(o.Methods), !slices.ContainsFunc(o.Methods, func(m string) bool { return !slices.Contains(r.Methods, m) })) &&
		within(len(r.Paths), len(o.Paths), !slices.ContainsFunc(o.Paths, func(q netname.PathPattern) bool {
			return !slices.ContainsFunc(r.Paths, func(p netname.PathPattern) bool { return p.Covers(q) })
		}))
}

// closedPorts returns the ports of a rule on which some layer of the ceiling denies what it opens.
func (n *narrower) closedPorts(r *Rule, covers func(*Rule) bool) []uint16 {
	var closed []uint16
	for _, port := range r.Ports {
		open := true
		for _, protocol := range r.protocols() {
			for i := range n.ceiling.layers {
				open = open && n.ceiling.layers[i].covers(port, protocol, covers) != Deny
			}
		}
		if !open {
			closed = append(closed, port)
		}
	}
	return closed
}

// covers returns what a layer says about every crossing of a kind at once: the verdict that holds for all of them.
func (l *layer) covers(port uint16, protocol Protocol, covers func(*Rule) bool) Verdict {
	best := l.fallback
	for i := range l.rules {
		r := &l.rules[i]
		if !covers(r) || !r.namesPort(port) || !r.namesProtocol(protocol) {
			continue
		}
		if r.Verdict == Deny {
			return Deny
		}
		best = max(best, r.Verdict)
	}
	return best
}
