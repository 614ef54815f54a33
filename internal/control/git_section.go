package control

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/store"
)

// gitSection is what becomes the section git of a document.
type gitSection struct {
	upstreams []store.Object[UpstreamData]
	profiles  []store.Object[ProfileData]
}

func (g *gitSection) addUpstream(u store.Object[UpstreamData]) {
	if !slices.ContainsFunc(g.upstreams, func(o store.Object[UpstreamData]) bool { return o.ID == u.ID }) {
		g.upstreams = append(g.upstreams, u)
	}
}

// replaced returns the section with changed parts in the place of those with the same identifiers, and the Git servers that are named then.
func (g gitSection) replaced(changed gitSection) gitSection {
	var out gitSection
	for _, p := range g.profiles {
		if i := slices.IndexFunc(changed.profiles, func(o store.Object[ProfileData]) bool { return o.ID == p.ID }); i >= 0 {
			p = changed.profiles[i]
		}
		out.profiles = append(out.profiles, p)
		for _, path := range p.Data.Paths {
			for _, u := range slices.Concat(changed.upstreams, g.upstreams) {
				if u.ID == path.Upstream {
					out.addUpstream(u)
				}
			}
		}
	}
	return out
}

// sectionOf reads profiles and the Git servers that they name.
func (s *Service) sectionOf(ctx context.Context, db *store.DB, tenant string, profileIDs []string) (gitSection, error) {
	var g gitSection
	for _, id := range profileIDs {
		p, err := profiles().Get(ctx, db, tenant, id)
		if fault.KindOf(err) == fault.NotFound {
			return g, absent("access profile")
		}
		if err != nil {
			return g, err
		}
		g.profiles = append(g.profiles, p)
		for _, path := range p.Data.Paths {
			if slices.ContainsFunc(g.upstreams, func(o store.Object[UpstreamData]) bool { return o.ID == path.Upstream }) {
				continue
			}
			u, err := upstreams().Get(ctx, db, tenant, path.Upstream)
			if err != nil {
				return g, err
			}
			g.upstreams = append(g.upstreams, u)
		}
	}
	return g, nil
}

// gitSection writes the section git that an agent's profiles make.
func (s *Service) gitSection(ctx context.Context, db *store.DB, tenant string, profileIDs []string) (*yaml.Node, error) {
	g, err := s.sectionOf(ctx, db, tenant, profileIDs)
	if err != nil {
		return nil, err
	}
	return g.node(), nil
}

// node writes the section, in the order of names.
func (g gitSection) node() *yaml.Node {
	slices.SortFunc(g.upstreams, func(a, b store.Object[UpstreamData]) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(g.profiles, func(a, b store.Object[ProfileData]) int { return cmp.Compare(a.Name, b.Name) })
	names := map[string]string{}
	servers, entries, paths := sequence(), sequence(), sequence()
	for _, u := range g.upstreams {
		names[u.ID] = u.Name
		servers.Content = append(servers.Content, upstreamNode(u))
	}
	for _, p := range g.profiles {
		entries.Content = append(entries.Content, profileNode(p))
		for _, path := range p.Data.Paths {
			n := mapping("upstream", word(names[path.Upstream]))
			for _, member := range [][2]string{{"repository", path.Repository}, {"matching", path.Expression}, {"profile", p.Name}} {
				if member[1] != "" {
					n.Content = append(n.Content, word(member[0]), word(member[1]))
				}
			}
			paths.Content = append(paths.Content, n)
		}
	}
	return mapping("upstreams", servers, "profiles", entries, "repositories", paths)
}

func upstreamNode(u store.Object[UpstreamData]) *yaml.Node {
	n := mapping("name", word(u.Name), "type", word(u.Data.Type), "url", word(u.Data.URL))
	if u.Data.Credential != "" {
		n.Content = append(n.Content, word("credential"), word(u.Data.Credential))
	}
	if u.Data.APIURL != "" || u.Data.APICredential != "" {
		api := mapping()
		for _, member := range [][2]string{{"url", u.Data.APIURL}, {"credential", u.Data.APICredential}} {
			if member[1] != "" {
				api.Content = append(api.Content, word(member[0]), word(member[1]))
			}
		}
		n.Content = append(n.Content, word("api"), api)
	}
	if len(u.Data.LFSHosts) > 0 {
		hosts := sequence()
		for _, h := range u.Data.LFSHosts {
			hosts.Content = append(hosts.Content, word(h))
		}
		n.Content = append(n.Content, word("lfs-hosts"), hosts)
	}
	return n
}

// profileNode puts the name before what the profile's text says. A text that is no mapping was refused when it was stored: it becomes an entry that
// policy refuses.
func profileNode(p store.Object[ProfileData]) *yaml.Node {
	n := mapping("name", word(p.Name))
	if _, root, err := rootOf(p.Data.Text); err == nil {
		n.Content = append(n.Content, root.Content...)
	}
	return n
}

// parseGit reads a section by itself. Its errors are about what a person wrote: places in the text that was made of it are left out.
func parseGit(g gitSection) (*policy.Policy, error) {
	for _, p := range g.profiles {
		if err := checkProfileText(p.Data.Text); err != nil {
			return nil, err
		}
	}
	doc, err := addSection("version: 1\n", "git", g.node())
	if err != nil {
		return nil, err
	}
	p, err := policy.Parse("", []byte(doc))
	problems, ok := errors.AsType[*policy.Problems](err)
	if !ok {
		return p, err
	}
	for _, problem := range problems.List {
		if !problem.Warning {
			return nil, fault.New(fault.Invalid, "%s: %s", place(problem.Path), problem.Message).WithHint("%s", problem.Remedy)
		}
	}
	return nil, err
}

// place is where a mistake stands, as the person who wrote it would say.
func place(path string) string {
	for from, to := range map[string]string{"git.upstreams[0]": "Git server", "git.profiles[0]": "profile", "git.repositories": "path rule"} {
		if rest, ok := strings.CutPrefix(path, from); ok {
			return strings.TrimPrefix(strings.TrimSuffix(to+" "+strings.TrimPrefix(rest, "."), " "), " ")
		}
	}
	return path
}

// checkProfileText holds a profile's text to one mapping without a name, so that it says of one profile what it says.
func checkProfileText(text string) error {
	hint := "write it as an entry of git.profiles without its name: access: write, rules: [...]"
	_, root, err := rootOf(text)
	if err != nil {
		return fault.New(fault.Invalid, "the profile's text is no mapping in YAML").WithHint("%s", hint)
	}
	for i := 0; i+1 < len(root.Content); i += 2 {
		if root.Content[i].Value == "name" {
			return fault.New(fault.Invalid, "the profile's text has a name of its own").WithHint("%s", hint)
		}
	}
	// What a second document, an anchor or a tag would say is refused by policy where the text stands for itself.
	if _, err := policy.Parse("", []byte("version: 1\ngit:\n  profiles:\n    - name: "+"checked\n"+indent(text, "      "))); err != nil {
		if problems, ok := errors.AsType[*policy.Problems](err); ok {
			for _, p := range problems.List {
				if !p.Warning {
					return fault.New(fault.Invalid, "profile %s: %s", strings.TrimPrefix(strings.TrimPrefix(p.Path, "git.profiles[0]"), "."), p.Message).WithHint("%s", p.Remedy)
				}
			}
		}
		return err
	}
	return nil
}

// indent puts every line of a text behind a margin.
func indent(text, margin string) string {
	return margin + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n"+margin) + "\n"
}
