package policy

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/netname"
)

// The quick way to compare lists of hosts says what the plain one says.
func TestOverlapIsWhatCoversSays(t *testing.T) {
	dice := rand.New(rand.NewPCG(3, 4))
	some := func() (list []netname.Pattern) {
		for range 1 + dice.IntN(3) {
			labels := []string{"a", "b"}[dice.IntN(2)]
			for range dice.IntN(4) {
				labels = []string{"a", "b"}[dice.IntN(2)] + "." + labels
			}
			if dice.IntN(2) == 0 {
				labels = "*." + labels
			}
			if p, err := netname.ParsePattern(labels); err == nil {
				list = append(list, p)
			}
		}
		return list
	}
	both := 0
	for range 5000 {
		a, b := some(), some()
		want := slices.ContainsFunc(a, func(x netname.Pattern) bool {
			return slices.ContainsFunc(b, func(y netname.Pattern) bool { return x.Covers(y) || y.Covers(x) })
		})
		if want {
			both++
		}
		if got := overlap(a, b); got != want {
			t.Fatalf("%v and %v: %v, want %v", a, b, got, want)
		}
	}
	if both < 500 || both > 4500 {
		t.Errorf("%d of 5000 overlap: the test says little", both)
	}
}

// hostsOf writes n hosts, none of which any other number has.
func hostsOf(b *strings.Builder, number, n int) {
	b.WriteString("hosts: [")
	for j := range n {
		fmt.Fprintf(b, "h%d.c%d,", j, number)
	}
	b.WriteString("]}\n")
}

// A file that a stranger wrote takes time and space in proportion to its size, valid or not, and the answer is short.
func TestParseIsBounded(t *testing.T) {
	lines := func(line func(i int) string, n int) string {
		var b strings.Builder
		for i := range n {
			b.WriteString(line(i))
		}
		return b.String()
	}
	var credentials, rules strings.Builder
	credentials.WriteString("version: 1\ncredentials:\n")
	for i := range maxCredentials {
		fmt.Fprintf(&credentials, "- {use: a%d, ", i)
		hostsOf(&credentials, i, 1000)
	}
	rules.WriteString("version: 1\negress:\n  rules:\n")
	for i := range 450 {
		fmt.Fprintf(&rules, "  - {tls: %s, ", []string{"tunnel", "inspect"}[i%2])
		hostsOf(&rules, i, 180)
	}
	for name, c := range map[string]struct {
		text string
		fine bool
	}{
		"unknown keys":       {"version: 1\n" + lines(func(i int) string { return fmt.Sprintf("k%d:\n", i) }, 90_000), false},
		"unknown keys, most": {lines(func(i int) string { return fmt.Sprintf("k%d:\n", i) }, 120_000), false},
		"the same key":       {"{" + strings.Repeat("a,", maxFile/2-1) + "}", false},
		"anchors":            {"a: [" + strings.Repeat("&a 1,", 90_000) + "]", false},
		"values not known":   {"version: 1\negress:\n  rules:\n" + strings.Repeat("  - {tls: x, verdict: y, protocol: z}\n", 1000), false},
		"a long value":       {"version: \"" + strings.Repeat("x", maxFile-100) + "\"\n", false},
		"a long key":         {"\"" + strings.Repeat("é", maxFile/2-100) + "\": 1\n", false},
		"many credentials":   {credentials.String(), true},
		"many rules":         {rules.String(), true},
	} {
		began := time.Now()
		_, err := Parse("", []byte(c.text))
		if d := time.Since(began); d > 5*time.Second {
			t.Errorf("%s: it took %v", name, d)
		}
		problems, _ := errors.AsType[*Problems](err)
		if c.fine || problems == nil {
			if c.fine != (err == nil) {
				t.Errorf("%s: %.300v", name, err)
			}
			continue
		}
		if len(problems.List) > maxProblems+1 || len(problems.Error()) > 50_000 {
			t.Errorf("%s: %d problems in %d bytes", name, len(problems.List), len(problems.Error()))
		}
		last := problems.List[len(problems.List)-1]
		if more := strings.HasPrefix(last.Message, "and more"); more != (len(problems.List) > maxProblems) {
			t.Errorf("%s: the last of %d is %q", name, len(problems.List), last)
		}
	}
}

// Warnings that are too many to tell hide no mistake that stands behind them.
func TestMistakeBehindWarnings(t *testing.T) {
	text := "version: 1\nenvironment:\n"
	for i := range 150 {
		text += fmt.Sprintf("  TOKEN_%d: ghp_0123456789abcdef0123456789abcdef0123\n", i)
	}
	p, err := Parse("", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if w := p.Warnings(); len(w) != maxProblems+1 || w[maxProblems].Message != "and 50 more warnings" {
		t.Errorf("%d warnings, the last: %v", len(w), w[len(w)-1])
	}
	_, err = Parse("", []byte(text+"nothing: 1\n"))
	if err == nil || !strings.Contains(err.Error(), `unknown key "nothing"`) {
		t.Errorf("%v", err)
	}
}
