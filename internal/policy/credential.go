package policy

import (
	"fmt"
	"net/textproto"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/netname"
)

const maxCredentials = 64

// Credential lends a stored credential to requests inside verified TLS, and to nothing else. The zero value is lent to nothing.
type Credential struct {
	// Use is the name under which the credential is stored.
	Use   string
	Hosts []netname.Pattern
	Ports []uint16
	// Methods and Paths narrow it to some requests. Empty is all.
	Methods []string
	Paths   []netname.PathPattern
	// Header is the one header in which it is sent, in canonical case.
	Header string
	// Env is the variable in which the placeholder stands inside. Without one the credential is added to every request that it is lent to.
	Env string
	// Line is where it stands in its file.
	Line int
}

func (c Credential) clone() Credential {
	c.Hosts, c.Ports, c.Methods, c.Paths = slices.Clone(c.Hosts), slices.Clone(c.Ports), slices.Clone(c.Methods), slices.Clone(c.Paths)
	return c
}

// bound reports whether the credential is for some request to a host and port.
func (c *Credential) bound(h netname.Host, port uint16) bool {
	return h != "" && slices.Contains(c.Ports, port) && slices.ContainsFunc(c.Hosts, func(p netname.Pattern) bool { return p.Match(h) })
}

// lends reports whether the credential is for this very request.
func (c *Credential) lends(x *Crossing) bool {
	return x.Protocol == HTTPS && x.Method != "" && c.bound(x.Host, x.Port) && (len(c.Methods) == 0 || slices.Contains(c.Methods, x.Method)) &&
		(len(c.Paths) == 0 || namesPath(c.Paths, x.Path, false))
}

// Credentials returns every credential that the policy lends, in the order of the file.
func (p *Policy) Credentials() []Credential {
	return p.credentials(func(*Credential) bool { return true })
}

// Bound returns the credentials for some request to a host and port. Requests there can carry no other credential.
func (p *Policy) Bound(h netname.Host, port uint16) []Credential {
	return p.credentials(func(c *Credential) bool { return c.bound(h, port) })
}

// Lends returns the credentials for one request, at most one for each header.
func (p *Policy) Lends(x Crossing) []Credential {
	return p.credentials(func(c *Credential) bool { return c.lends(&x) })
}

func (p *Policy) credentials(fit func(*Credential) bool) []Credential {
	if p == nil {
		return nil
	}
	var all []Credential
	for i := range p.layers {
		for j := range p.layers[i].credentials {
			if c := &p.layers[i].credentials[j]; fit(c) {
				all = append(all, c.clone())
			}
		}
	}
	return all
}

// credential reads one entry of the section.
func (r *reader) credential(n *yaml.Node, path string) {
	c := Credential{Line: n.Line, Header: "Authorization"}
	var hosts, ports Rule // read as those of rules are
	before := len(r.problems)
	stated := map[string]bool{}
	note := func(key string, read func(*yaml.Node, string)) field {
		return field{key, func(n *yaml.Node, path string) { stated[key] = true; read(n, path) }}
	}
	r.mapping(n, path, []field{
		note("use", func(n *yaml.Node, path string) { c.Use, _ = choice(r, n, path, checkCredentialName) }),
		note("hosts", func(n *yaml.Node, path string) {
			r.full(n, path, maxHosts, func(n *yaml.Node, path string) { r.host(n, path, &hosts) })
		}),
		note("ports", func(n *yaml.Node, path string) {
			r.full(n, path, maxPorts, func(n *yaml.Node, path string) { r.port(n, path, &ports) })
		}),
		note("methods", func(n *yaml.Node, path string) { r.methods(n, path, &c.Methods) }),
		note("paths", func(n *yaml.Node, path string) { r.paths(n, path, &c.Paths) }),
		note("header", func(n *yaml.Node, path string) { c.Header, _ = choice(r, n, path, checkCredentialHeader) }),
		note("env", func(n *yaml.Node, path string) { c.Env, _ = choice(r, n, path, checkCredentialEnv) }),
	})
	if len(r.problems) > before {
		return
	}
	for _, key := range []string{"use", "hosts"} {
		if !stated[key] {
			r.add(n, path, "add "+key+": "+map[string]string{"use": "NAME, as cofferdam credential list shows it", "hosts": "[HOST]"}[key], "the credential has no %s", key)
			return
		}
	}
	c.Hosts, c.Ports = hosts.Hosts, ports.Ports
	if !stated["ports"] {
		c.Ports = []uint16{443}
	}
	if err := clash(r.policy.layers[0].credentials, &c); err != nil {
		r.addError(n, path, err)
		return
	}
	r.policy.marks[path] = mark{n.Line, n.Column}
	r.policy.layers[0].credentials = append(r.policy.layers[0].credentials, c)
}

