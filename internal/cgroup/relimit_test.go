package cgroup

import (
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// TestRelimit bounds a group anew, wider, narrower, and not at all.
func TestRelimit(t *testing.T) {
	testenv.Need(t, "cgroup")
	all := Limits{MilliCPUs: 500, Memory: 64 << 20, PIDs: 32}
	host := Detect()
	if missing := host.Missing(all.Controllers()); len(missing) > 0 {
		t.Skipf("no control groups for %v", missing)
	}
	g, err := host.Create("cofferdam-relimit", all)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.Remove(time.Second); err != nil {
			t.Error(err)
		}
	}()
	for _, l := range []Limits{{MilliCPUs: 1500, Memory: 256 << 20, PIDs: 100}, {MilliCPUs: 100, Memory: 16 << 20, PIDs: 10}, {Memory: 1 << 30}, all} {
		if err := g.Relimit(l); err != nil {
			t.Fatalf("%+v: %v", l, err)
		}
		for name, wanted := range map[string]int64{"memory": l.Memory, "pids": l.PIDs} {
			dir, unified, ok := g.of(name)
			if !ok {
				t.Fatalf("no directory for %s", name)
			}
			file := map[string]string{"memory": "memory.limit_in_bytes", "pids": "pids.max"}[name]
			if unified {
				file = name + ".max"
			}
			got := strings.TrimSpace(string(readAll(filepath.Join(dir, file))))
			none := got == "max" || got == "9223372036854771712" // version 1 says so in pages
			if wanted == 0 && !none || wanted > 0 && got != strconv.FormatInt(wanted, 10) {
				t.Errorf("%+v: %s is %s", l, file, got)
			}
		}
	}
	if err := (&Group{}).Relimit(all); err == nil {
		t.Error("a group without directories was bounded")
	}
	if err := (&Group{}).Relimit(Limits{}); err != nil {
		t.Error(err)
	}
}
