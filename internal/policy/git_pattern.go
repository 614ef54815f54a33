package policy

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/pathname"
)

const (
	branchRefs = "refs/heads/"
	tagRefs    = "refs/tags/"
)

// maxRef bounds the name of a ref. Git's files of loose refs hold names of up to 255 bytes a segment.
const maxRef = 1000

// likeness is how far a name is one that a pattern means.
type likeness uint8

const (
	unlike      likeness = iota
	likeButCase          // the same to file systems that ignore letter case: such a match closes, and opens nothing
	alike
)

// pattern names paths of segments: * stands for any part of one segment, a segment ** for any number of segments, at the end for at least one.
type pattern struct {
	text             string
	segments, folded []string
}

func newPattern(text string) pattern {
	p := pattern{text: text, segments: strings.Split(text, "/")}
	if last := len(p.segments) - 1; p.segments[last] == "**" {
		p.segments = append(p.segments[:last:last], "*", "**")
	}
	for _, s := range p.segments {
		p.folded = append(p.folded, pathname.FoldSegment(s))
	}
	return p
}

// likeness compares a name, which comes split and in both spellings.
func (p *pattern) likeness(segments, folded []string) likeness {
	switch {
	case matchSegments(p.segments, segments):
		return alike
	case matchSegments(p.folded, folded):
		return likeButCase
	}
	return unlike
}

