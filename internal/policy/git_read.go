package policy

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v4"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/netname"
)

// The bounds of the section git.
const (
	maxUpstreams    = 64
	maxProfiles     = 64
	maxRepositories = 1000
	maxRefRules     = 100
	maxPatterns     = 100 // of one rule
	maxProtected    = 256
	maxOptions      = 64
	maxExpression   = 1000
	maxCommands     = 1000 // of one push: the proxy reads no more
)

func pushBound() bound { return bound{64 * KiB, TiB} }
func refsBound() bound { return bound{1, maxCommands} }

// gitNodes are the places of what can be judged only once the whole section is read.
type gitNodes struct {
	profiles []string // the name that each entry of repositories gives
	at       []*yaml.Node
	path     []string
}

// git reads the section.
func (r *reader) git(n *yaml.Node, path string) {
	law, nodes := &gitLaw{}, &gitNodes{}
	before := len(r.problems)
	r.mapping(n, path, []field{
		{"upstreams", func(n *yaml.Node, path string) {
			r.list(n, path, maxUpstreams, func(n *yaml.Node, path string) { r.gitUpstream(n, path, law) })
		}},
		{"profiles", func(n *yaml.Node, path string) {
			r.list(n, path, maxProfiles, func(n *yaml.Node, path string) { r.gitProfile(n, path, law) })
		}},
		{"repositories", func(n *yaml.Node, path string) {
			r.list(n, path, maxRepositories, func(n *yaml.Node, path string) { r.gitRepository(n, path, law, nodes) })
		}},
	})
	if r.onlyWarnings(before) {
		r.gitTogether(law, nodes)
	}
	r.policy.git = law
}

// entry reads the keys of one element of a list and reports those that must be there and are not. It is false where the element is unfit.
func (r *reader) entry(n *yaml.Node, path, what string, fields []field, needed map[string]string) bool {
	before, stated := len(r.problems), map[string]bool{}
	for i, f := range fields {
		fields[i].read = func(n *yaml.Node, path string) { stated[f.key] = true; f.read(n, path) }
	}
	if null(n) {
		r.add(n, path, "write its keys, or remove the entry", "the %s is empty", what)
		return false
	}
	r.mapping(n, path, fields)
	for _, f := range fields {
		if example, must := needed[f.key]; must && !stated[f.key] && n.Kind == yaml.MappingNode {
			r.add(n, path, "add "+f.key+": "+example, "the %s has no %s", what, f.key)
		}
	}
	r.policy.marks[path] = mark{n.Line, n.Column}
	return r.onlyWarnings(before)
}

func (r *reader) gitUpstream(n *yaml.Node, path string, law *gitLaw) {
	u := GitUpstream{Line: n.Line}
	var api, lfs *yaml.Node
	fit := r.entry(n, path, "upstream", []field{
		{"name", func(n *yaml.Node, path string) { u.Name, _ = choice(r, n, path, checkGitName) }},
		{"type", func(n *yaml.Node, path string) { u.Type, _ = choice(r, n, path, ParseForgeType) }},
		{"url", func(n *yaml.Node, path string) {
			if s, ok := r.text(n, path); ok {
				var err error
				if u.Host, u.Port, u.Path, err = parseGitURL(s); err != nil {
					r.addError(n, path, err)
				}
			}
		}},
		{"credential", func(n *yaml.Node, path string) { u.Credential, _ = choice(r, n, path, checkCredentialName) }},
		{"api", func(n *yaml.Node, path string) { api = n; r.gitAPI(n, path, &u.API) }},
		{"lfs-hosts", func(n *yaml.Node, path string) {
			lfs = n
			var hosts Rule // read as those of rules are
			r.list(n, path, maxHosts, func(n *yaml.Node, path string) { r.host(n, path, &hosts) })
			u.LFSHosts = hosts.Hosts
		}},
	}, map[string]string{"name": "NAME", "url": "https://HOST"})
	if !fit {
		return
	}
	if api != nil && u.Type == PlainGit {
		r.add(api, path+".api", "leave it out, or say the type: "+strings.Join(forgeNames()[1:], ", "), "an upstream of type plain has no interface for pull requests")
		return
	}
	u.complete(lfs != nil)
	for i := range law.upstreams {
		o := &law.upstreams[i]
		switch {
		case o.Name == u.Name:
			r.add(n, path+".name", "give each upstream its own name", "another upstream is called %q", u.Name)
			return
		case o.Host == u.Host && o.Port == u.Port && (below(o.Path, u.Path) || below(u.Path, o.Path)):
			r.add(n, path+".url", "remove one of the two", "the upstream %q holds the same repositories, and one of the two could open what the other closes", o.Name)
			return
		}
	}
	law.upstreams = append(law.upstreams, u)
}

