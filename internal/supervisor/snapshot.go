package supervisor

import (
	"os"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/scratch"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// keeper is a box that can be kept as a snapshot when it has come to rest.
type keeper interface {
	Keep(wanted bool)
	Kept() *call.Kept
}

// checkSnapshot refuses snapshots where processes are the host's, or a kernel's that is a program of the host's, and where part of the machine is on a disk that dies.
func checkSnapshot(spec call.Create) error {
	switch {
	case spec.Snapshot == nil && spec.From == "":
		return nil
	case !isMachine(spec.Level):
		return fault.New(fault.Unsupported, "at level %s there are no snapshots: only a virtual machine has all of its state in one place", spec.Level).
			WithHint("choose --isolation vm-emulated or vm with an image; or keep what is to last in a folder: --workspace .:rw")
	case spec.Scratch == scratch.Encrypted:
		return fault.New(fault.Unsupported, "a machine with encrypted scratch cannot be kept, or be a copy of one that was: what is encrypted dies with it").
			WithHint("choose --scratch memory, or leave out --snapshot and --from")
	}
	return nil
}

// keep passes on whether a snapshot is wanted.
func (b *built) keep(wanted bool) {
	if k, ok := b.box.(keeper); ok {
		k.Keep(wanted)
	}
}

// clearUnmade removes what there is of a snapshot that did not become whole. One that did has another name by now.
func clearUnmade(spec call.Create) {
	if spec.Snapshot != nil {
		_ = os.RemoveAll(spec.Snapshot.Making) // what cannot be removed now, the caller's next run finds
	}
}