// matchSegments goes back to the last ** only, which is enough: what an earlier one could take up, the last one can. So the work is bounded by the
// product of the two lengths.
func matchSegments(pattern, name []string) bool {
	p, n, star, from := 0, 0, -1, 0
	for n < len(name) {
		switch {
		case p < len(pattern) && pattern[p] == "**":
			star, from = p, n
			p++
		case p < len(pattern) && matchSegment(pattern[p], name[n]):
			p++
			n++
		case star >= 0:
			from++
			p, n = star+1, from
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == "**" {
		p++
	}
	return p == len(pattern)
}

// matchSegment is matchSegments for the bytes of one segment.
func matchSegment(pattern, name string) bool {
	if !strings.Contains(pattern, "*") {
		return pattern == name
	}
	p, n, star, from := 0, 0, -1, 0
	for n < len(name) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, from = p, n
			p++
		case p < len(pattern) && pattern[p] == name[n]:
			p++
			n++
		case star >= 0:
			from++
			p, n = star+1, from
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// checkRef accepts whole names of refs by the rules of git check-ref-format, of at least two segments below refs/ as receive-pack creates them,
// and in UTF-8. The error is one plain sentence.
func checkRef(name string) error {
	below, ok := strings.CutPrefix(name, "refs/")
	if !ok || !strings.Contains(below, "/") {
		return fmt.Errorf("%s is no ref that can be pushed", showName(name))
	}
	bad := len(name) > maxRef || !utf8.ValidString(name) || strings.Contains(name, "..") || strings.Contains(name, "@{") || strings.HasSuffix(name, ".") ||
		strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune(`~^:?*[\`, r) })
	for segment := range strings.SplitSeq(below, "/") {
		bad = bad || segment == "" || segment[0] == '.' || strings.HasSuffix(segment, ".lock")
	}
	if bad {
		return fmt.Errorf("%s is no name that a ref can have", showName(name))
	}
	return nil
}

// checkRefPattern reads a pattern where a person writes it, below a prefix: refs/heads/, refs/tags/, or "" for whole names of other refs.
func checkRefPattern(prefix, text string) (pattern, error) {
	whole := prefix + text
	hint := "write segments with slashes between them; * stands for part of one, ** for any number of them"
	for segment := range strings.SplitSeq(text, "/") {
		if strings.Contains(segment, "**") && segment != "**" {
			return pattern{}, fault.New(fault.Invalid, "pattern %.80q has ** beside other characters", text).WithHint("%s", hint)
		}
	}
	switch {
	case prefix != "" && strings.HasPrefix(text, "refs/"):
		return pattern{}, fault.New(fault.Invalid, "pattern %.80q is a whole ref", text).WithHint("leave %s out, or list it under refs", prefix)
	case prefix == "" && !strings.HasPrefix(text, "refs/"):
		return pattern{}, fault.New(fault.Invalid, "%.80q is no whole ref", text).WithHint("write it as in refs/notes/*, or list it under branches or tags")
	}
	if prefix == "" {
		space := strings.Split(text, "/")[1]
		if strings.Contains(space, "*") {
			return pattern{}, fault.New(fault.Invalid, "pattern %.80q is about every kind of ref", text).WithHint("name the kind, as in refs/notes/*")
		}
		for name, key := range map[string]string{"heads": "branches", "tags": "tags"} {
			if pathname.FoldSegment(space) == name {
				return pattern{}, fault.New(fault.Invalid, "refs below refs/%s have a key of their own", name).WithHint("list them under %s", key)
			}
		}
	}
	if checkRef(strings.ReplaceAll(whole, "*", "x")) != nil {
		return pattern{}, fault.New(fault.Invalid, "no ref can match pattern %.80q", text).WithHint("%s", hint)
	}
	return newPattern(whole), nil
}

// showName prints what a stranger named: as it is where it is short and plain, else quoted and cut, so that nothing in it can break a line.
func showName(s string) string {
	plain := s != "" && len(s) <= 200 && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsGraphic(r) || unicode.IsSpace(r) || r == '"' })
	if plain {
		return s
	}
	return fmt.Sprintf("%.100q", s)
}

// showRef prints a ref as people call it.
func showRef(name string) string {
	if branch, ok := strings.CutPrefix(name, branchRefs); ok {
		return showName(branch)
	}
	if tag, ok := strings.CutPrefix(name, tagRefs); ok {
		return "tag " + showName(tag)
	}
	return showName(name)
}

// protection is a set of protected paths.
type protection struct {
	texts []string
	// By where they can match, so that judging a path takes about one look-up a segment.
	first    map[string][]pathPattern // from the root, by a first segment without *
	wild     []pathPattern            // from the root
	anywhere map[string]bool          // at any depth, one segment without *
	deep     map[byte][]pathPattern   // at any depth, by the first byte, that of * for any
}

// pathPattern is the segments of one pattern, folded.
type pathPattern []string

func newProtection(texts []string) *protection {
	p := &protection{texts: texts, first: map[string][]pathPattern{}, anywhere: map[string]bool{}, deep: map[byte][]pathPattern{}}
	for _, text := range texts {
		below, deep := strings.CutPrefix(strings.TrimSuffix(text, "/"), "**/")
		segments := pathPattern(pathname.Fold(below))
		star := strings.Contains(segments[0], "*")
		switch {
		case deep && len(segments) == 1 && !star:
			p.anywhere[segments[0]] = true
		case deep:
			start := (segments[0] + "*")[0]
			p.deep[start] = append(p.deep[start], segments)
		case star:
			p.wild = append(p.wild, segments)
		default:
			p.first[segments[0]] = append(p.first[segments[0]], segments)
		}
	}
	return p
}

// foldPath also takes a backslash for a slash, as file systems do that ignore letter case.
func foldPath(path string) []string { return pathname.Fold(strings.ReplaceAll(path, `\`, "/")) }

// protects reports whether what stands at a path is protected: itself named, below what is named, or in the place of a folder that leads there.
func (p *protection) protects(path string) bool {
	name := foldPath(path)
	related := func(pattern pathPattern) bool { return pattern.leads(name) }
	if slices.ContainsFunc(p.first[name[0]], related) || slices.ContainsFunc(p.wild, related) {
		return true
	}
	for i := range name {
		below := func(pattern pathPattern) bool { return len(pattern) <= len(name)-i && pattern.leads(name[i:]) }
		if p.anywhere[name[i]] || slices.ContainsFunc(p.deep[(name[i] + "*")[0]], below) || slices.ContainsFunc(p.deep['*'], below) {
			return true
		}
	}
	return false
}

// protectsBelow reports whether some path below a folder may be protected.
func (p *protection) protectsBelow(dir string) bool {
	if dir == "" || len(p.anywhere)+len(p.deep) > 0 {
		return len(p.texts) > 0
	}
	name := foldPath(dir)
	related := func(pattern pathPattern) bool { return pattern.leads(name) }
	return slices.ContainsFunc(p.first[name[0]], related) || slices.ContainsFunc(p.wild, related)
}

// leads reports whether one of pattern and path begins with the other.
func (p pathPattern) leads(name []string) bool {
	for i := range min(len(p), len(name)) {
		if !matchSegment(p[i], name[i]) {
			return false
		}
	}
	return true
}

// checkProtected reads a protected path where a person writes it.
func checkProtected(text string) (string, error) {
	path := strings.TrimSuffix(strings.TrimPrefix(text, "**/"), "/")
	hint := "write a path from the repository's root, such as AGENTS.md or .github/workflows/, or **/NAME for any depth"
	if err := checkInside(path); err != nil {
		return "", fault.New(fault.Invalid, "%.80q is no path inside a repository", text).WithHint("%s", hint)
	}
	for segment := range strings.SplitSeq(path, "/") {
		if strings.Contains(segment, "**") || strings.Trim(segment, "*") == "" || strings.Contains(segment, `\`) {
			return "", fault.New(fault.Invalid, "segment %.80q of %.80q is too wide, or no part of a path", segment, text).WithHint("%s", hint)
		}
	}
	return text, nil
}
