package netname

import (
	"slices"
	"strings"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Pattern names one host, or with a leading "*." every name below a host: *.example.com matches a.example.com and b.a.example.com,
// and neither example.com nor notexample.com. The zero value matches nothing.
type Pattern struct {
	host     Host // the host, or what follows "*."
	wildcard bool
}

// Exact returns the pattern of one host.
func Exact(h Host) Pattern { return Pattern{host: h} }

// ParsePattern reads a pattern where a person writes it. The error says what to write instead.
func ParsePattern(s string) (Pattern, error) {
	rest, wildcard := strings.CutPrefix(s, "*.")
	switch {
	case s == "*" || s == "*." || s == "**":
		return Pattern{}, fault.New(fault.Invalid, "pattern %s would match every host", quote(s)).
			WithHint("name the hosts, or their domain as *.example.com")
	case strings.HasPrefix(rest, "*."):
		return Pattern{}, fault.New(fault.Invalid, "pattern %s: one leading *. matches any depth already", quote(s)).
			WithHint("write *.%s", strings.TrimLeft(rest, "*."))
	case strings.Contains(rest, "*"):
		return Pattern{}, fault.New(fault.Invalid, "pattern %s: a star can only stand first and alone in its label", quote(s)).
			WithHint("write the domain as *.example.com, which matches any depth")
	}
	host, err := ParseHost(rest)
	if err != nil {
		return Pattern{}, err
	}
	if wildcard && !strings.Contains(rest, ".") {
		return Pattern{}, fault.New(fault.Invalid, "pattern %s covers a whole top-level domain", quote(s)).
			WithHint("name a domain below it, as in *.example.%s", host)
	}
	if wildcard && registry(host) {
		return Pattern{}, fault.New(fault.Invalid, "pattern %s covers names that anyone can register", quote(s)).
			WithHint("name a domain below it, as in *.example.%s", host)
	}
	return Pattern{host: host, wildcard: wildcard}, nil
}

// registry reports whether a host of two labels is a shared registry of a country, such as co.uk or com.au. It is a guard against the slip of the
// pen, not the public suffix list, whose package would draw net/http into every program.
func registry(h Host) bool {
	second, country, _ := strings.Cut(string(h), ".")
	shared := []string{"ac", "co", "com", "edu", "gob", "gov", "mil", "ne", "net", "or", "org"}
	return len(country) == 2 && slices.Contains(shared, second)
}

// Match reports whether the pattern names h.
func (p Pattern) Match(h Host) bool {
	if p.host == "" || h == "" {
		return false
	}
	if !p.wildcard {
		return h == p.host
	}
	below, ok := strings.CutSuffix(string(h), string(p.host))
	return ok && len(below) > 1 && below[len(below)-1] == '.'
}

// Covers reports whether every host that q names is named by p too. A pattern that names nothing is covered by none.
func (p Pattern) Covers(q Pattern) bool {
	if !q.wildcard {
		return p.Match(q.host)
	}
	return p.wildcard && (p.host == q.host || p.Match(q.host))
}

// Wildcard reports whether the pattern begins with "*.".
func (p Pattern) Wildcard() bool { return p.wildcard }

// Base returns the host, for a wildcard what follows "*.".
func (p Pattern) Base() Host { return p.host }

// String writes the pattern as ParsePattern reads it.
func (p Pattern) String() string {
	if p.wildcard {
		return "*." + string(p.host)
	}
	return string(p.host)
}
