// Package call (SANDBOX) is what is said between the control plane and the supervisor: a small fixed set of calls over one Unix socket.
//
// One connection serves one call. For a sandbox the caller says [Create] once; the supervisor answers with [Created] and four listening sockets, or with [Refused];
// later it says [Ended] once. In between the caller may say [Kill]. A connection that breaks ends its sandbox.
// [Reap] and [Probe] are calls of their own.
package call

import (
	"net/netip"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
)

// Request is one message to the supervisor; exactly one member is set.
type Request struct {
	Create *Create `json:"create,omitempty"`
	Kill   *Kill   `json:"kill,omitempty"`
	Reap   *Reap   `json:"reap,omitempty"`
	Probe  *Probe  `json:"probe,omitempty"`
}

// Reply is one message from the supervisor; exactly one member is set.
type Reply struct {
	Created *Created `json:"created,omitempty"`
	Refused *Refused `json:"refused,omitempty"`
	Ended   *Ended   `json:"ended,omitempty"`
	Reaped  *Reaped  `json:"reaped,omitempty"`
	Probed  *Probed  `json:"probed,omitempty"`
}

// Create asks for a sandbox.
type Create struct {
	Run      ident.Run `json:"run"`
	Level    string    `json:"level"`
	Hostname string    `json:"hostname"`
	// RootFS is a directory tree to use as root; empty means the host's own root, read-only under an overlay.
	RootFS    string     `json:"rootfs,omitempty"`
	Workspace *Workspace `json:"workspace,omitempty"`
	Mounts    []Mount    `json:"mounts,omitempty"`
	Limits    Limits     `json:"limits"`
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
	Disk      int64 `json:"disk,omitempty"`
}

// Created says that process 1 is being started. The listening sockets come with it, in the order of netns.Listeners.
type Created struct {
	PID int `json:"pid"` // of process 1, on the host
	// Weaker names what is weaker than usual or than asked for, such as "memory: not limited".
	Weaker []string `json:"weaker,omitempty"`
}

// Kill ends the sandbox now. Reason comes back in Ended.
type Kill struct {
	Reason string `json:"reason"`
}

// Ended says what of the sandbox was looked for and not found any more. Only what was looked for is listed: the kernel frees scratch memory and
// namespaces with their last user, which is not observed, and the gateway itself holds the network namespace until it ends.
type Ended struct {
	// How is empty when process 1 left by itself after the command's end, else why the sandbox ended.
	How         string   `json:"how,omitempty"`
	OutOfMemory int      `json:"out_of_memory,omitempty"` // processes killed at the memory limit
	Erased      []string `json:"erased"`                  // what was checked to be gone
	Problems    []string `json:"problems,omitempty"`      // what could not be removed
	// Changed counts the collected changes, Skipped what could not be collected; CollectError says why there are none.
	Changed      int    `json:"changed,omitempty"`
	Skipped      int    `json:"skipped,omitempty"`
	CollectError string `json:"collect_error,omitempty"`
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
	Erased   []string `json:"erased"`
	Problems []string `json:"problems,omitempty"`
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
