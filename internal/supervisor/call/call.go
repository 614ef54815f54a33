// Package call (SANDBOX) is what is said between the control plane and the supervisor: a small fixed set of calls over one Unix socket.
//
// One connection serves one call. For a sandbox the caller says [Create] once; the supervisor answers with [Created] and the planted sockets, or with [Refused];
// later it says [Ended] once. In between the caller may say [Freeze], each of which is answered by [Frozen], [Keep] and [Kill]. A connection that breaks ends its sandbox.
// [Prepare] may come before Create: as much of the sandbox is built as can be before it is known whose it is. Whoever has the connection by then says Create.
// [Reap], [Probe] and, for a sandbox that has another connection, [Freeze] are calls of their own.
package call

import (
	"net/netip"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/receipt"
)

// Request is one message to the supervisor; exactly one member is set.
type Request struct {
	Create  *Create  `json:"create,omitempty"`
	Prepare *Prepare `json:"prepare,omitempty"`
	Kill    *Kill    `json:"kill,omitempty"`
	Keep    *Keep    `json:"keep,omitempty"`
	Freeze  *Freeze  `json:"freeze,omitempty"`
	Reap    *Reap    `json:"reap,omitempty"`
	Probe   *Probe   `json:"probe,omitempty"`
}

// Reply is one message from the supervisor; exactly one member is set.
type Reply struct {
	Created  *Created  `json:"created,omitempty"`
	Prepared *Prepared `json:"prepared,omitempty"`
	Refused  *Refused  `json:"refused,omitempty"`
	Ended    *Ended    `json:"ended,omitempty"`
	Frozen   *Frozen   `json:"frozen,omitempty"`
	Reaped   *Reaped   `json:"reaped,omitempty"`
	Probed   *Probed   `json:"probed,omitempty"`
}

// Prepare asks for a sandbox that is nobody's yet, for Create to take over on the same connection. It says nothing of whose it will be: what Create
// wants otherwise than it is here is built from the beginning instead.
type Prepare struct {
	// Name is the run's whose name the control group has; the one that takes the sandbox over has another. See Reap.
	Name     ident.Run `json:"name"`
	Level    string    `json:"level"`
	Hostname string    `json:"hostname"`
	RootFS   string    `json:"rootfs,omitempty"`
	RootDisk string    `json:"root_disk,omitempty"` // as in Create
	// Limits are those that most sandboxes will have. Until it is taken over it has narrower ones, unless it is a virtual machine, which is of that size from its start.
	Limits Limits `json:"limits"`
	// UIDBase is as in Create, which must say the same.
	UIDBase uint32 `json:"uid_base,omitempty"`
}

// Prepared says that the sandbox waits. It lets no packet through, sees no folder, and runs nothing but programs of ours.
type Prepared struct {
	PID int `json:"pid"` // of process 1, on the host
}

// Create asks for a sandbox. With it may come a file that is held open for the sandbox's life (the run's lock), and after that one for words about troubles.
type Create struct {
	Run   ident.Run `json:"run"`
	Level string    `json:"level"`
	// Platform is how gVisor's kernel has programs run: systrap, or kvm. Empty means systrap, and is all that there is at other levels.
	Platform string `json:"platform,omitempty"`
	Hostname string `json:"hostname"`
	// RootFS is a directory tree to use as root; empty means the host's own root, read-only under an overlay.
	RootFS string `json:"rootfs,omitempty"`
	// RootDisk is where a disk made of RootFS is kept for the next sandbox, at levels that need one; it is made if it is missing. Empty means: kept nowhere.
	RootDisk  string     `json:"root_disk,omitempty"`
	Workspace *Workspace `json:"workspace,omitempty"`
	Mounts    []Mount    `json:"mounts,omitempty"`
	Limits    Limits     `json:"limits"`
	// Scratch is the kind of scratch: memory, or encrypted, which lies in a file without a name in ScratchDir. Empty means memory.
	Scratch    string `json:"scratch,omitempty"`
	ScratchDir string `json:"scratch_dir,omitempty"`
	// BestEffort names limits and features that may be missing; see Created.Weaker.
	BestEffort []string `json:"best_effort,omitempty"`
	// Networks and Everything say which raw addresses reach the gateway.
	Networks   []netip.Prefix `json:"networks,omitempty"`
	Everything bool           `json:"everything,omitempty"`
	// Boot is the line that process 1 reads first.
	Boot string `json:"boot"`
	// Changes is where changes of an overlay workspace are collected; it must not exist yet.
	Changes string `json:"changes,omitempty"`
	// Unprotected are paths whose changes are not set apart as dangerous.
	Unprotected []string `json:"unprotected,omitempty"`
	// Trust is added to the sandbox's list of certificate authorities, in PEM.
	Trust []byte `json:"trust,omitempty"`
	// UIDBase is the first of 65536 host ids that the sandbox's ids are mapped to, where the supervisor is root.
	UIDBase uint32 `json:"uid_base,omitempty"`
	// Snapshot says where the sandbox is kept when it has come to rest, should the caller want that then; see Keep. Nil: nowhere.
	Snapshot *Snapshot `json:"snapshot,omitempty"`
	// From is the directory of a snapshot that the sandbox continues. Its root, folder and mounts are those of the snapshot, and its size must be.
	From string `json:"from,omitempty"`
}

