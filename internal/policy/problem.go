package policy

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Problem is one mistake in a policy, where it stands, and what to do about it.
type Problem struct {
	Line    int    `json:"line,omitempty"`   // from 1; 0 where no file is concerned
	Column  int    `json:"column,omitempty"` // from 1
	Path    string `json:"path,omitempty"`   // as in egress.rules[2].ports
	Message string `json:"message"`
	Remedy  string `json:"remedy,omitempty"` // what to write or do instead
	Warning bool   `json:"warning,omitempty"`
}

// String prints the problem without the file's name: LINE:COLUMN: PATH: MESSAGE; REMEDY.
func (p Problem) String() string {
	var b strings.Builder
	if p.Line > 0 {
		fmt.Fprintf(&b, "%d:%d: ", p.Line, p.Column)
	}
	if p.Warning {
		b.WriteString("warning: ")
	}
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	b.WriteString(p.Message)
	if p.Remedy != "" {
		b.WriteString("; " + p.Remedy)
	}
	return b.String()
}

// Problems is every mistake found in one policy, as an error of kind fault.Invalid. List is in the order of the file and holds at least one
// mistake that is no warning.
type Problems struct {
	File string
	List []Problem
}

// Error prints one problem a line, each with the file's name.
func (p *Problems) Error() string {
	var b strings.Builder
	for i, problem := range p.List {
		if i > 0 {
			b.WriteByte('\n')
		}
		if p.File != "" {
			b.WriteString(p.File + ":")
			if problem.Line == 0 {
				b.WriteByte(' ')
			}
		}
		b.WriteString(problem.String())
	}
	return b.String()
}

// Unwrap returns the public sentence, so that fault.KindOf and fault.HintOf see what kind of failure this is.
func (p *Problems) Unwrap() error {
	mistakes := 0
	for _, problem := range p.List {
		if !problem.Warning {
			mistakes++
		}
	}
	noun := "mistakes"
	if mistakes == 1 {
		noun = "mistake"
	}
	file := p.File
	if file == "" {
		file = "the policy"
	}
	return fault.New(fault.Invalid, "%s has %d %s", file, mistakes, noun).
		WithHint("correct the lines named, and see them again with: cofferdam policy check %s", p.File)
}

// place returns where a path stands, for a problem.
func (r *reader) place(path string) *yaml.Node {
	at := r.policy.marks[path]
	return &yaml.Node{Line: at.line, Column: at.column}
}

// mark is a place in a policy file. The zero value is no file.
type mark struct{ line, column int }