// complete fills in what was left to default.
func (u *GitUpstream) complete(lfsStated bool) {
	api := &u.API
	if u.Type != PlainGit && api.Host == "" {
		api.Host, api.Port, api.Path = u.Host, u.Port, u.Path
		if name, ok := strings.CutSuffix(u.Host.String(), ".ghe.com"); u.Type == GitHub && u.Host == "github.com" {
			api.Host, api.Path = "api.github.com", ""
		} else if u.Type == GitHub && ok {
			api.Host, api.Path = netname.Host("api."+name+".ghe.com"), "" // GitHub Enterprise Cloud with data residency
		} else if u.Type == GitHub {
			api.Path += "/api/v3" // GitHub Enterprise Server
		}
	}
	if below := apiPath(u.Type); below != "" && !strings.HasSuffix(api.Path, below) {
		api.Path += below
	}
	if !lfsStated && u.Type == GitHub && u.Host == "github.com" {
		for _, h := range githubLFSHosts() {
			u.LFSHosts = append(u.LFSHosts, netname.Exact(h))
		}
	}
}

// apiPath is where a forge's interface lies below its root.
func apiPath(t ForgeType) string {
	switch t {
	case Gitea:
		return "/api/v1"
	case GitLab:
		return "/api/v4"
	}
	return ""
}

// githubLFSHosts are what GitHub's reference for self-hosted runners names as needed for Git LFS.
func githubLFSHosts() []netname.Host {
	return []netname.Host{"github-cloud.githubusercontent.com", "github-cloud.s3.amazonaws.com"}
}

func (r *reader) gitAPI(n *yaml.Node, path string, api *GitAPI) {
	r.mapping(n, path, []field{
		{"url", func(n *yaml.Node, path string) {
			if s, ok := r.text(n, path); ok {
				var err error
				if api.Host, api.Port, api.Path, err = parseGitURL(s); err != nil {
					r.addError(n, path, err)
				}
			}
		}},
		{"credential", func(n *yaml.Node, path string) { api.Credential, _ = choice(r, n, path, checkCredentialName) }},
	})
}

// parseGitURL reads an https URL of host, port and base path alone, in canonical form.
func parseGitURL(s string) (netname.Host, uint16, string, error) {
	fail := func(hint, format string, args ...any) (netname.Host, uint16, string, error) {
		return "", 0, "", fault.New(fault.Invalid, format, args...).WithHint("%s", hint)
	}
	const shape = "write it as in https://git.example.com or https://git.example.com:8443/base"
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "":
		return fail(shape, "%.200q is no URL with a host", s)
	case u.Scheme != "https":
		return fail(shape, "%.200q is not https, and credentials travel only inside verified TLS", s)
	case u.User != nil:
		return fail("leave it out, and name a stored credential under credential", "the URL has a user")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.Contains(s, "#"):
		return fail("leave it out", "%.200q has a query or a fragment", s)
	case strings.HasSuffix(u.Path, "/"):
		return fail("write "+strings.TrimRight(s, "/"), "%.200q ends in a slash", s)
	case u.Port() == "443":
		return fail("leave :443 out", "%.200q names the port that https has anyway", s)
	}
	host, err := netname.ParseHost(u.Hostname())
	if err != nil {
		return "", 0, "", err
	}
	port := uint16(443)
	if u.Port() != "" {
		if port, err = netname.ParsePort(u.Port()); err != nil {
			return "", 0, "", err
		}
	}
	path := u.EscapedPath()
	if canonical, err := netname.NormalisePath(path); path != "" && (err != nil || canonical.String() != path || strings.Contains(path, "%")) {
		return fail("write segments of letters, digits and . _ - ~", "the path of %.200q is not in canonical form", s)
	}
	return host, port, path, nil
}