// Snapshot is where a sandbox is kept.
type Snapshot struct {
	// Making is a directory of the caller's with nothing but his own description in it. It becomes Dir, where nothing may be, once the snapshot is whole; without one it is removed.
	Making string `json:"making"`
	Dir    string `json:"dir"`
}

// Keep says whether a snapshot is wanted, once the command has ended and its caller knows how. What was wanted may be taken back while it is being written. Until one or the other
// is said the sandbox waits a moment.
type Keep struct {
	Wanted bool `json:"wanted"`
}

// Kept says what came of a snapshot that was wanted.
type Kept struct {
	Bytes int64  `json:"bytes,omitempty"` // that its own files take on the disk
	Error string `json:"error,omitempty"` // why there is none
}

// Workspace is the folder that the command works on.
type Workspace struct {
	Source string `json:"source"` // host path
	Target string `json:"target"` // path inside
	Mode   string `json:"mode"`   // overlay, rw or ro
	// Alone says that no program of the host works in the folder, so that nobody can listen there whom the sandbox must not reach.
	Alone bool `json:"alone,omitempty"`
	// Pins and ReadOnly are paths below it, in mode rw: directories that cannot be moved away, and what stays read-only. File names are bytes, not text.
	Pins     [][]byte `json:"pins,omitempty"`
	ReadOnly [][]byte `json:"read_only,omitempty"`
}

// Mount is one more host path inside.
type Mount struct {
	Source string `json:"source"`
	Target string `json:"target"`
	Write  bool   `json:"write,omitempty"`
}

// Limits bound a sandbox. Zero means the supervisor's default, which may be none; a limit that is set is enforced or refused.
type Limits struct {
	MilliCPUs int64 `json:"milli_cpus,omitempty"`
	Memory    int64 `json:"memory,omitempty"`
	PIDs      int64 `json:"pids,omitempty"`
	OpenFiles int64 `json:"open_files,omitempty"`
	Disk      int64 `json:"disk,omitempty"`
	Files     int64 `json:"files,omitempty"` // on scratch
}

// Created says that process 1 is being started. The listening sockets come with it, in the order of netns.Listeners.
type Created struct {
	PID int `json:"pid"` // of process 1, on the host
	// Weaker names what is weaker than usual or than asked for, such as "memory: not limited".
	Weaker []string `json:"weaker,omitempty"`
	// Warm says that it was prepared before it was asked for.
	Warm bool `json:"warm,omitempty"`
}

// Kill ends the sandbox now. Reason comes back in Ended.
type Kill struct {
	Reason string `json:"reason"`
}

// Freeze stops every process of a sandbox, or lets them go on, or only asks.
type Freeze struct {
	// Run is whose, or after whom its control group is named, in a call of its own. On a sandbox's own connection it is left out: nobody there can ask about another.
	Run ident.Run `json:"run,omitempty"`
	// Want is what the processes are to do; WantNothing changes nothing.
	Want Want `json:"want"`
	// Ask comes back in the answer, so that one which comes late is not taken for another's.
	Ask uint64 `json:"ask,omitempty"`
}

