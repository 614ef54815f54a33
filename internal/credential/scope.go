package credential

import (
	"slices"
	"strconv"
	"strings"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/netname"
)

// Scope says where a credential may be used: every member must agree with a request. The zero value agrees with none.
type Scope struct {
	Hosts   []string `json:"hosts"`             // exact, or *.example.com
	Ports   []uint16 `json:"ports"`             // 443 if none was named
	Paths   []string `json:"paths,omitempty"`   // netname.PathPattern: exact, or all below one that ends in a slash; empty: all
	Methods []string `json:"methods,omitempty"` // empty: all
}

// Channel says how a request travels. The zero value is in plain, over which nothing is lent.
type Channel uint8

// The channels.
const (
	Plain       Channel = iota // no TLS, or a certificate that was not verified
	VerifiedTLS                // TLS to a server whose certificate was verified for the request's host
)

// Request is what a credential is wanted for.
type Request struct {
	Channel Channel
	Host    netname.Host // the name that was dialled, and named by TLS and by the request
	Port    uint16
	Method  string
	Path    netname.Path // as it is sent; empty if it has no canonical form, and then conditions about paths refuse it
}

// maxListed bounds every list of a credential.
const maxListed = 50

// Words says in one line what a credential is for.
func (s Scope) Words() string {
	text := strings.Join(s.Hosts, ",")
	if !slices.Equal(s.Ports, []uint16{443}) {
		var ports []string
		for _, p := range s.Ports {
			ports = append(ports, strconv.Itoa(int(p)))
		}
		text += ":" + strings.Join(ports, ",")
	}
	for _, list := range [][]string{s.Paths, s.Methods} {
		if len(list) > 0 {
			text += " " + strings.Join(list, ",")
		}
	}
	return text
}

// withDefaults fills in the port.
func (s Scope) withDefaults() Scope {
	if len(s.Ports) == 0 {
		s.Ports = []uint16{443}
	}
	return s
}

// check refuses what is not canonical.
func (s Scope) check() error {
	if len(s.Hosts) == 0 {
		return fault.New(fault.Invalid, "a credential needs at least one host that it may be sent to").WithHint("write --host api.example.com")
	}
	for _, n := range []int{len(s.Hosts), len(s.Ports), len(s.Paths), len(s.Methods)} {
		if n > maxListed {
			return fault.New(fault.TooMany, "a scope of %d entries, more than %d", n, maxListed)
		}
	}
	for _, h := range s.Hosts {
		if _, err := netname.ParsePattern(h); err != nil {
			return err
		}
	}
	if slices.Contains(s.Ports, 0) {
		return fault.New(fault.Invalid, "0 is no port")
	}
	for _, p := range s.Paths {
		if _, err := netname.ParsePathPattern(p); err != nil {
			return err
		}
	}
	for _, m := range s.Methods {
		if m == "" || len(m) > 32 || strings.Trim(m, "ABCDEFGHIJKLMNOPQRSTUVWXYZ-") != "" {
			return fault.New(fault.Invalid, "%.40q is no method", m).WithHint("write it in capital letters, such as GET")
		}
	}
	return nil
}

// Allow returns nothing if the credential may be used for a request, else a sentence that says what is outside.
func (s Scope) Allow(r Request) error {
	switch {
	case r.Channel != VerifiedTLS:
		return fault.New(fault.Denied, "a credential is lent over verified TLS only")
	case !s.host(netname.Exact(r.Host)):
		return fault.New(fault.Denied, "the credential is not for the host %s", r.Host)
	case !slices.Contains(s.Ports, r.Port):
		return fault.New(fault.Denied, "the credential is not for port %d of %s", r.Port, r.Host)
	case len(s.Methods) > 0 && !slices.Contains(s.Methods, r.Method):
		return fault.New(fault.Denied, "the credential is not for the method %.20q", r.Method)
	case r.Method == "TRACE" || r.Method == "CONNECT" || r.Method == "":
		return fault.New(fault.Denied, "no credential is lent for the method %.20q", r.Method) // TRACE's answer is the request
	case len(s.Paths) == 0:
		return nil
	}
	if !s.path(r.Path) {
		return fault.New(fault.Denied, "the credential is not for this path")
	}
	return nil
}

// Covers returns nothing if every request that narrower allows is allowed by s too, else a sentence that says what is wider. Members that narrower leaves empty
// do not widen: there s decides.
func (s Scope) Covers(narrower Scope) error {
	for _, text := range narrower.Hosts {
		p, err := netname.ParsePattern(text)
		if err != nil {
			return err
		}
		if !s.host(p) {
			return fault.New(fault.Denied, "the credential is not for the host %s", text)
		}
	}
	for _, p := range narrower.Ports {
		if !slices.Contains(s.Ports, p) {
			return fault.New(fault.Denied, "the credential is not for port %d", p)
		}
	}
	for _, m := range narrower.Methods {
		if len(s.Methods) > 0 && !slices.Contains(s.Methods, m) {
			return fault.New(fault.Denied, "the credential is not for the method %.20q", m)
		}
	}
	for _, p := range narrower.Paths {
		if len(s.Paths) > 0 && !slices.ContainsFunc(s.Paths, func(wide string) bool { return netname.PathPattern(wide).Covers(netname.PathPattern(p)) }) {
			return fault.New(fault.Denied, "the credential is not for paths below %.100q", p)
		}
	}
	return nil
}

func (s Scope) host(want netname.Pattern) bool {
	return slices.ContainsFunc(s.Hosts, func(text string) bool {
		p, err := netname.ParsePattern(text)
		return err == nil && p.Covers(want)
	})
}

// path wants every reading of a path named: a server may take either.
func (s Scope) path(p netname.Path) bool {
	for _, reading := range p.Readings() {
		if !slices.ContainsFunc(s.Paths, func(text string) bool { return netname.PathPattern(text).Match(reading) }) {
			return false
		}
	}
	return p != ""
}