func checkGitName(s string) (string, error) {
	fit := s != "" && len(s) <= maxName && s[0] != '-' && !strings.ContainsFunc(s, func(c rune) bool { return !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-') })
	if !fit {
		return "", fault.New(fault.Invalid, "%.80q cannot be a name here", s).WithHint("write 1 to 63 lower-case letters, digits and hyphens, beginning with no hyphen")
	}
	return s, nil
}

func (r *reader) gitProfile(n *yaml.Node, path string, law *gitLaw) {
	g := &gitProfile{proposals: defaultProposals, maxPush: defaultMaxPush, maxRefs: defaultMaxRefs, line: n.Line}
	var protected []string
	for _, f := range DefaultProtectedFiles() {
		protected = append(protected, f.Pattern)
	}
	var pushing *yaml.Node // a key that says something about pushes
	note := func(read func(*yaml.Node, string)) func(*yaml.Node, string) {
		return func(n *yaml.Node, path string) { pushing = n; read(n, path) }
	}
	fit := r.entry(n, path, "profile", []field{
		{"name", func(n *yaml.Node, path string) { g.name, _ = choice(r, n, path, checkGitName) }},
		{"access", func(n *yaml.Node, path string) { g.access, _ = choice(r, n, path, ParseAccess) }},
		{"rules", note(func(n *yaml.Node, path string) {
			r.list(n, path, maxRefRules, func(n *yaml.Node, path string) { r.gitRule(n, path, g) })
		})},
		{"push-options", note(func(n *yaml.Node, path string) { r.words(n, path, maxOptions, checkPushOption, &g.options) })},
		{"protected-files", note(func(n *yaml.Node, path string) {
			protected = nil
			r.words(n, path, maxProtected, checkProtected, &protected)
		})},
		{"proposals", note(func(n *yaml.Node, path string) { g.proposals, _ = choice(r, n, path, checkProposals) })},
		{"max-push", note(func(n *yaml.Node, path string) {
			r.limit(n, path, limit{bound: pushBound(), parse: ParseSize, show: FormatSize, form: asSize}, &g.maxPush)
		})},
		{"max-refs", note(func(n *yaml.Node, path string) {
			count := int64(0)
			r.limit(n, path, limit{bound: refsBound(), parse: parseCount, show: formatCount}, &count)
			g.maxRefs = int(count)
		})},
	}, map[string]string{"name": "NAME", "access": "read or write"})
	if !fit {
		return
	}
	if len(protected) > 0 {
		g.protected = newProtection(protected)
	}
	switch {
	case g.access == ReadAccess && pushing != nil:
		r.add(pushing, path, "leave it out, or write access: write", "a profile with access: read says something about pushes")
	case g.access == ReadAccess && g.name == "read":
		r.add(n, path+".name", "leave the profile out", "the profile read is built in")
	case g.name == "read":
		r.add(n, path+".name", "choose another name", "the profile read is built in, and only reads")
	case slices.ContainsFunc(law.profiles, func(o *gitProfile) bool { return o.name == g.name }):
		r.add(n, path+".name", "give each profile its own name", "another profile is called %q", g.name)
	default:
		if g.access == WriteAccess && len(g.rules) == 0 {
			r.warn(n, path, "add rules, or write access: read", "no push is allowed without rules")
		}
		law.profiles = append(law.profiles, g)
	}
}

// words reads a list of words of which each stands once.
func (r *reader) words(n *yaml.Node, path string, limit int, check func(string) (string, error), into *[]string) {
	r.list(n, path, limit, func(n *yaml.Node, path string) {
		s, ok := choice(r, n, path, check)
		switch {
		case !ok:
		case slices.Contains(*into, s):
			r.add(n, path, "remove one of the two", "%.80q is listed twice", s)
		default:
			*into = append(*into, s)
		}
	})
}

// gitRule reads one entry of a profile's rules.
func (r *reader) gitRule(n *yaml.Node, path string, g *gitProfile) {
	rule := gitRule{line: n.Line}
	var allow, propose *yaml.Node
	others := false
	patterns := func(prefix string) func(*yaml.Node, string) {
		return func(n *yaml.Node, path string) {
			others = others || prefix != branchRefs
			r.full(n, path, maxPatterns, func(n *yaml.Node, path string) {
				p, ok := choice(r, n, path, func(s string) (pattern, error) { return checkRefPattern(prefix, s) })
				switch {
				case !ok:
				case slices.ContainsFunc(rule.patterns, func(o pattern) bool { return o.text == p.text }):
					r.add(n, path, "remove one of the two", "%.80q is listed twice", n.Value)
				default:
					rule.patterns = append(rule.patterns, p)
				}
			})
		}
	}
	fit := r.entry(n, path, "rule", []field{
		{"branches", patterns(branchRefs)},
		{"tags", patterns(tagRefs)},
		{"refs", patterns("")},
		{"allow", func(n *yaml.Node, path string) { allow = n; r.changes(n, path, &rule) }},
		{"propose", func(n *yaml.Node, path string) {
			propose = n
			if s, ok := r.text(n, path); ok && s != "pull-request" {
				r.add(n, path, "write propose: pull-request", "%.40q cannot be proposed", s)
			}
			rule.allow[GitPropose] = true
		}},
	}, nil)
	switch {
	case !fit:
	case len(rule.patterns) == 0:
		r.add(n, path, "add branches: [...], tags: [...] or refs: [...]", "the rule is about no refs")
	case allow == nil && propose == nil:
		r.add(n, path, "add allow: [create, update], allow: [] to deny, or propose: pull-request", "the rule does not say what is allowed")
	case allow != nil && propose != nil:
		r.add(propose, path+".propose", "leave one of the two out", "a push is allowed or becomes a pull request, not both")
	case rule.allow[GitForce] && !rule.allow[GitUpdate]:
		r.add(allow, path+".allow", "add update", "force without update: who can replace what a branch holds can add to it")
	case propose != nil && others:
		r.add(propose, path+".propose", "list branches only", "pull requests are for branches")
	default:
		g.rules = append(g.rules, rule)
	}
}

// changes reads what a rule allows. An empty list denies; a value left empty is a slip.
func (r *reader) changes(n *yaml.Node, path string, rule *gitRule) {
	if null(n) {
		r.add(n, path, "write allow: [] to deny, or list what is allowed", "the list is empty")
		return
	}
	r.list(n, path, int(GitDelete), func(n *yaml.Node, path string) {
		c, ok := choice(r, n, path, ParseGitChange)
		if ok && rule.allow[c] {
			r.add(n, path, "remove one of the two", "%s is listed twice", c)
		}
		rule.allow[c] = rule.allow[c] || ok
	})
}

func checkPushOption(s string) (string, error) {
	key, open := strings.CutSuffix(s, "*")
	fit := key != "" && len(s) <= 1000 && !strings.Contains(key, "*") && !strings.ContainsFunc(s, unicode.IsControl) && (!open || len(key) > 1 && strings.HasSuffix(key, "="))
	if !fit {
		return "", fault.New(fault.Invalid, "%.80q is no push option", s).WithHint("write one as in ci.skip, or KEY=* for any value of a key")
	}
	return s, nil
}

func checkProposals(s string) (string, error) {
	hint := "write a branch with {id} in it, and {branch} where the name of the branch that was pushed to belongs, as in " + defaultProposals
	stored, err := ProposalRef(s, branchRefs+"x", "x")
	if err != nil || strings.ContainsAny(strings.TrimPrefix(stored, branchRefs), "{}") {
		return "", fault.New(fault.Invalid, "%.80q cannot name the branches of proposals", s).WithHint("%s", hint)
	}
	return s, nil
}

// gitRepository reads one entry of repositories.
func (r *reader) gitRepository(n *yaml.Node, path string, law *gitLaw, nodes *gitNodes) {
	e := gitEntry{line: n.Line}
	profile := ""
	fit := r.entry(n, path, "entry", []field{
		{"upstream", func(n *yaml.Node, path string) { e.upstream, _ = choice(r, n, path, checkGitName) }},
		{"repository", func(n *yaml.Node, path string) { e.exact, _ = choice(r, n, path, parseRepository) }},
		{"matching", func(n *yaml.Node, path string) {
			s, ok := r.text(n, path)
			if !ok {
				return
			}
			e.expression = s
			if err := e.compile(); err != nil || s == "" || len(s) > maxExpression {
				r.add(n, path, "write one that matches whole paths, as in acme/[a-z0-9-]+", "%.200q is no regular expression (RE2) of 1 to %d bytes", s, maxExpression)
			}
		}},
		{"profile", func(n *yaml.Node, path string) { profile, _ = choice(r, n, path, checkGitName) }},
	}, map[string]string{"upstream": "NAME, of one of git.upstreams", "profile": "read, or the name of one of git.profiles"})
	switch {
	case !fit:
		return
	case e.exact == "" && e.expression == "":
		r.add(n, path, "add repository: OWNER/NAME, or matching: EXPRESSION", "the entry names no repository")
		return
	case e.exact != "" && e.expression != "":
		r.add(n, path, "make two entries of it", "the entry has both repository and matching")
		return
	}
	for i := range law.repositories {
		o := &law.repositories[i]
		if o.upstream == e.upstream && o.expression == e.expression && strings.EqualFold(o.exact, e.exact) {
			r.add(n, path, "remove one of the two", "the entry in line %d is about the same", o.line)
			return
		}
	}
	law.repositories = append(law.repositories, e)
	nodes.profiles, nodes.at, nodes.path = append(nodes.profiles, profile), append(nodes.at, n), append(nodes.path, path)
}

func parseRepository(s string) (string, error) {
	if err := checkRepository(s); err != nil {
		return "", fault.New(fault.Invalid, "%v", err).WithHint("write the path below the upstream without slashes at its ends and without .git, as in acme/site")
	}
	return s, nil
}

// gitTogether joins entries with upstreams and profiles.
func (r *reader) gitTogether(law *gitLaw, nodes *gitNodes) {
	read := readProfile()
	var names, upstreams []string
	for _, g := range law.profiles {
		names = append(names, g.name)
	}
	for _, u := range law.upstreams {
		upstreams = append(upstreams, u.Name)
	}
	for i := range law.repositories {
		e, n, path := &law.repositories[i], nodes.at[i], nodes.path[i]
		at := slices.IndexFunc(law.profiles, func(g *gitProfile) bool { return g.name == nodes.profiles[i] })
		switch {
		case nodes.profiles[i] == read.name:
			e.profile = read
		case at < 0:
			r.add(n, path+".profile", oneOf(nodes.profiles[i], append([]string{read.name}, names...)), "there is no profile %q", nodes.profiles[i])
			continue
		default:
			e.profile = law.profiles[at]
		}
		at = slices.Index(upstreams, e.upstream)
		if at < 0 {
			r.add(n, path+".upstream", oneOf(e.upstream, upstreams), "there is no upstream %q", e.upstream)
			continue
		}
		if !slices.ContainsFunc(e.profile.rules, func(rule gitRule) bool { return rule.allow[GitPropose] }) {
			continue
		}
		switch u := &law.upstreams[at]; {
		case u.Type == PlainGit:
			r.add(n, path+".profile", "say the upstream's type: "+strings.Join(forgeNames()[1:], ", "), "the profile %q proposes pull requests, and the upstream %q, of type plain, has none", e.profile.name, u.Name)
		case u.API.Credential == "":
			r.add(n, path+".profile", fmt.Sprintf("add api: {credential: NAME} to the upstream %s", u.Name), "the profile %q proposes pull requests, and no credential is there to open them with", e.profile.name)
		}
	}
}

func oneOf(s string, names []string) string {
	if len(names) == 0 {
		return "add it"
	}
	remedy := "use one of: " + strings.Join(names, ", ")
	if near := nearest(s, names); near != "" {
		remedy = fmt.Sprintf("did you mean %s? %s", near, remedy)
	}
	return remedy
}
