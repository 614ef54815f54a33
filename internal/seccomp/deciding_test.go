package seccomp

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDeciding compiles each profile with one more rule, which must be the only one about its calls.
func TestDeciding(t *testing.T) {
	rule := Rule{Calls: []string{"socket", "mkdirat"}, Action: Errno(unix.EPERM), Reason: "a test"}
	for name, p := range map[string]Profile{"sandbox": Sandbox(), "gateway": Gateway(1)} {
		before := len(p.Rules)
		got := Deciding(rule, p)
		if _, err := Compile(got, Native()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for i, r := range got.Rules {
			if i > 0 && (slices.Contains(r.Calls, "socket") || slices.Contains(r.Calls, "mkdirat")) {
				t.Errorf("%s: %+v", name, r)
			}
		}
		if len(p.Rules) != before || !slices.ContainsFunc(p.Rules, func(r Rule) bool { return slices.Contains(r.Calls, "mkdirat") }) {
			t.Errorf("%s: the profile itself was changed", name)
		}
	}
}