// clash refuses two credentials of which it could not be said which one a request gets, or a variable holds.
func clash(all []Credential, c *Credential) error {
	for i := range all {
		o := &all[i]
		switch {
		case o.Env != "" && o.Env == c.Env && o.Use != c.Use:
			return fault.New(fault.Invalid, "credentials %q and %q have the same variable %s", o.Use, c.Use, c.Env).WithHint("give each its own")
		case o.Header == c.Header && slices.ContainsFunc(c.Ports, func(p uint16) bool { return slices.Contains(o.Ports, p) }) && overlap(o.Hosts, c.Hosts) &&
			common(o.Methods, c.Methods, func(a, b string) bool { return a == b }) &&
			common(o.Paths, c.Paths, func(a, b netname.PathPattern) bool { return a.Covers(b) || b.Covers(a) }):
			return fault.New(fault.Invalid, "credentials %q and %q are both for some requests, in the same header %s", o.Use, c.Use, c.Header).
				WithHint("give them hosts, ports, methods or paths that have nothing in common")
		}
	}
	return nil
}

// common reports whether two lists, of which an empty one means everything, name something in common.
func common[T any](a, b []T, both func(T, T) bool) bool {
	return len(a) == 0 || len(b) == 0 || slices.ContainsFunc(a, func(x T) bool { return slices.ContainsFunc(b, func(y T) bool { return both(x, y) }) })
}

func checkCredentialName(s string) (string, error) {
	fit := s != "" && len(s) <= maxName && strings.IndexByte("._-", s[0]) < 0 && !strings.ContainsFunc(s, func(c rune) bool {
		return !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || strings.ContainsRune("._-", c))
	})
	if !fit {
		return "", fault.New(fault.Invalid, "%.80q cannot be a credential's name", s).
			WithHint("write 1 to 63 lower-case letters, digits, dots, hyphens and underscores, as cofferdam credential list shows it")
	}
	return s, nil
}

// checkCredentialHeader refuses headers that mean something to the gateway itself.
func checkCredentialHeader(s string) (string, error) {
	for i := range len(s) {
		if c := s[i]; !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return "", fault.New(fault.Invalid, "%.80q is no header", s).WithHint("write a header's name, such as Authorization or X-Api-Key")
		}
	}
	if s == "" || len(s) > 128 {
		return "", fault.New(fault.Invalid, "the header's name has %d bytes", len(s)).WithHint("write a header's name, such as Authorization or X-Api-Key")
	}
	canonical := textproto.CanonicalMIMEHeaderKey(s)
	for _, own := range []string{"Host", "Content-Length", "Content-Encoding", "Transfer-Encoding", "Connection", "Upgrade", "Te", "Trailer", "Keep-Alive",
		"Proxy-Authorization", "Proxy-Connection", "Accept-Encoding", "Range", "If-Range", "Expect", "Set-Cookie"} {
		if canonical == own {
			return "", fault.New(fault.Invalid, "header %s is the gateway's own", canonical).WithHint("write the header in which the host expects a credential")
		}
	}
	return canonical, nil
}

func checkCredentialEnv(s string) (string, error) {
	if err := checkVariableName(s); err != nil {
		return "", err
	}
	for _, prefix := range []string{"LD_", "PATH", "HOME", "SHELL"} {
		if s == prefix || strings.HasSuffix(prefix, "_") && strings.HasPrefix(s, prefix) {
			return "", fault.New(fault.Invalid, "variable %s means something else to programs", s).WithHint("name the variable in which the program expects a token")
		}
	}
	return s, nil
}

// check says what makes a credential that was not read from text unfit.
func (c *Credential) check() error {
	if _, err := checkCredentialName(c.Use); err != nil {
		return err
	}
	header, err := checkCredentialHeader(c.Header)
	switch {
	case err != nil:
		return err
	case header != c.Header:
		return fmt.Errorf("credential %q: header %s is not in canonical case, %s", c.Use, c.Header, header)
	case len(c.Hosts) == 0 || len(c.Ports) == 0:
		return fmt.Errorf("credential %q: no hosts or ports", c.Use)
	}
	for _, m := range c.Methods {
		if _, err := checkMethod(m); err != nil {
			return err
		}
	}
	if c.Env != "" {
		_, err = checkCredentialEnv(c.Env)
	}
	return err
}

// credentialsTogether judges the section with the rest of the file.
func (r *reader) credentialsTogether() {
	for i := range r.policy.layers[0].credentials {
		c, path := &r.policy.layers[0].credentials[i], fmt.Sprintf("credentials[%d]", i)
		at := r.policy.marks[path]
		if _, set := r.policy.environment[c.Env]; set {
			r.add(&yaml.Node{Line: at.line, Column: at.column}, path+".env", "remove it from environment", "environment sets %s as well", c.Env)
		}
	}
}
