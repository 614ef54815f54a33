package main

import (
	"bytes"
	"strings"
	"testing"
)

// TestRootOfOne holds that a command that is built alone is the one of the whole tree, and that nothing but those that stay is built alone.
func TestRootOfOne(t *testing.T) {
	said := func(first string, args ...string) (text string, commands int) {
		var out bytes.Buffer
		root := (&app{stdout: &out, stderr: &out}).root([]string{first})
		commands = len(root.Commands())
		root.SetArgs(args)
		if err := root.Execute(); err != nil {
			out.WriteString(err.Error())
		}
		return out.String(), commands
	}
	_, all := said("help", "help")
	for _, name := range []string{"run", "keep"} {
		for flag, want := range map[string]string{"--help": "cofferdam " + name, "--bogus": "--bogus"} {
			args := []string{name, flag}
			alone, n := said(name, args...)
			whole, _ := said("help", args...)
			if alone != whole || n != 1 || !strings.Contains(whole, want) {
				t.Errorf("%q: among %d commands it says\n%s\namong all\n%s", args, n, alone, whole)
			}
		}
	}
	for _, first := range []string{"", "ps", "help", "__complete", "--version", "runs"} {
		if _, n := said(first, "--help"); n != all || n < 10 {
			t.Errorf("%q: %d commands, want all %d", first, n, all)
		}
	}
}
