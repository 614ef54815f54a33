package wire

import (
	"slices"
	"strings"
)

// Capabilities is the list that goes with the first ref or command: NAME or NAME=VALUE.
type Capabilities []string

// parseCapabilities splits a list, which may begin and end with spaces.
func parseCapabilities(text string) (Capabilities, error) {
	all := strings.Fields(text)
	for _, one := range all {
		if strings.ContainsFunc(one, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			return nil, ErrSyntax
		}
	}
	return all, nil
}

// Has reports whether a capability is listed by its name, with a value or without.
func (c Capabilities) Has(name string) bool {
	return slices.ContainsFunc(c, func(one string) bool { return one == name || strings.HasPrefix(one, name+"=") })
}

// Value returns the first value of a capability, or "".
func (c Capabilities) Value(name string) string {
	for _, one := range c {
		if value, ok := strings.CutPrefix(one, name+"="); ok {
			return value
		}
	}
	return ""
}

// Format returns the hash function that object-format= says; SHA1 is what its absence means.
func (c Capabilities) Format() (Format, error) {
	if !c.Has("object-format") {
		return SHA1, nil
	}
	return ParseFormat(c.Value("object-format"))
}

// String returns the list as it is sent.
func (c Capabilities) String() string { return strings.Join(c, " ") }

// pushCapabilities are what passes between a client that pushes and its upstream. Others are left out: push-cert would bind the commands to
// a signature that nobody here checks, and what is unknown could change what a push means.
func pushCapabilities(name string) bool {
	switch name {
	case "report-status", "report-status-v2", "delete-refs", "side-band-64k", "quiet", "atomic", "ofs-delta", "object-format", "push-options", "agent":
		return true
	}
	return false
}

// ForPush returns those capabilities that a push may use here.
func (c Capabilities) ForPush() Capabilities {
	return slices.DeleteFunc(slices.Clone(c), func(one string) bool {
		name, _, _ := strings.Cut(one, "=")
		return !pushCapabilities(name)
	})
}

// hasExactly tells report-status from report-status-v2.
func (c Capabilities) hasExactly(capability string) bool { return slices.Contains(c, capability) }
