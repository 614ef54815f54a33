package supervisor

import (
	"errors"
	"os"
	"path/filepath"
	"slices"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/isolation/vm"
	"github.com/cofferdam/cofferdam/internal/receipt"
	"github.com/cofferdam/cofferdam/internal/scratch"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// makeScratch makes what everything written in the sandbox lands on, where that needs privilege; elsewhere the sandbox's set-up makes its own, in memory.
func (b *built) makeScratch() (err error) {
	machine := slices.Contains(vm.Levels(), b.spec.Level)
	switch kind := b.spec.Scratch; {
	case kind != "" && kind != scratch.Memory && kind != scratch.Encrypted:
		return fault.New(fault.Invalid, "there is no kind of scratch %.20q", kind).WithHint("write: %s or %s", scratch.Memory, scratch.Encrypted)
	case kind == scratch.Encrypted && os.Geteuid() != 0 && !machine:
		return fault.New(fault.Unsupported, "only root can make encrypted scratch: it takes a loop device and a file system of its own").WithHint("run as root, use --scratch memory, or choose --isolation vm")
	case kind == scratch.Encrypted && !filepath.IsAbs(b.spec.ScratchDir):
		return fault.New(fault.Invalid, "encrypted scratch needs a directory")
	case kind == scratch.Encrypted && machine:
		b.scratch, err = scratch.ForMachine(b.spec.ScratchDir, boot.SwapSize(b.spec.Limits.Disk))
	case kind == scratch.Encrypted:
		b.scratch, err = scratch.OnDisk(b.spec.ScratchDir, b.spec.Limits.Disk, b.spec.Limits.Files)
	case machine || os.Geteuid() != 0 || b.spec.Limits.Files <= 0:
		return nil
	default:
		b.scratch, err = scratch.InMemory(b.spec.Limits.Disk, b.spec.Limits.Files)
	}
	return err
}

// dropScratch destroys the scratch of a sandbox that could not be made.
func (b *built) dropScratch() error {
	if b.scratch == nil {
		return nil
	}
	_, err := b.scratch.Erase(call.Patience)
	return err
}

// filling is a box that can say whether its scratch is full.
type filling interface{ Full() (bytes, files bool) }

// look looks for what must be gone with the last process.
func (b *built) look(ended *call.Ended) {
	if f, ok := b.box.(filling); ok {
		ended.Hits.Disk, ended.Hits.Files = f.Full()
	}
	gone, err := b.box.Remains()
	for _, what := range gone {
		ended.Receipt = append(ended.Receipt, receipt.Looked(what, howLooked(what), nil))
	}
	if err != nil {
		ended.Receipt = append(ended.Receipt, receipt.Looked("all that goes with the processes", "looked for after the last process had been reaped", err))
	}
}

// howLooked says how a box looked for what it lists.
func howLooked(what string) string {
	switch what {
	case "processes":
		return "killed by the kernel with the sandbox's first process; then every process of this machine was looked at: none is in the sandbox's namespaces"
	case "mounts":
		return "gone with their namespace, in which no process is any more, and which the supervisor has let go of"
	case "network cable", "network device":
		return "the room was asked for its end: there is none"
	}
	return "looked for after the last process had been reaped: it is not there"
}

// removeGroup reads what the control group counted, and removes it.
func (b *built) removeGroup(ended *call.Ended) {
	if b.group == nil {
		return
	}
	ended.OutOfMemory += b.group.OutOfMemory()
	ended.Hits.CPU = b.group.Throttled()
	peak, refused := b.group.Processes()
	// The resource limit is met before the group's, which has the runner's reserve on top, and refuses without counting. At level gvisor neither tells: what is counted here
	// are the host's processes and threads.
	if limit := b.spec.Limits.PIDs; b.spec.Level == "container" && limit > 0 && (refused > 0 || peak >= limit) {
		ended.Hits.PIDs = max(refused, 1)
	}
	err := b.group.Remove(call.Patience)
	ended.Receipt = append(ended.Receipt, receipt.Looked("control groups", "their directories were removed, which the kernel refuses while a process is in them", err))
}

// eraseScratch destroys scratch, once nothing of it is wanted any more.
func (b *built) eraseScratch(ended *call.Ended) {
	if b.upper != nil {
		if err := b.upper.Close(); err != nil {
			ended.Problems = append(ended.Problems, "let go of the folder's changes on scratch: "+err.Error())
		}
	}
	if b.scratch == nil {
		ended.Receipt = append(ended.Receipt, scratch.MemoryItem())
		return
	}
	items, err := b.scratch.Erase(call.Patience)
	if err != nil && len(receipt.Problems(items)) == 0 {
		items = append(items, receipt.Looked("scratch", "destroyed", err))
	}
	ended.Receipt = append(ended.Receipt, items...)
}

// settle draws from the receipt what is said in short.
func settle(ended *call.Ended) {
	ended.Erased = receipt.Names(ended.Receipt)
	ended.Problems = append(ended.Problems, receipt.Problems(ended.Receipt)...)
}

// undo gives back what was made for a sandbox that could not be.
func (b *built) undo(why error) error {
	why = errors.Join(why, b.dropScratch())
	if b.group != nil {
		why = errors.Join(why, b.group.Remove(call.Patience))
	}
	return why
}

// scratchGone is what can be said about the scratch of a sandbox whose supervisor was killed.
func scratchGone() receipt.Item {
	return receipt.Unobserved("scratch", "freed by the kernel with the last process, whether it was memory or a disk whose key is gone with that")
}
