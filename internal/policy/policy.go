package policy

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Workspace says how the folder that is worked in is mounted.
type Workspace struct {
	Mode WorkspaceMode
	// Unprotected lists paths below the workspace whose changes are not set apart as dangerous.
	Unprotected []string
}

// Options is a policy put together from flags, or what flags add to one. Zero fields add nothing.
type Options struct {
	Default     Verdict // Deny or Ask; the more open of this and what stands wins
	Rules       []Rule
	Networks    []netip.Prefix // special-purpose networks into which allowed names may resolve
	Isolation   Isolation      // fields that are not zero replace what stands; a minimum only rises
	Resources   Resources      // fields that are not zero replace what stands
	Workspace   *Workspace     // nil leaves what stands; an empty Unprotected keeps the paths that stand
	Credentials []Credential   // added
	Mounts      []Mount        // added; the same target replaces
	Environment map[string]string
}

// Policy decides what a sandbox may do. It never changes once made, so it is safe for concurrent use; With and Extend make new ones.
// The zero value and nil deny every crossing.
type Policy struct {
	file string
	// layers all have to agree: the most closed verdict wins. There is one, until Narrow puts a second below it.
	layers      []layer
	isolation   Isolation
	resources   Resources
	workspace   Workspace
	mounts      []Mount
	environment map[string]string
	git         *gitLaw // nil without the section; shared, as it never changes
	warnings    []Problem
	// marks holds where each setting of the file stands; a setting without one was not stated.
	marks map[string]mark
}

// layer is what one document says about egress.
type layer struct {
	fallback    Verdict // Deny or Ask
	networks    []netip.Prefix
	rules       []Rule
	credentials []Credential
}

// New makes a policy of options. What New(Options{}) returns denies every crossing.
func New(o Options) (*Policy, error) {
	p := &Policy{layers: []layer{{}}}
	return p.Extend(o)
}

// Extend returns p with options on top, which come from a trusted person: they may widen it. p stays as it is.
func (p *Policy) Extend(o Options) (*Policy, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	q := p.With(o.Rules...)
	for i := range q.layers {
		q.layers[i].fallback = max(q.layers[i].fallback, o.Default)
		q.layers[i].networks = append(q.layers[i].networks, o.Networks...)
	}
	if err := q.layers[0].lend(o.Credentials); err != nil { // in the first layer only: the others do not lend
		return nil, invalid(err)
	}
	for i := range q.layers[0].rules {
		if why := q.git.blinds(&q.layers[0].rules[i]); why != "" {
			return nil, fault.New(fault.Invalid, "rule %q passes bytes through unread, but %s", q.layers[0].rules[i].Name, why).
				WithHint("leave it out: Git has its own section, and %s inside", GitProxy)
		}
	}
	q.isolation = o.Isolation.or(q.isolation)
	if err := q.isolation.check(); err != nil {
		return nil, err
	}
	if err := q.isolation.checkPlatform(); err != nil {
		return nil, err
	}
	q.resources = o.Resources.or(q.resources)
	if o.Workspace != nil {
		q.workspace.Mode = o.Workspace.Mode
		q.workspace.Unprotected = append(q.workspace.Unprotected, o.Workspace.Unprotected...)
	}
	for _, m := range o.Mounts {
		q.mounts = slices.DeleteFunc(q.mounts, func(old Mount) bool { return old.Target == m.Target })
		q.mounts = append(q.mounts, m)
	}
	maps.Copy(q.environment, o.Environment)
	return q, nil
}

func (o *Options) check() error {
	if o.Default > Ask {
		return fault.New(fault.Invalid, "what no rule names can be denied or asked about, not allowed")
	}
	for i := range o.Rules {
		if err := o.Rules[i].check(); err != nil {
			return invalid(err)
		}
	}
	for i := range o.Credentials {
		if err := o.Credentials[i].check(); err != nil {
			return invalid(err)
		}
	}
	for _, n := range o.Networks {
		if err := checkSpecialNetwork(n); err != nil {
			return invalid(err)
		}
	}
	if err := o.Resources.check(); err != nil {
		return invalid(err)
	}
	if o.Workspace != nil {
		for _, path := range o.Workspace.Unprotected {
			if err := checkInside(path); err != nil {
				return invalid(err)
			}
		}
	}
	for i, m := range o.Mounts {
		if err := m.check(); err != nil {
			return invalid(err)
		}
		if slices.ContainsFunc(o.Mounts[:i], func(other Mount) bool { return other.Target == m.Target }) {
			return fault.New(fault.Invalid, "two mounts on %s", m.Target)
		}
	}
	for name, value := range o.Environment {
		if err := checkVariable(name, value); err != nil {
			return invalid(err)
		}
	}
	return nil
}

// lend adds credentials, and refuses what then contradicts itself.
func (l *layer) lend(credentials []Credential) error {
	for i := range credentials {
		if err := clash(l.credentials, &credentials[i]); err != nil {
			return err
		}
		l.credentials = append(l.credentials, credentials[i].clone())
	}
	readers := l.readers()
	for i := range l.rules {
		if why := readers.contradict(&l.rules[i]); why != "" {
			return fault.New(fault.Invalid, "rule %q passes bytes through unread, but %s", l.rules[i].Name, why).
				WithHint("give the two different hosts or ports, or leave one out")
		}
	}
	return nil
}

