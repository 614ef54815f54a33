package policy

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/netname"
)

// TestReference holds docs/policy.md to what the parser does.
func TestReference(t *testing.T) {
	data, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(text, -1)
	if len(blocks) < 4 {
		t.Errorf("%d examples", len(blocks))
	}
	v := newValidator(t)
	for _, b := range blocks {
		if p, err := Parse("docs/policy.md", []byte(b[1])); err != nil || len(p.Warnings()) > 0 {
			t.Errorf("an example does not parse without warnings: %v\n%s", err, b[1])
		}
		if err := v.accepts(b[1]); err != nil {
			t.Errorf("the schema refuses an example: %v\n%s", err, b[1])
		}
	}
	for _, section := range []map[string]any{v.root, v.root["$defs"].(map[string]any)["rule"].(map[string]any)} {
		for key := range section["properties"].(map[string]any) {
			if !strings.Contains(text, "`"+key) {
				t.Errorf("the key %s is not described", key)
			}
		}
	}
	for _, section := range []string{"isolation", "resources", "workspace", "egress"} {
		for key := range v.root["properties"].(map[string]any)[section].(map[string]any)["properties"].(map[string]any) {
			if !strings.Contains(text, "`"+section+"."+key+"`") {
				t.Errorf("the key %s.%s is not described", section, key)
			}
		}
	}
	for _, rule := range []string{RuleDefault, RuleRawAddress, RuleSpecialAddress, RulePublicAddress, RuleNetworks, RuleEncryptedDNS, RuleUDPClosed, RuleICMPClosed, RuleProtocolClosed, RuleGitThroughProxy} {
		if !strings.Contains(text, "`"+rule+"`") {
			t.Errorf("the built-in rule %s is not described", rule)
		}
	}
	for _, name := range []string{"gitUpstream", "gitProfile", "gitRule", "gitRepository"} {
		for key := range v.root["$defs"].(map[string]any)[name].(map[string]any)["properties"].(map[string]any) {
			if !strings.Contains(text, "`"+key+"`") && !strings.Contains(text, "`"+key+".") {
				t.Errorf("the key %s of %s is not described", key, name)
			}
		}
	}
	var files strings.Builder
	for _, f := range DefaultProtectedFiles() {
		fmt.Fprintf(&files, "| `%s` | %s |\n", f.Pattern, f.Reason)
	}
	if !strings.Contains(text, "\n|---|---|\n"+files.String()+"\n") {
		t.Errorf("the list of protected files is another; it is:\n%s", &files)
	}
	for _, u := range []string{"github.com", "gitlab.com", "bitbucket.org", "dev.azure.com"} {
		for _, door := range sshDoors(netname.Host(u)) {
			if !strings.Contains(text, "`"+door.String()+"`") {
				t.Errorf("the door %s is not named", door)
			}
		}
	}
	for _, h := range githubLFSHosts() {
		if !strings.Contains(text, "`"+h.String()+"`") {
			t.Errorf("the store %s is not named", h)
		}
	}
	for _, section := range reservedSections() {
		if !strings.Contains(text, "`"+section+"`") {
			t.Errorf("the reserved section %s is not named", section)
		}
	}
	for _, flag := range regexp.MustCompile("`--allow '?([^'`]+)'?`").FindAllStringSubmatch(text, -1) {
		if _, err := ParseAllow(flag[1]); err != nil {
			t.Errorf("the flag %s: %v", flag[0], err)
		}
	}
}
