package policy

import (
	"fmt"
	"strings"
)

// Explanation is a decision with the walk over the rules that led to it.
type Explanation struct {
	Crossing string `json:"crossing"` // what was judged, in words
	Verdict  string `json:"verdict"`
	Rule     string `json:"rule"`
	Line     int    `json:"line,omitempty"` // of the deciding rule
	Reason   string `json:"reason"`
	Steps    []Step `json:"steps"`
	// Allow is the flag that would allow the crossing, "" if it is allowed or none can.
	Allow string `json:"allow,omitempty"`
}

// Step is one rule and what it says about the crossing.
type Step struct {
	Rule    string `json:"rule"`
	Line    int    `json:"line,omitempty"`
	Verdict string `json:"verdict"` // of the rule, if it matches
	Matches bool   `json:"matches"`
	Why     string `json:"why"`
}

// Explain judges a crossing as Decide does and says what each rule contributed, in the order of the file.
func (p *Policy) Explain(c Crossing) Explanation {
	c.Addr = c.Addr.Unmap()
	d := p.Decide(c)
	e := Explanation{Crossing: fmt.Sprintf("%s, %s", c.destination(), c.Protocol), Verdict: d.Verdict.String(), Rule: d.Rule, Reason: d.Reason, Steps: []Step{}}
	if p != nil {
		for i := range p.layers {
			for j := range p.layers[i].rules {
				e.Steps = append(e.Steps, p.layers[i].rules[j].step(&c))
			}
		}
	}
	for _, s := range e.Steps {
		if s.Rule == d.Rule && e.Line == 0 {
			e.Line = s.Line
		}
	}
	if d.Verdict != Allow {
		e.Allow = p.AllowFlag(c)
	}
	return e
}

func (r *Rule) step(c *Crossing) Step {
	m := r.match(c)
	if c.Protocol == DNS && r.namesHost(c.Host) {
		m = matches
	}
	s := Step{Rule: r.Name, Line: r.Line, Verdict: r.Verdict.String(), Matches: m == matches}
	switch m {
	case matches:
		s.Why = "it is about this crossing"
		if r.Verdict != Deny && !r.opensEncryptedDNS(c) {
			s.Matches, s.Why = false, "encrypted DNS needs a rule that lists this very host, without a wildcard"
		}
	case otherHost:
		s.Why = "it is about other hosts"
		if len(r.Hosts) == 0 {
			s.Why = "it is about raw addresses, not names"
		}
	case otherAddress:
		s.Why = "it is about other addresses"
		if len(r.Networks) == 0 {
			s.Why = "it is about names, not raw addresses"
		}
	case otherPort:
		s.Why = "it is about port " + joinPorts(r.Ports)
	case otherWire:
		s.Why = fmt.Sprintf("it is about protocol %s", r.Wire)
	case otherMethod:
		s.Why = "it is about methods " + strings.Join(r.Methods, ", ")
		if c.Method == "" {
			s.Why = "it is about some requests only, and a connection is judged"
		}
	case otherPath:
		s.Why = "it is about other paths"
	}
	return s
}

func joinPorts(ports []uint16) string {
	var b strings.Builder
	for i, p := range ports {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprint(&b, p)
	}
	return b.String()
}

// String prints the explanation for people.
func (e Explanation) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n  %s\n", e.Crossing, e.Verdict, e.Reason)
	for _, s := range e.Steps {
		sign := "-"
		if s.Matches {
			sign = "+"
		}
		where := ""
		if s.Line > 0 {
			where = fmt.Sprintf(" (line %d)", s.Line)
		}
		fmt.Fprintf(&b, "  %s %s%s, %s: %s\n", sign, s.Rule, where, s.Verdict, s.Why)
	}
	if e.Allow != "" {
		fmt.Fprintf(&b, "to allow it: %s\n", e.Allow)
	}
	return b.String()
}
