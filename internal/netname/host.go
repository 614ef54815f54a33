// Package netname (WORDS) holds the names and addresses of the network in canonical form: host names, host patterns, ports, and the tables of special-purpose addresses. Policy, DNS and gateway share it, so one spelling means one thing everywhere.
package netname

import (
	"fmt"
	"strings"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Host is a host name in canonical form: lower-case ASCII (punycode for other scripts), no trailing dot, 1 to 253 bytes, labels of 1 to 63
// letters, digits, hyphens and underscores, no hyphen at either end of a label, and a last label that is no number, so that no resolver on the way
// can take it for an address. Underscores are in because service names (_http._tcp.example.com) and object stores use them.
// Names of a single label (localhost, mirror) are hosts. The zero value is no host and matches nothing.
// Only ParseHost and NormaliseHost make one.
type Host string

const (
	maxHost  = 253 // RFC 1035, section 2.3.4, less the root label
	maxLabel = 63  // RFC 1035, section 2.3.4
)

// String returns the name.
func (h Host) String() string { return string(h) }

// ParseHost reads a host name where a person writes it: policy files and flags. It accepts canonical spelling only;
// the error says what to write instead.
func ParseHost(s string) (Host, error) {
	if err := check(s); err == nil {
		return Host(s), nil
	} else if better := suggest(s); better != "" {
		return "", fault.New(fault.Invalid, "host %s is not in canonical form", quote(s)).WithHint("write %s", better)
	} else {
		hint := fault.HintOf(err)
		if hint == "" {
			hint = "write a name such as registry.example.com"
		}
		return "", fault.New(fault.Invalid, "host %s: %v", quote(s), err).WithHint("%s", hint)
	}
}

// NormaliseHost reads a host name as it comes off the wire: DNS questions, TLS server names, Host headers. It lower-cases ASCII letters and takes
// off one trailing dot, and refuses everything else that is not canonical: a byte that two programs could read in two ways must not pass.
func NormaliseHost(s string) (Host, error) {
	if len(s) > maxHost+1 {
		return "", fmt.Errorf("host name of %d bytes is longer than %d", len(s), maxHost)
	}
	s = lower(strings.TrimSuffix(s, "."))
	if err := check(s); err != nil {
		return "", fmt.Errorf("host %s: %w", quote(s), err)
	}
	return Host(s), nil
}

// check says what keeps s from being canonical.
func check(s string) error {
	switch {
	case s == "":
		return fmt.Errorf("the name is empty")
	case len(s) > maxHost:
		return fmt.Errorf("%d bytes are longer than %d", len(s), maxHost)
	}
	last := s
	for rest, more := s, true; more; {
		last, rest, more = strings.Cut(rest, ".")
		if err := checkLabel(last); err != nil {
			return err
		}
	}
	if numeric(last) {
		return fault.New(fault.Invalid, "a name that ends in a number is an address").WithHint("addresses are named under networks, not hosts")
	}
	return nil
}

func checkLabel(label string) error {
	switch {
	case label == "":
		return fmt.Errorf("a label is empty: two dots in a row, or a dot at an end")
	case len(label) > maxLabel:
		return fmt.Errorf("a label of %d bytes is longer than %d", len(label), maxLabel)
	case label[0] == '-' || label[len(label)-1] == '-':
		return fmt.Errorf("label %q begins or ends with a hyphen", label)
	}
	for i := range len(label) {
		if c := label[i]; !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return fmt.Errorf("character %q cannot occur in a host name", rune(c))
		}
	}
	return nil
}

// numeric reports whether a last label would make WHATWG URL parsers and inet_aton read the name as an IPv4 address: 1, 127, 0x7f, 0x.
func numeric(label string) bool {
	if hex, ok := strings.CutPrefix(label, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(label, "0123456789") == ""
}

// lower lower-cases ASCII only: strings.ToLower would turn the Kelvin sign into k.
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + ('a' - 'A')
		}
		return r
	}, s)
}

// suggest returns the canonical spelling that a person most likely means, or "".
func suggest(s string) string {
	s = strings.TrimSpace(s)
	if _, rest, ok := strings.Cut(s, "://"); ok {
		s, _, _ = strings.Cut(rest, "/")
	}
	if i := strings.LastIndexByte(s, ':'); i >= 0 && s[i+1:] != "" && strings.Trim(s[i+1:], "0123456789") == "" {
		s = s[:i]
	}
	s = toASCII(strings.TrimSuffix(s, "."))
	if check(s) != nil {
		return ""
	}
	return s
}

// quote prints untrusted text bounded and unmistakable.
func quote(s string) string { return fmt.Sprintf("%.80q", s) }
