package workspace

import (
	"path"
	"slices"
	"strings"

	"github.com/cofferdam/cofferdam/internal/pathname"
)

// pattern is a parsed pattern of the rules.
type pattern struct {
	parts []part
	below bool // ends in **
}

type part struct {
	text string // in the form of foldPart
	glob bool
}

func (p part) matches(folded string) bool {
	if !p.glob {
		return p.text == folded
	}
	ok, _ := path.Match(p.text, folded) // a bad pattern matches nothing; a test checks the table
	return ok
}

func parsePattern(text string) pattern {
	text, below := strings.CutSuffix(text, "/**")
	p := pattern{below: below}
	for text := range strings.SplitSeq(text, "/") {
		p.parts = append(p.parts, part{pathname.FoldCase(text), strings.ContainsAny(text, "*?[\\")})
	}
	return p
}

// matches says whether the pattern matches the end of the path or, if it ends in **, any directory of it.
func (p pattern) matches(folded []string) bool {
	last := len(folded) - len(p.parts)
	for at := 0; at <= last; at++ {
		if (p.below || at == last) && p.matchesAt(folded, at, len(p.parts)) {
			return true
		}
	}
	return false
}

// leadsInto says whether the path's end is the beginning of the pattern: a symlink there decides what lies at the pattern's place.
func (p pattern) leadsInto(folded []string) bool {
	for n := 1; n < len(p.parts) && n <= len(folded); n++ {
		if p.matchesAt(folded, len(folded)-n, n) {
			return true
		}
	}
	return false
}

func (p pattern) matchesAt(folded []string, at, n int) bool {
	for i := range n {
		if !p.parts[i].matches(folded[at+i]) {
			return false
		}
	}
	return true
}

// fold splits a path and folds each component.
func fold(n Name) []string {
	parts := pathname.Fold(string(n))
	for i := range parts {
		parts[i] = long(parts[i])
	}
	return parts
}

func foldPart(s string) string { return long(pathname.FoldSegment(s)) }

// long knows the short name that NTFS gives .git, as git's own protectNTFS does.
func long(folded string) string {
	if folded == "git~1" {
		return ".git"
	}
	return folded
}

// matcher is the table, parsed.
type matcher struct {
	rules       []parsedRule
	gitSafe     []pattern
	gitUnsafe   []pattern
	unprotected []Name
}

type parsedRule struct {
	rule
	pattern
}

func newMatcher(unprotected []string) *matcher {
	m := &matcher{}
	for _, r := range rules() {
		m.rules = append(m.rules, parsedRule{r, parsePattern(r.pattern)})
	}
	for _, p := range gitSafe() {
		m.gitSafe = append(m.gitSafe, parsePattern(p))
	}
	for _, p := range gitUnsafe() {
		m.gitUnsafe = append(m.gitUnsafe, parsePattern(p))
	}
	for _, p := range unprotected {
		if p != "" { // the empty name would stand for everything
			m.unprotected = append(m.unprotected, Name(p))
		}
	}
	return m
}

// find returns the rule that a path falls under.
func (m *matcher) find(folded []string) (rule, bool) {
	for _, r := range m.rules {
		if r.matches(folded) && !slices.Contains(r.except, folded[len(folded)-1]) && !(r.root && slices.Contains(folded, "node_modules")) {
			return r.rule, true
		}
	}
	return rule{}, false
}

// findInto returns a rule whose place a symlink at this path would decide.
func (m *matcher) findInto(folded []string) (rule, bool) {
	for _, r := range m.rules {
		if r.leadsInto(folded) {
			return r.rule, true
		}
	}
	return rule{}, false
}

// isGitSafe judges a path inside a .git directory, given from there.
func (m *matcher) isGitSafe(inside []string) bool {
	for _, p := range m.gitUnsafe {
		if p.matchesAll(inside) {
			return false
		}
	}
	for _, p := range m.gitSafe {
		if p.matchesAll(inside) {
			return true
		}
	}
	return false
}

// matchesAll anchors the pattern at the beginning of the path.
func (p pattern) matchesAll(folded []string) bool {
	return (len(folded) == len(p.parts) || p.below && len(folded) > len(p.parts)) && p.matchesAt(folded, 0, len(p.parts))
}

// isUnprotected says that policy does not want a path set apart: byte for byte one that it names, or in one that it names.
func (m *matcher) isUnprotected(p Name) bool {
	return slices.ContainsFunc(m.unprotected, func(named Name) bool { return named.contains(p) })
}
