package policy

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// The bounds of a policy file. They hold the work of one decision down, and of reading a file that a stranger's repository brings.
const (
	maxFile     = 1 << 20
	maxPieces   = 100_000 // lines and elements, each of which takes the YAML parser a kilobyte
	maxRules    = 1000
	maxHosts    = 1000 // of one rule
	maxPorts    = 64   // of one rule
	maxNetworks = 256
	maxEntries  = 256 // mounts, variables, unprotected paths
	maxText     = 4096
	maxProblems = 100 // mistakes, and warnings, that are told
	maxWords    = 600 // bytes of what is told of one; what a file says is quoted in it
)

// Parse reads a policy file. It is strict: an unknown key, a value that is not in canonical form, or anything else that could be read in two ways
// is a mistake, and all mistakes are reported at once as a *Problems, up to a number beyond which reading stops. file is used in messages only.
// Warnings alone are no error: see Policy.Warnings.
func Parse(file string, data []byte) (*Policy, error) {
	r := &reader{policy: &Policy{file: file, layers: []layer{{}}, environment: map[string]string{}, marks: map[string]mark{}}}
	if root := r.load(data); root != nil {
		r.document(root)
	}
	return r.finish()
}

// reader walks the nodes of one file and collects what is wrong with it.
type reader struct {
	policy   *Policy
	problems []Problem
	mistakes int // how many of the problems are no warnings
	skipped  int // warnings that are not told
}

// enough says whether reading stops: the file of a stranger may hold more mistakes than anybody would read, and each costs time and space.
func (r *reader) enough() bool { return r.mistakes > maxProblems }

