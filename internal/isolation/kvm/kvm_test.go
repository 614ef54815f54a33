package kvm

import (
	"os"
	"strings"
	"testing"
	"time"
)

// TestMain lets the test binary be the child that the supervisor's program is.
func TestMain(m *testing.M) {
	if os.Args[0] == Name {
		Child()
		return
	}
	os.Exit(m.Run())
}

// TestTry asks this machine, in whatever state it is: an answer comes soon, and it names a reason where it is no.
func TestTry(t *testing.T) {
	began := time.Now()
	err := Try(t.Context())
	if took := time.Since(began); took > patience+time.Second {
		t.Errorf("it took %v", took)
	}
	t.Logf("%v after %v", err, time.Since(began))
	if err != nil && strings.Contains(err.Error(), "try KVM:") {
		t.Errorf("the trial itself went wrong: %v", err)
	}
	if _, missing := os.Stat(Device); missing != nil && err == nil {
		t.Error("KVM works without its device")
	}
}

// TestJudge holds what came of a trial to what hardware does.
func TestJudge(t *testing.T) {
	for _, c := range []struct {
		trial trial
		want  string // empty: it works
	}{
		{trial{Exit: exitHalt, Each: time.Nanosecond}, ""},
		{trial{Exit: exitHalt, Each: 20 * time.Nanosecond}, ""},
		{trial{Exit: exitHalt, Each: 21 * time.Nanosecond}, "imitates each instruction"},
		{trial{Exit: 17, Each: 3 * time.Microsecond}, "imitates each instruction"},
		{trial{Exit: 17, Each: time.Nanosecond}, "stops at an ordinary instruction (exit 17)"},
		{trial{}, "exit 0"},
		{trial{Error: "this user may not open /dev/kvm", Exit: exitHalt, Each: 1}, "may not open"},
	} {
		err := c.trial.judge()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.trial, err, c.want)
		}
	}
}
