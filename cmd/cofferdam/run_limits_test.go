package main

import (
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/spf13/pflag"

	"github.com/cofferdam/cofferdam/internal/policy"
)

// TestLimitFlags holds the flags to the limits that there are: each has one, which sets it.
func TestLimitFlags(t *testing.T) {
	var names []string
	for _, one := range limitHelp() {
		names = append(names, one[0])
	}
	want := policy.LimitNames()
	slices.Sort(names)
	slices.Sort(want)
	if !slices.Equal(names, want) {
		t.Fatalf("flags %q, limits %q", names, want)
	}
	for _, name := range append(names, "scratch") {
		value := map[string]string{"timeout": "90s", "cpus": "2", "scratch": "encrypted"}[name]
		if value == "" {
			value = "16777216"
			if slices.Contains([]string{"pids", "files", "open-files", "connections"}, name) {
				value = "2000"
			}
		}
		var f runFlags
		flags := pflag.NewFlagSet("run", pflag.ContinueOnError)
		f.limits.register(flags)
		if err := flags.Parse([]string{"--" + name, value}); err != nil {
			t.Fatal(err)
		}
		r, err := f.resources()
		if err != nil || reflect.DeepEqual(r, policy.Resources{}) || !slices.Equal(f.limits.given(), []string{name}) {
			t.Errorf("--%s %s: %+v, %v, given %q", name, value, r, err, f.limits.given())
		}
	}
}

// TestOutputMeter counts bytes from several goroutines: exactly as many pass as may, and the end comes once.
func TestOutputMeter(t *testing.T) {
	var ends, passed atomic.Int64
	m := outputMeter{most: 100_000, end: func() { ends.Add(1) }}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for range 1000 {
				passed.Add(int64(m.take(100 + i)))
			}
		})
	}
	all.Wait()
	if passed.Load() != 100_000 || ends.Load() != 1 {
		t.Errorf("%d bytes passed, %d ends", passed.Load(), ends.Load())
	}
	exact := outputMeter{most: 100, end: func() { ends.Add(1) }}
	if exact.take(60) != 60 || exact.take(40) != 40 || ends.Load() != 1 {
		t.Error("as much as may pass ended it")
	}
	if exact.take(1) != 0 || ends.Load() != 2 {
		t.Error("one byte more passed")
	}
	if none := (&outputMeter{}); none.take(1<<40) != 1<<40 {
		t.Error("without a limit not all passes")
	}
}

// TestMetLimits says each in one sentence, with the flag.
func TestMetLimits(t *testing.T) {
	m := metLimit{"memory", "it was full"}
	if got := m.sentence(); got != "it was full; to raise it: --memory" || strings.Contains(got, "\n") {
		t.Errorf("%q", got)
	}
	if got := flagsOf([]metLimit{m, {"cpus", ""}}); got != "; limits met: memory, cpus" || flagsOf(nil) != "" {
		t.Errorf("%q", got)
	}
}