// invalid makes any error of input one of kind fault.Invalid, and keeps its hint.
func invalid(err error) error {
	return fault.New(fault.Invalid, "%v", err).WithHint("%s", fault.HintOf(err))
}

// With returns p with rules added, as a person answered or a flag says. They are added to every layer, so an allowance holds against a
// layer that merely does not mention the host; a denial stays a denial.
func (p *Policy) With(rules ...Rule) *Policy {
	q := p.clone()
	for i := range q.layers {
		for _, r := range rules {
			q.layers[i].rules = append(q.layers[i].rules, r.clone())
		}
	}
	return q
}

// clone copies all that With and Extend change.
func (p *Policy) clone() *Policy {
	if p == nil {
		p = &Policy{}
	}
	q := *p
	q.layers = make([]layer, max(len(p.layers), 1))
	for i, l := range p.layers {
		q.layers[i] = layer{fallback: l.fallback, networks: slices.Clone(l.networks), rules: slices.Clone(l.rules), credentials: slices.Clone(l.credentials)}
	}
	q.workspace.Unprotected = slices.Clone(p.workspace.Unprotected)
	q.mounts = slices.Clone(p.mounts)
	q.environment = maps.Clone(p.environment)
	if q.environment == nil {
		q.environment = map[string]string{}
	}
	return &q
}

// File returns the name that Parse was given, "" for a policy of flags.
func (p *Policy) File() string { return p.file }

// Isolation returns the level that the sandbox is to have: what was stated, or the minimum, or Container.
func (p *Policy) Isolation() Level { return p.isolation.level() }

// Platform returns how gVisor's kernel is to have programs run: what was stated, or Systrap; none at other levels.
func (p *Policy) Platform() Platform {
	if p.Isolation() != GVisor {
		return 0
	}
	return cmp.Or(p.isolation.Platform, Systrap)
}

// Minimum returns the level that nobody may go below, Container if none is stated.
func (p *Policy) Minimum() Level { return max(p.isolation.Minimum, Container) }

// Image returns the reference of the image that is the sandbox's root file system; empty: none was stated.
func (p *Policy) Image() string { return p.isolation.Image }

// Resources returns the limits as stated; zero fields mean the defaults (Resources.OrDefaults).
func (p *Policy) Resources() Resources { return p.resources }

// Workspace returns how the workspace is mounted.
func (p *Policy) Workspace() Workspace {
	return Workspace{Mode: p.workspace.Mode, Unprotected: slices.Clone(p.workspace.Unprotected)}
}

// Mounts returns the additional mounts, in the order stated.
func (p *Policy) Mounts() []Mount { return slices.Clone(p.mounts) }

// Environment returns the variables to set inside, a copy that is never nil.
func (p *Policy) Environment() map[string]string {
	env := maps.Clone(p.environment)
	if env == nil {
		env = map[string]string{}
	}
	return env
}

// Warnings returns what Parse found doubtful but not wrong.
func (p *Policy) Warnings() []Problem { return slices.Clone(p.warnings) }

// Rules returns the rules of all layers, the ceiling's first.
func (p *Policy) Rules() []Rule {
	var all []Rule
	for _, l := range p.layers {
		for _, r := range l.rules {
			all = append(all, r.clone())
		}
	}
	return all
}

// Default returns what happens to a crossing that no rule names: Deny or Ask.
func (p *Policy) Default() Verdict {
	if p == nil || len(p.layers) == 0 {
		return Deny
	}
	least := Ask
	for _, l := range p.layers {
		least = min(least, l.fallback)
	}
	return least
}

// AsksRaw reports whether raw addresses that no rule names are asked about, so that all of them have to reach the gateway.
func (p *Policy) AsksRaw() bool { return p.Default() == Ask }

// Networks returns the networks of the rules that allow raw addresses or ask about them, for the kernel's filter. The filter may let through more
// than Decide allows, never less.
func (p *Policy) Networks() []netip.Prefix {
	everything := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	if p == nil || len(p.layers) == 0 {
		return nil
	}
	all := everything
	for _, l := range p.layers {
		if l.fallback == Ask {
			continue // as far as this layer goes, everything may pass
		}
		var own []netip.Prefix
		for _, r := range l.rules {
			if r.Verdict != Deny {
				own = append(own, r.Networks...)
			}
		}
		all = intersect(all, own)
	}
	if p.AsksRaw() {
		all = nil // AsksRaw says it already; what is left to name are the rules' networks
		for _, l := range p.layers {
			for _, r := range l.rules {
				if r.Verdict != Deny {
					all = append(all, r.Networks...)
				}
			}
		}
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	return slices.Compact(all)
}

// intersect returns the narrower of each overlapping pair.
func intersect(a, b []netip.Prefix) []netip.Prefix {
	var both []netip.Prefix
	for _, x := range a {
		for _, y := range b {
			switch {
			case !x.Overlaps(y):
			case x.Bits() > y.Bits():
				both = append(both, x)
			default:
				both = append(both, y)
			}
		}
	}
	return both
}

// String names the policy for logs and messages.
func (p *Policy) String() string {
	if p == nil || p.file == "" {
		return "policy of flags"
	}
	return fmt.Sprintf("policy %s", p.file)
}
