package policy

import (
	"slices"
	"strings"
	"testing"
)

func TestAppendRule(t *testing.T) {
	rule, err := ParseAllow("new.example.com:443")
	if err != nil {
		t.Fatal(err)
	}
	const entry = "- name: new.example.com\n%hosts: [new.example.com]\n%ports: [443]\n"
	at := func(pad string) string { return pad + strings.ReplaceAll(entry, "%", pad+"  ") }
	for name, tt := range map[string]struct{ before, after string }{
		"empty":        {"", "version: 1\n\negress:\n  rules:\n" + at("    ")},
		"no egress":    {"version: 1 # one\n# end\n", "version: 1 # one\n# end\n\negress:\n  rules:\n" + at("    ")},
		"no newline":   {"version: 1", "version: 1\n\negress:\n  rules:\n" + at("    ")},
		"egress last":  {"version: 1\negress:\n  default: deny # shut\n", "version: 1\negress:\n  default: deny # shut\n  rules:\n" + at("    ")},
		"egress first": {"egress:\n    default: deny\n\n# the version\nversion: 1\n", "egress:\n    default: deny\n    rules:\n" + at("      ") + "\n# the version\nversion: 1\n"},
		"null egress":  {"egress:\nversion: 1\n", "egress:\n  rules:\n" + at("    ") + "version: 1\n"},
		"null rules":   {"version: 1\negress:\n  rules:\n  # none yet\n  default: ask\n", "version: 1\negress:\n  rules:\n" + at("    ") + "  # none yet\n  default: ask\n"},
		"one rule":     {"version: 1\negress:\n  rules:\n    # first\n    - name: a # here\n      hosts: [a.example]\n      # last words\n  # after\n  default: deny\n", "version: 1\negress:\n  rules:\n    # first\n    - name: a # here\n      hosts: [a.example]\n      # last words\n" + at("    ") + "  # after\n  default: deny\n"},
		"flush":        {"version: 1\negress:\n  rules:\n  - hosts:\n    - a.example\n\ndescription: x\n", "version: 1\negress:\n  rules:\n  - hosts:\n    - a.example\n" + at("  ") + "\ndescription: x\n"},
		"flow entry":   {"version: 1\negress:\n  rules:\n    - {hosts: [a.example,\n       b.example]}\n", "version: 1\negress:\n  rules:\n    - {hosts: [a.example,\n       b.example]}\n" + at("    ")},
		"name taken":   {"version: 1\negress:\n  rules:\n    - name: new.example.com\n      hosts: [a.example]\n", "version: 1\negress:\n  rules:\n    - name: new.example.com\n      hosts: [a.example]\n" + strings.Replace(at("    "), "name: new.example.com", "name: new.example.com-2", 1)},
		"crlf":         {"version: 1\r\negress:\r\n  default: deny\r\n", strings.ReplaceAll("version: 1\negress:\n  default: deny\n  rules:\n"+at("    "), "\n", "\r\n")},
	} {
		got, err := AppendRule([]byte(tt.before), rule)
		if err != nil || string(got) != tt.after {
			t.Errorf("%s: %v\n%s\nwant\n%s", name, err, got, tt.after)
		}
	}
}

// Files in flow style are rewritten: their comments stay, and what they say.
func TestAppendRuleToFlow(t *testing.T) {
	rule, _ := ParseAllow("tcp:*.example.com:22")
	for _, before := range []string{
		"{version: 1}\n", "version: 1\negress: {default: ask} # keep\n", "version: 1\negress:\n  rules: [] # keep\n", "version: 1\negress:\n  rules: [{hosts: [a.example], verdict: deny}] # keep\n", "version: 1\n...\n",
	} {
		got, err := AppendRule([]byte(before), rule)
		if err != nil {
			t.Errorf("%q: %v", before, err)
			continue
		}
		if strings.Contains(before, "# keep") && !strings.Contains(string(got), "# keep") {
			t.Errorf("%q: the comment is lost:\n%s", before, got)
		}
		if d := mustParse(t, string(got)).Decide(crossing(t, "tcp a.example.com:22")); d.Verdict != Allow {
			t.Errorf("%q: %+v\n%s", before, d, got)
		}
	}
}

func TestAppendRuleRefuses(t *testing.T) {
	rule, _ := ParseAllow("a.example")
	for _, before := range []string{"version: 2\n", "version: 1\nx: y\n", "- a\n", "\xff"} {
		if got, err := AppendRule([]byte(before), rule); err == nil {
			t.Errorf("%q became %q", before, got)
		}
	}
	if got, err := AppendRule(nil, Rule{Name: "x"}); err == nil {
		t.Errorf("a rule about nothing became %q", got)
	}
}

func TestAppendRuleTwice(t *testing.T) {
	file := []byte("")
	flags := []string{"a.example", "*.example.com:443", "tcp:git.example.com:22", "tcp:10.1.2.3:22", "[fd12::1]:443", "a.example:8443", "null:80", "1.example:80", "true:1"}
	for _, flag := range flags {
		r, err := ParseAllow(flag)
		if err != nil {
			t.Fatal(err)
		}
		if file, err = AppendRule(file, r); err != nil {
			t.Fatalf("%s: %v\n%s", flag, err, file)
		}
	}
	if p := mustParse(t, string(file)); len(p.Rules()) != len(flags) {
		t.Errorf("%d rules, want %d:\n%s", len(p.Rules()), len(flags), file)
	}
}

// FuzzAppendRule holds that a file with a rule added says what it said, and the rule.
func FuzzAppendRule(f *testing.F) {
	f.Add([]byte(complete))
	f.Add([]byte(sample))
	f.Add([]byte("version: 1\negress:\n- a\n"))
	f.Add([]byte("version: 1\negress:\n  rules:\n  - hosts: [a.example\n  ]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, _ := ParseAllow("new.example.com:443")
		got, err := AppendRule(data, r)
		if err != nil {
			return
		}
		p, err := Parse("", got)
		if err != nil {
			t.Fatalf("%v\n%s", err, got)
		}
		before, after := 0, len(p.Rules())
		if old, err := Parse("", data); err == nil {
			before = len(old.Rules())
		}
		if after != before+1 {
			t.Fatalf("%d rules became %d", before, after)
		}
	})
}

func TestAppendRules(t *testing.T) {
	rules := mustParse(t, "version: 1\negress:\n  rules:\n    - {hosts: [a.example]}\n    - {hosts: [a.example], ports: [8443]}\n    - {hosts: [b.example], verdict: deny}\n").Rules()
	for _, text := range []string{"", "version: 1\n", "version: 1 # one\negress:\n  rules:\n    - hosts: [a.example] # mine\n", "{version: 1, egress: {rules: []}}\n"} {
		one := []byte(text)
		for _, r := range rules {
			var err error
			if one, err = AppendRule(one, r); err != nil {
				t.Fatal(err)
			}
		}
		all, err := AppendRules([]byte(text), rules...)
		if err != nil || string(all) != string(one) {
			t.Errorf("%q: %v\nat once:\n%s\none by one:\n%s", text, err, all, one)
		}
	}
	bad := append(slices.Clone(rules), Rule{})
	if out, err := AppendRules([]byte("version: 1\n"), bad...); err == nil {
		t.Errorf("a rule that matches nothing was added:\n%s", out)
	}
	if out, err := AppendRules([]byte("version: 1\n")); err != nil || string(out) != "version: 1\n" {
		t.Errorf("nothing: %q %v", out, err)
	}
}
