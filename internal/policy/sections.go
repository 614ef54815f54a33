package policy

import (
	"fmt"
	"slices"

	"go.yaml.in/yaml/v4"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// document reads the whole file.
func (r *reader) document(root *yaml.Node) {
	versioned := false
	r.mapping(root, "", []field{
		{"version", func(n *yaml.Node, path string) { versioned = true; r.version(n, path) }},
		{"description", r.description},
		{"isolation", r.isolation},
		{"resources", r.resources},
		{"workspace", r.workspace},
		{"mounts", r.mounts},
		{"environment", r.environment},
		{"egress", r.egress},
		{"credentials", func(n *yaml.Node, path string) { r.list(n, path, maxCredentials, r.credential) }},
		{"git", r.git},
	})
	if len(r.problems) == 0 || r.onlyWarnings(0) {
		r.contradictions()
		r.credentialsTogether()
		r.gitDoors()
	}
	if !versioned && root.Kind == yaml.MappingNode {
		r.add(root, "version", "begin with: version: 1", "the version is missing")
	}
	if null(root) {
		r.add(root, "version", "begin with: version: 1", "the file is empty")
	}
}

func (r *reader) version(n *yaml.Node, path string) {
	if v, ok := r.number(n, path); ok && v != "1" {
		r.add(n, path, "write version: 1", "version %.20s is not one that this version of Cofferdam reads", v)
	}
}

func (r *reader) description(n *yaml.Node, path string) {
	if s, ok := r.text(n, path); ok && len(s) > maxText {
		r.add(n, path, "shorten it", "a description of %d bytes is longer than %d", len(s), maxText)
	}
}

func (r *reader) isolation(n *yaml.Node, path string) {
	i := &r.policy.isolation
	platform, read := n, true // the platform's place; whether the level that it needs could be read
	r.mapping(n, path, []field{
		{"level", func(n *yaml.Node, path string) { i.Level, read = choice(r, n, path, ParseLevel) }},
		{"minimum", func(n *yaml.Node, path string) { i.Minimum, _ = choice(r, n, path, ParseLevel) }},
		{"platform", func(n *yaml.Node, path string) { platform = n; i.Platform, _ = choice(r, n, path, ParsePlatform) }},
		{"image", func(n *yaml.Node, path string) { i.Image, _ = choice(r, n, path, ParseImage) }},
	})
	if err := i.check(); err != nil {
		r.addError(n, path+".level", err)
	}
	if err := i.checkPlatform(); err != nil && read {
		r.addError(platform, path+".platform", err)
	}
}

func (r *reader) workspace(n *yaml.Node, path string) {
	w := &r.policy.workspace
	r.mapping(n, path, []field{
		{"mode", func(n *yaml.Node, path string) { w.Mode, _ = choice(r, n, path, ParseWorkspaceMode) }},
		{"unprotected", func(n *yaml.Node, path string) {
			r.list(n, path, maxEntries, func(n *yaml.Node, path string) {
				s, ok := r.text(n, path)
				if !ok {
					return
				}
				if err := checkInside(s); err != nil {
					r.addError(n, path, err)
					return
				}
				w.Unprotected = append(w.Unprotected, s)
			})
		}},
	})
}

func (r *reader) mounts(n *yaml.Node, path string) {
	r.list(n, path, maxEntries, func(n *yaml.Node, path string) {
		var m Mount
		before := len(r.problems)
		stated := map[string]bool{}
		word := func(into *string, check func(string) error) func(*yaml.Node, string) {
			return func(n *yaml.Node, path string) {
				stated[path[len(path)-6:]] = true // source and target are both six letters
				if s, ok := r.text(n, path); !ok {
					return
				} else if err := check(s); err != nil {
					r.addError(n, path, err)
				} else {
					*into = s
				}
			}
		}
		r.mapping(n, path, []field{
			{"source", word(&m.Source, checkSource)},
			{"target", word(&m.Target, checkTarget)},
			{"mode", func(n *yaml.Node, path string) { m.Mode, _ = choice(r, n, path, ParseMountMode) }},
		})
		for _, key := range []string{"source", "target"} {
			if !stated[key] {
				r.add(n, path, "add "+key+": /PATH", "the mount has no %s", key)
			}
		}
		if len(r.problems) == before {
			r.mount(n, path, m)
		}
	})
}

// mount takes in one that is in order by itself.
func (r *reader) mount(n *yaml.Node, path string, m Mount) {
	if slices.ContainsFunc(r.policy.mounts, func(other Mount) bool { return other.Target == m.Target }) {
		r.add(n, path, "give each mount its own target", "another mount has the target %q", m.Target)
		return
	}
	if why := m.doubtful(); why != "" {
		r.warn(n, path, "leave the mount out, or narrow it, if it can be done without", "%q: %s", m.Source, why)
	}
	r.policy.marks[path] = mark{n.Line, n.Column}
	r.policy.mounts = append(r.policy.mounts, m)
}

func (r *reader) environment(n *yaml.Node, path string) {
	if n.Kind == yaml.MappingNode && len(n.Content) > 2*maxEntries {
		r.add(n, path, "shorten it", "%d variables are more than %d", len(n.Content)/2, maxEntries)
		return
	}
	r.entries(n, path, func(key, value *yaml.Node) {
		at := join(path, key.Value)
		if err := checkVariableName(key.Value); err != nil {
			r.addError(key, at, err)
			return
		}
		if value.Kind == yaml.AliasNode {
			return
		}
		s, ok := r.text(value, at)
		if !ok {
			return
		}
		if err := checkVariable(key.Value, s); err != nil {
			r.addError(value, at, err)
			return
		}
		if LooksLikeCredential(key.Value, s) {
			r.warn(value, at, "keep real credentials out of the sandbox", "the value looks like a credential, which every program inside could read")
		}
		r.policy.marks[at] = mark{key.Line, key.Column}
		r.policy.environment[key.Value] = s
	})
}

func (r *reader) egress(n *yaml.Node, path string) {
	l := &r.policy.layers[0]
	r.mapping(n, path, []field{
		{"default", func(n *yaml.Node, path string) { l.fallback, _ = choice(r, n, path, parseDefault) }},
		{"networks", func(n *yaml.Node, path string) {
			r.list(n, path, maxNetworks, func(n *yaml.Node, path string) { r.specialNetwork(n, path) })
		}},
		{"rules", func(n *yaml.Node, path string) { r.list(n, path, maxRules, r.rule) }},
	})
}

// parseDefault reads what happens to a crossing that no rule names. It cannot be allowed: that would be no policy.
func parseDefault(s string) (Verdict, error) {
	v, err := ParseVerdict(s)
	if err == nil && v != Allow {
		return v, nil
	}
	problem := fault.New(fault.Invalid, "the default cannot be %.40q", s)
	if v == Allow {
		return Deny, problem.WithHint("write deny or ask, and allow by rules")
	}
	return Deny, problem.WithHint("write deny or ask")
}

func (r *reader) specialNetwork(n *yaml.Node, path string) {
	network, ok := choice(r, n, path, ParseNetwork)
	if !ok {
		return
	}
	if err := checkSpecialNetwork(network); err != nil {
		r.addError(n, path, err)
		return
	}
	if why := openedHost(network); why != "" {
		r.warn(n, path, "leave it out if it can be done without", "%s: %s", network, why)
	}
	r.policy.marks[path] = mark{n.Line, n.Column}
	r.policy.layers[0].networks = append(r.policy.layers[0].networks, network)
}

// ruleName prints what a rule without a name is called.
func ruleName(index int) string { return fmt.Sprintf("rule %d", index+1) }
