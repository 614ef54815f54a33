package ident

import "testing"

func TestParseRun(t *testing.T) {
	for range 100 {
		run := NewRun()
		if got, err := ParseRun(run.String()); err != nil || got != run {
			t.Fatalf("%s: %s, %v", run, got, err)
		}
	}
	for _, bad := range []string{"", "short", "toolongname", "ABCDEFGH", "abc/../x", "abcdefg1", "abcdefgl", "abcdefg\n"} {
		if got, err := ParseRun(bad); err == nil {
			t.Errorf("%q: accepted as %s", bad, got)
		}
	}
}
