package control

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// maxName bounds names, as DNS bounds labels.
const maxName = 63

// ParseName reads the name of an agent, a policy, a profile, an upstream or a workspace: 1 to 63 lower-case letters, digits, hyphens and dots,
// beginning with a letter or digit. There is one way to write each name.
func ParseName(s string) (string, error) {
	fit := s != "" && len(s) <= maxName && s[0] != '-' && s[0] != '.'
	for i := range len(s) {
		c := s[i]
		fit = fit && ('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '.')
	}
	if !fit {
		return "", fault.New(fault.Invalid, "this cannot be a name").
			WithHint("write 1 to %d lower-case letters, digits, hyphens and dots, beginning with a letter or digit, as in build-agent", maxName)
	}
	return s, nil
}

// parseGitName reads a name that also stands in the section git of policies, where dots have no place.
func parseGitName(s string) (string, error) {
	name, err := ParseName(s)
	if err != nil || strings.Contains(name, ".") {
		return "", fault.New(fault.Invalid, "this cannot be a name here").WithHint("write 1 to %d lower-case letters, digits and hyphens, beginning with a letter or digit", maxName)
	}
	return name, nil
}

// checkText bounds what people write for people. Line breaks and tabs are in order where lines is set.
func checkText(what, s string, most int, lines bool) error {
	bad := func(r rune) bool { return !unicode.IsPrint(r) && !(lines && (r == '\n' || r == '\t' || r == '\r')) }
	switch {
	case len(s) > most:
		return fault.New(fault.Invalid, "the %s has %d bytes, more than %d", what, len(s), most).WithHint("shorten it")
	case !utf8.ValidString(s) || strings.ContainsFunc(s, bad):
		return fault.New(fault.Invalid, "the %s has characters that cannot be shown", what).WithHint("leave them out")
	}
	return nil
}
