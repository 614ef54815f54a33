package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// churnPool is a pool that lives on while its sandboxes come and go.
type churnPool struct {
	row     *churnRow
	before  weight
	summary string
}

// weight is what a process holds.
type weight struct{ pid, descriptors, kib int }

func newChurnPool(t *testing.T, r *churnRow) *churnPool {
	t.Helper()
	p := &churnPool{row: r}
	if out := r.do("pool", "start", "--isolation", r.as.level, "--size", "3"); out.code != 0 {
		t.Fatalf("pool start: exit %d: %s", out.code, out.stderr)
	}
	t.Cleanup(func() { _ = r.command(t.Context(), "pool", "stop").Run() }) // it was stopped, unless the test failed
	for range 20 {                                                         // what the first sandboxes cost is no leak
		if out := r.do("run", "-q", "--", "true"); out.code != 0 {
			t.Fatalf("the first run of a pool: exit %d: %s", out.code, out.stderr)
		}
	}
	p.before, _ = p.now(t)
	return p
}

// now measures the pool's process when it has filled itself up, and says how many sandboxes were claimed.
func (p *churnPool) now(t *testing.T) (w weight, claimed int) {
	t.Helper()
	var pools []struct{ PID, Claimed, Ready, Size int }
	for range 100 {
		out := p.row.do("pool", "status", "--json")
		if err := json.Unmarshal([]byte(out.stdout), &pools); err != nil || len(pools) != 1 {
			t.Fatalf("pool status: %v: %s%s", err, out.stdout, out.stderr)
		}
		if pools[0].Ready == pools[0].Size {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	w.pid = pools[0].PID
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	if w.kib, err = strconv.Atoi(strings.Fields(rest + " 0")[0]); err != nil {
		t.Fatal(err)
	}
	w.descriptors = len(entries(fmt.Sprintf("/proc/%d/fd", w.pid)))
	return w, pools[0].Claimed
}

// close holds what the pool's process has taken against what it had, and ends it.
func (p *churnPool) close(t *testing.T) {
	t.Helper()
	after, claimed := p.now(t)
	p.summary = fmt.Sprintf("%d were claimed; the pool's process: %d descriptors and %d KiB before, %d and %d after", claimed, p.before.descriptors, p.before.kib, after.descriptors, after.kib)
	const mostDescriptors, mostKiB = 4, 24 << 10
	if after.pid != p.before.pid || after.descriptors > p.before.descriptors+mostDescriptors || after.kib > p.before.kib+mostKiB {
		t.Errorf("the pool's process grew, or is another: %s", p.summary)
	}
	if claimed == 0 {
		t.Error("no sandbox was claimed from the pool")
	}
	if out := p.row.do("pool", "stop"); out.code != 0 {
		t.Errorf("pool stop: exit %d: %s", out.code, out.stderr)
	}
}

// strikeWarm is strike where a sandbox is no descendant of its owner's: supervisors and processes 1 are met as they come, waiting ones too.
func (c churned) strikeWarm(owner int, ended <-chan struct{}) bool {
	kill := func(pid int, signal syscall.Signal) bool {
		select {
		case <-ended:
			return false
		case <-time.After(20*time.Millisecond + c.moment):
		}
		return parentOf(pid) >= 0 && syscall.Kill(pid, signal) == nil
	}
	switch c.ending {
	case byInterrupt:
		return kill(owner, syscall.SIGINT)
	case byTermination:
		return kill(owner, syscall.SIGTERM)
	case killOwner:
		return kill(owner, syscall.SIGKILL)
	case killMaker, killFirst:
		wanted := "cofferdam-supervisor"
		if c.ending == killFirst {
			wanted = "cofferdam-runner"
		}
		for _, one := range c.row.processes() {
			if one.program == wanted {
				c.row.see(one.pid)
				return kill(one.pid, syscall.SIGKILL)
			}
		}
		return false
	}
	return true
}