func (r *reader) finish() (*Policy, error) {
	more := r.shorten()
	slices.SortStableFunc(r.problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	r.problems = append(r.problems, more...)
	if r.mistakes > 0 {
		return nil, &Problems{File: r.policy.file, List: r.problems}
	}
	r.policy.warnings = r.problems
	return r.policy, nil
}

// shorten leaves the first mistakes, and returns what says that there are more. Those behind the first may only be there since reading stopped.
func (r *reader) shorten() (more []Problem) {
	told := 0
	r.problems = slices.DeleteFunc(r.problems, func(p Problem) bool {
		if !p.Warning {
			told++
		}
		return !p.Warning && told > maxProblems
	})
	if told > maxProblems {
		more = append(more, Problem{Message: fmt.Sprintf("and more: reading stopped after %d mistakes", maxProblems), Remedy: "correct these first"})
	}
	if r.skipped > 0 {
		more = append(more, Problem{Message: fmt.Sprintf("and %d more warnings", r.skipped), Remedy: "see to these first", Warning: true})
	}
	return more
}

// add notes a mistake at a node.
func (r *reader) add(n *yaml.Node, path, remedy, format string, args ...any) {
	r.mistakes++
	r.note(n, path, remedy, fmt.Sprintf(format, args...), false)
}

func (r *reader) note(n *yaml.Node, path, remedy, message string, warning bool) {
	r.problems = append(r.problems, Problem{
		Line: n.Line, Column: n.Column, Path: clip(path), Message: clip(message), Remedy: clip(remedy), Warning: warning,
	})
}

// clip shortens words that quote a file.
func clip(s string) string {
	if len(s) <= maxWords {
		return s
	}
	return strings.ToValidUTF8(s[:maxWords], "") + "…"
}

// addError notes an error of one of the parsers of values, whose hint is the remedy.
func (r *reader) addError(n *yaml.Node, path string, err error) {
	r.add(n, path, cmp.Or(fault.HintOf(err), "see docs/policy.md"), "%v", err)
}

// warn notes what is doubtful but not wrong.
func (r *reader) warn(n *yaml.Node, path, remedy, format string, args ...any) {
	if len(r.problems)-r.mistakes >= maxProblems {
		r.skipped++
		return
	}
	r.note(n, path, remedy, fmt.Sprintf(format, args...), true)
}

// load turns bytes into the root node of the one document, nil if there is none to walk.
func (r *reader) load(data []byte) *yaml.Node {
	top := &yaml.Node{Line: 1, Column: 1}
	switch {
	case len(data) > maxFile:
		r.add(top, "", "write a smaller one", "a policy file of %d bytes is larger than %d", len(data), maxFile)
		return nil
	case pieces(data) > maxPieces:
		r.add(top, "", "write a shorter one", "the file holds more than %d lines and elements of lists", maxPieces)
		return nil
	case !utf8.Valid(data):
		r.add(top, "", "save the file as UTF-8", "the file is not UTF-8 text")
		return nil
	case len(bytes.TrimSpace(data)) == 0:
		r.add(top, "", "begin with: version: 1", "the file is empty")
		return nil
	}
	documents, err := documents(data)
	if err != nil {
		r.syntax(data, err)
		return nil
	}
	if len(documents) == 0 {
		r.add(top, "", "begin with: version: 1", "the file holds only comments")
		return nil
	}
	root := documents[0]
	if len(documents) > 1 {
		r.add(documents[1], "", "put the second document into a file of its own", "the file holds %d documents", len(documents))
	}
	if root.Kind == yaml.DocumentNode && len(root.Content) == 1 {
		root = root.Content[0]
	}
	r.plain(root, 0)
	return root
}

// pieces counts, without parsing, what can begin a node of the document or a line.
func pieces(data []byte) (n int) {
	for _, c := range data {
		switch c {
		case '\n', '\r', ',', '[', '{':
			n++
		}
	}
	return n
}

// documents reads the first two documents of a file: more than one is too many.
func documents(data []byte) ([]*yaml.Node, error) {
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	var all []*yaml.Node
	for len(all) < 2 {
		n := new(yaml.Node)
		err := loader.Load(n)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		all = append(all, n)
	}
	return all, nil
}

// syntax reports what the YAML parser could not read.
func (r *reader) syntax(data []byte, err error) {
	n, message := &yaml.Node{Line: 1, Column: 1}, "the file is no YAML"
	if e, ok := errors.AsType[*yaml.LoadError](err); ok {
		message = e.Message
		if e.ContextMsg != "" {
			message = e.ContextMsg + ", " + message
		}
		n.Line, n.Column = e.Mark.Line, e.Mark.Column
		if n.Line == 0 && e.Mark.Index <= len(data) {
			before := data[:e.Mark.Index]
			n.Line, n.Column = 1+bytes.Count(before, []byte("\n")), len(before)-bytes.LastIndexByte(before, '\n')
		}
	}
	r.add(n, "", "check indentation, brackets and quotes there", "%s", message)
}

// maxDepth is more than the deepest place of a policy; the YAML parser has its own, larger bound.
const maxDepth = 16

// plain refuses what makes a document mean something else than it shows: anchors, aliases, merge keys, explicit tags.
func (r *reader) plain(n *yaml.Node, depth int) {
	switch {
	case depth > maxDepth:
		r.add(n, "", "see docs/policy.md for the keys there are", "lists or mappings lie more than %d deep", maxDepth)
		return
	case n.Kind == yaml.AliasNode:
		r.add(n, "", "write the value out", "aliases are not part of a policy")
		return
	case n.Anchor != "":
		r.add(n, "", "leave it out, and write values out where they are used", "anchors are not part of a policy")
	case n.Tag == "!!merge":
		r.add(n, "", "write the keys out", "merge keys are not part of a policy")
	case n.Style&yaml.TaggedStyle != 0:
		r.add(n, "", "leave the tag out", "explicit tags are not part of a policy")
	}
	for _, c := range n.Content {
		if r.enough() {
			return
		}
		r.plain(c, depth+1)
	}
}

// field is one key of a mapping and what reads its value.
type field struct {
	key  string
	read func(n *yaml.Node, path string)
}

// mapping reads the keys of a section. A section without a value is empty.
func (r *reader) mapping(n *yaml.Node, path string, fields []field) {
	r.entries(n, path, func(key, value *yaml.Node) {
		at := join(path, key.Value)
		for _, f := range fields {
			if f.key == key.Value {
				if value.Kind != yaml.AliasNode {
					r.policy.marks[at] = mark{key.Line, key.Column}
					f.read(value, at)
				}
				return
			}
		}
		r.unknown(key, path, fields)
	})
}

// entries calls each for the entries of a mapping, and reports what is none, and keys that come twice.
func (r *reader) entries(n *yaml.Node, path string, each func(key, value *yaml.Node)) {
	if null(n) || n.Kind == yaml.AliasNode {
		return
	}
	if n.Kind != yaml.MappingNode {
		r.add(n, path, "write keys with values, as in docs/policy.md", "%s where keys and values belong", kindName(n))
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content) && !r.enough(); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Tag == "!!merge" {
			continue // reported already
		}
		if key.Kind != yaml.ScalarNode {
			r.add(key, path, "write a plain word", "a key that is %s", kindName(key))
			continue
		}
		if line, twice := seen[key.Value]; twice {
			r.add(key, join(path, key.Value), "remove one of the two", "the key stands in line %d already", line)
			continue
		}
		seen[key.Value] = key.Line
		each(key, value)
	}
}

