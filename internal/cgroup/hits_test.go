package cgroup

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestHits reads the counters of both versions as the kernel writes them.
func TestHits(t *testing.T) {
	for name, c := range map[string]struct {
		files         map[string]string
		throttled     time.Duration
		peak, refused int64
	}{
		"version 1": {map[string]string{
			"cpu.stat": "nr_periods 10\nnr_throttled 7\nthrottled_time 1500000000\n", "pids.peak": "41\n", "pids.events": "max 3\n",
		}, 1500 * time.Millisecond, 41, 3},
		"version 2": {map[string]string{
			"cpu.stat": "usage_usec 9\nuser_usec 5\nnr_periods 10\nnr_throttled 7\nthrottled_usec 250000\n", "pids.peak": "8\n", "pids.events": "max 0\n",
		}, 250 * time.Millisecond, 8, 0},
		"none":    {nil, 0, 0, 0},
		"strange": {map[string]string{"cpu.stat": "throttled_usec x\n\nthrottled_time\n", "pids.peak": "max\n", "pids.events": "low 3\n"}, 0, 0, 0},
	} {
		g := &Group{dirs: []string{filepath.Join(t.TempDir(), "absent"), t.TempDir()}}
		for file, text := range c.files {
			if err := os.WriteFile(filepath.Join(g.dirs[1], file), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		peak, refused := g.Processes()
		if got := g.Throttled(); got != c.throttled || peak != c.peak || refused != c.refused {
			t.Errorf("%s: throttled for %v, %d at most, %d refused", name, got, peak, refused)
		}
	}
}