// Want is what a caller wants of a sandbox's processes. The zero value changes nothing.
type Want uint8

// What can be wanted.
const (
	WantNothing Want = iota
	WantPaused
	WantRunning
)

// Frozen says what a sandbox's processes do, as the kernel has it.
type Frozen struct {
	Paused bool   `json:"paused"` // every one of them is stopped, or about to be
	Ask    uint64 `json:"ask,omitempty"`
	// Refused says why what was wanted was not done. It is not the end of the sandbox.
	Refused *Refused `json:"refused,omitempty"`
}

// GivenUp is the reason of a caller who does not want to wait for what a sandbox still has to tell.
const GivenUp = "given up"

// Ended says what of the sandbox was looked for and not found any more. Only what was looked for is listed: the kernel frees scratch memory and
// namespaces with their last user, which is not observed, and the gateway itself holds the network namespace until it ends.
type Ended struct {
	// How is empty when process 1 left by itself after the command's end, else why the sandbox ended.
	How         string   `json:"how,omitempty"`
	OutOfMemory int      `json:"out_of_memory,omitempty"` // processes killed at the memory limit
	Erased      []string `json:"erased"`                  // what was checked to be gone
	Problems    []string `json:"problems,omitempty"`      // what could not be removed
	// Receipt says of each thing that the sandbox had what became of it; Erased and Problems are in it.
	Receipt []receipt.Item `json:"receipt,omitempty"`
	// Hits say which limits were met.
	Hits Hits `json:"hits,omitzero"`
	// Changed counts the collected changes, Skipped what could not be collected; CollectError says why there are none.
	Changed      int    `json:"changed,omitempty"`
	Skipped      int    `json:"skipped,omitempty"`
	CollectError string `json:"collect_error,omitempty"`
	// Kept is nil where no snapshot was wanted.
	Kept *Kept `json:"kept,omitempty"`
}

// Hits say how often a sandbox met a limit that is kept by the kernel, as far as that can be seen from outside.
type Hits struct {
	CPU   time.Duration `json:"cpu,omitempty"`   // for how long it was kept from running
	PIDs  int64         `json:"pids,omitempty"`  // starts of processes and threads that were refused; 1 where it can only be seen that the limit was met
	Disk  bool          `json:"disk,omitempty"`  // scratch was full at the end
	Files bool          `json:"files,omitempty"` // it had no room for another file
}

// Refused says why a call was not carried out.
type Refused struct {
	Kind   fault.Kind `json:"kind"`
	Public string     `json:"public"`
	Hint   string     `json:"hint,omitempty"`
	Detail string     `json:"detail,omitempty"`
}

// Err turns the refusal back into an error.
func (r *Refused) Err() error {
	e := fault.New(r.Kind, "%s", r.Public)
	e.Hint = r.Hint
	if r.Detail != "" {
		e.Cause = detail(r.Detail)
	}
	return e
}

type detail string

func (d detail) Error() string { return string(d) }

// Reap removes what a dead sandbox left behind.
type Reap struct {
	Run ident.Run `json:"run"`
}

// Reaped says what is gone and what is not.
type Reaped struct {
	Erased   []string       `json:"erased"`
	Problems []string       `json:"problems,omitempty"`
	Receipt  []receipt.Item `json:"receipt,omitempty"`
}

// Probe asks what this host can enforce.
type Probe struct{}

// Probed answers Probe.
type Probed struct {
	Features []Feature `json:"features"`
}

// Feature is one thing that the host can enforce or not.
type Feature struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Need   bool   `json:"need"` // without it no sandbox starts
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"`
}

// Patience is how long the supervisor waits for the kernel to let go of processes and control groups.
const Patience = 10 * time.Second

// FreezePatience is how long the processes of a sandbox may take to stop: they do within milliseconds, unless the kernel holds one of them.
const FreezePatience = 5 * time.Second
