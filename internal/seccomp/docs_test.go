package seccomp

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the tables of docs/seccomp.md")

// TestDocs holds docs/seccomp.md to the profiles: its tables are made from them.
func TestDocs(t *testing.T) {
	const file = "../../docs/seccomp.md"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want := string(text)
	for name, profile := range map[string]Profile{"sandbox": Sandbox(), "written": WithoutSetID(Profile{}), "named": WithoutNamedSockets(Profile{}), "gateway": Gateway(1)} {
		start, end := "<!-- table "+name+" -->\n", "<!-- end "+name+" -->"
		head, rest, ok1 := strings.Cut(want, start)
		_, tail, ok2 := strings.Cut(rest, end)
		if !ok1 || !ok2 {
			t.Fatalf("%s: no place for the table of %s", file, name)
		}
		want = head + start + table(profile) + end + tail
	}
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if want != string(text) {
		t.Errorf("%s is not what the profiles say: run go test ./internal/seccomp -run TestDocs -update", file)
	}
}

// table shows neighbouring rules of one reason and action as one line.
func table(p Profile) string {
	var b strings.Builder
	b.WriteString("| calls | arguments | answer | why |\n| --- | --- | --- | --- |\n")
	for i := 0; i < len(p.Rules); {
		r := p.Rules[i]
		var when []string
		for i < len(p.Rules) && p.Rules[i].Reason == r.Reason && p.Rules[i].Action == r.Action && slices.Equal(p.Rules[i].Calls, r.Calls) {
			when = append(when, conditions(p.Rules[i].When))
			i++
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", strings.Join(r.Calls, " "), strings.Join(when, " or "), r.Action, r.Reason)
	}
	return b.String()
}

func conditions(when []Condition) string {
	var parts []string
	for _, c := range when {
		switch {
		case c.Op == MaskedEqual && c.Mask == 0xffffffff:
			parts = append(parts, fmt.Sprintf("%d = %#x", c.Arg, c.Value))
		case c.Op == MaskedEqual:
			parts = append(parts, fmt.Sprintf("%d & %#x = %#x", c.Arg, c.Mask, c.Value))
		default:
			parts = append(parts, fmt.Sprintf("%d op%d %#x", c.Arg, c.Op, c.Value))
		}
	}
	return strings.Join(parts, ", ")
}