// reservedSections are known to come and have no meaning yet: to ignore them would promise what nothing keeps.
func reservedSections() []string {
	return []string{"mcp", "llm", "web", "approvals"}
}

func (r *reader) unknown(key *yaml.Node, path string, fields []field) {
	if path == "" && slices.Contains(reservedSections(), key.Value) {
		r.add(key, key.Value, "remove it", "this version of Cofferdam has no section %s", key.Value)
		return
	}
	var keys []string
	for _, f := range fields {
		keys = append(keys, f.key)
	}
	remedy := "use one of: " + strings.Join(keys, ", ")
	if near := nearest(key.Value, keys); near != "" {
		remedy = fmt.Sprintf("did you mean %s? %s", near, remedy)
	}
	r.add(key, path, remedy, "unknown key %.80q", key.Value)
}

// list calls each for the elements of a sequence and reports what is none, or has more than limit.
func (r *reader) list(n *yaml.Node, path string, limit int, each func(n *yaml.Node, path string)) {
	switch {
	case null(n):
		return
	case n.Kind != yaml.SequenceNode:
		remedy := "write a list, as in [a, b]"
		if n.Kind == yaml.ScalarNode {
			remedy = fmt.Sprintf("write [%.80s]", n.Value)
		}
		r.add(n, path, remedy, "%s where a list belongs", kindName(n))
		return
	case len(n.Content) > limit:
		r.add(n, path, "shorten it", "a list of %d entries is longer than %d", len(n.Content), limit)
		return
	}
	for i, c := range n.Content {
		if r.enough() {
			return
		}
		if c.Kind != yaml.AliasNode {
			each(c, fmt.Sprintf("%s[%d]", path, i))
		}
	}
}

// full is list for lists that must say something.
func (r *reader) full(n *yaml.Node, path string, limit int, each func(n *yaml.Node, path string)) {
	if null(n) || n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		r.add(n, path, "name at least one, or leave the key out", "the list is empty")
		return
	}
	r.list(n, path, limit, each)
}

// text reads a string; numbers and words such as true are none.
func (r *reader) text(n *yaml.Node, path string) (string, bool) {
	switch {
	case n.Kind != yaml.ScalarNode:
		r.add(n, path, "write text", "%s where text belongs", kindName(n))
	case n.Tag != "!!str":
		remedy := fmt.Sprintf("put it in quotes: %q", fmt.Sprintf("%.80s", n.Value))
		if null(n) {
			remedy = "write a value, or leave the key out"
		}
		r.add(n, path, remedy, "%s where text belongs", kindName(n))
	default:
		return n.Value, true
	}
	return "", false
}

// number reads the digits of a number that stands without quotes.
func (r *reader) number(n *yaml.Node, path string) (string, bool) {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!int" && n.Tag != "!!float" {
		remedy := "write a plain number"
		if n.Kind == yaml.ScalarNode && n.Value != "" && strings.Trim(n.Value, "0123456789.") == "" {
			remedy = "write it without quotes: " + n.Value
		}
		r.add(n, path, remedy, "%s where a number belongs", kindName(n))
		return "", false
	}
	return n.Value, true
}

// choice reads one word of several.
func choice[T any](r *reader, n *yaml.Node, path string, parse func(string) (T, error)) (T, bool) {
	var zero T
	s, ok := r.text(n, path)
	if !ok {
		return zero, false
	}
	v, err := parse(s)
	if err != nil {
		r.addError(n, path, err)
		return zero, false
	}
	return v, true
}

func null(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "keys and values"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	case yaml.ScalarNode:
		switch n.Tag {
		case "!!str":
			return "text"
		case "!!null":
			return "nothing"
		case "!!int", "!!float":
			return "a number"
		}
	}
	return "a value of another kind"
}

func join(path, key string) string {
	if path == "" {
		return fmt.Sprintf("%.80s", key)
	}
	return fmt.Sprintf("%s.%.80s", path, key)
}

// nearest returns the key that differs from s by at most two letters, "" if there is none.
func nearest(s string, keys []string) string {
	best, distance := "", 3
	for _, k := range keys {
		if len(s) > 40 {
			continue
		}
		if d := editDistance(s, k); d < distance && d < len(k) {
			best, distance = k, d
		}
	}
	return best
}

func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
