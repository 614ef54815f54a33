package supervisor

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/scratch"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// TestNoSnapshot asks for snapshots where there are none: nothing is built, and what was there of one is gone.
func TestNoSnapshot(t *testing.T) {
	for _, level := range []string{"container", "gvisor"} {
		making := filepath.Join(t.TempDir(), "making")
		if err := os.Mkdir(making, 0o700); err != nil {
			t.Fatal(err)
		}
		kept := call.Create{Level: level, Limits: call.Limits{Disk: 1}, Snapshot: &call.Snapshot{Making: making, Dir: making + ".dir"}}
		for _, spec := range []call.Create{kept, {Level: level, Limits: call.Limits{Disk: 1}, From: making}} {
			if _, _, err := (&Server{}).build(t.Context(), spec, nil); fault.KindOf(err) != fault.Unsupported || fault.HintOf(err) == "" {
				t.Errorf("%s: %+v: %v", level, spec, err)
			}
		}
		clearUnmade(kept)
		if _, err := os.Stat(making); err == nil {
			t.Errorf("%s: its place is there still", level)
		}
	}
	sealed := call.Create{Level: "vm-emulated", Snapshot: &call.Snapshot{}, Scratch: scratch.Encrypted}
	if err := checkSnapshot(sealed); fault.KindOf(err) != fault.Unsupported || fault.HintOf(err) == "" {
		t.Errorf("a machine with a disk that dies: %v", err)
	}
	if err := checkSnapshot(call.Create{Level: "vm-emulated", From: "/x"}); err != nil {
		t.Errorf("control: %v", err)
	}
	if err := checkSnapshot(call.Create{Level: "container"}); err != nil {
		t.Errorf("control: %v", err)
	}
}
