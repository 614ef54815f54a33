package container

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/scratch"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// TestSwaps reads lists of swap as the kernel writes them, and says of a sandbox that may be swapped that it is weaker.
func TestSwaps(t *testing.T) {
	const heading = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
	for text, want := range map[string]bool{"": false, heading: false, heading + "/swapfile                               file\t\t1048572\t\t0\t\t-2\n": true} {
		list := filepath.Join(t.TempDir(), "swaps")
		if err := os.WriteFile(list, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := swaps(list); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
	if swaps(filepath.Join(t.TempDir(), "absent")) {
		t.Error("a kernel without swap swaps")
	}
	if !swaps(t.TempDir()) {
		t.Error("a list that cannot be read has nothing in it")
	}
	if said := strings.Join(plan{Scratch: true}.weaker(), ""); strings.Contains(said, "swap") {
		t.Errorf("scratch that is not swapped: %q", said)
	}
}

// TestMemoryScratch keeps a kernel of the sandbox's own from promising more memory than there is.
func TestMemoryScratch(t *testing.T) {
	for _, c := range []struct {
		kind               string
		disk, memory, want int64
	}{{scratch.Memory, 100, 800, 100}, {scratch.Encrypted, 1000, 800, 700}, {scratch.Encrypted, 100, 800, 100}, {scratch.Encrypted, 1000, 0, 1000}, {"", 1000, 800, 1000}} {
		p := plan{Disk: c.disk, Spec: call.Create{Scratch: c.kind, Limits: call.Limits{Memory: c.memory}}}
		if got := p.memoryScratch(); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}
