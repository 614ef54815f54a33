// Package confine (GATEWAY) takes away from the calling process what a gateway does not need, before it parses the first hostile byte.
//
// Self leaves it a user without privileges, no capability, no way to gain any, few files, and the system calls of seccomp.Gateway.
// It then reads back what the kernel says about every thread and fails if that is not what was meant.
//
// When you change what the gateway does with the kernel, also change seccomp.Gateway, and let Self's tests do it after confinement.
package confine

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/seccomp"
)

// Config says what the process becomes and which files it may still open. Its zero value serves an ordinary user: no files but those
// of name resolution, certificates and time zones, and no file to write.
type Config struct {
	UID, GID   int      // who a process of user 0 becomes; both above 0. Other processes stay who they are
	ReadPaths  []string // files and directories to read besides the standard ones; each absolute and present
	WritePaths []string // files and directories to read and change; each absolute and present

	// BestEffort lets a process go on under a kernel without Landlock, which then reads and writes what its user may.
	// Report.Missing says so.
	BestEffort bool
}

// Report says what holds for the process, as read back from the kernel where the kernel tells.
type Report struct {
	UID, GID int
	Groups   []int    // supplementary groups that an ordinary user cannot leave
	Bounding uint64   // capabilities in the bounding set, which counts only at an exec: there is none any more
	Landlock int      // version of Landlock's interface in force, 0 for none
	Filter   int      // instructions in the system call filter
	Threads  int      // threads that were verified
	Missing  []string // what this kernel could not enforce, a sentence each
}

// Enforced lists what holds, for people.
func (r Report) Enforced() []string {
	if r.Threads == 0 {
		return nil
	}
	list := []string{
		fmt.Sprintf("user %d, group %d", r.UID, r.GID),
		"no capabilities, no_new_privs",
		fmt.Sprintf("seccomp filter on all threads, %d instructions", r.Filter),
	}
	if len(r.Groups) == 0 {
		list = append(list, "no supplementary groups")
	}
	if r.Landlock > 0 {
		list = append(list, fmt.Sprintf("files by Landlock, version %d", r.Landlock))
	}
	return list
}

// Self confines every thread of the calling process, for good. Files and sockets that are open stay usable. What must be open later and
// is not under Config's paths, the terminal for one, is opened before. A child started before can be waited for, but not signalled.
//
// After an error the process may be half confined; the caller ends it.
func Self(cfg Config) (Report, error) {
	plan, err := newPlan(cfg)
	if err != nil {
		return Report{}, err
	}
	if err := plan.dropPrivileges(); err != nil {
		return Report{}, err
	}
	if err := plan.restrictFiles(); err != nil {
		return Report{}, err
	}
	if err := seccomp.InstallAll(plan.filter); err != nil {
		return Report{}, fmt.Errorf("install the gateway's system call filter: %w", err)
	}
	return plan.verify()
}

// plan is what Self has found out before it changes anything.
type plan struct {
	cfg      Config
	root     bool // may drop user and groups
	uid, gid int  // after
	landlock int  // version to use, 0 for none
	filter   []unix.SockFilter
	before   status
}

func newPlan(cfg Config) (*plan, error) {
	p := &plan{cfg: cfg, uid: os.Getuid(), gid: os.Getgid(), landlock: landlockVersion()}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if os.Getuid() == 0 || os.Geteuid() == 0 {
		if cfg.UID <= 0 || cfg.GID <= 0 {
			return nil, fault.New(fault.Invalid, "a gateway started by root needs an ordinary user and group to become, not %d:%d", cfg.UID, cfg.GID)
		}
		p.root, p.uid, p.gid = true, cfg.UID, cfg.GID
	}
	if p.landlock == 0 && !cfg.BestEffort {
		return nil, fault.New(fault.Unsupported, "this kernel cannot limit the files of the gateway: it has no Landlock").
			WithHint("boot a kernel 5.13 or later with landlock in its lsm= list, or accept it with --best-effort")
	}
	filter, err := seccomp.Compile(seccomp.Gateway(os.Getpid()), seccomp.Native())
	if err != nil {
		return nil, fault.New(fault.Unsupported, "no system call filter for this machine").Because(err)
	}
	p.filter = filter
	p.before, err = readStatus("/proc/thread-self/status")
	if err != nil {
		return nil, fault.New(fault.Unsupported, "cannot read the state of this process").Because(err).WithHint("mount /proc")
	}
	return p, nil
}

func (c *Config) check() error {
	for _, list := range [][]string{c.ReadPaths, c.WritePaths} {
		for _, path := range list {
			if !filepath.IsAbs(path) || filepath.Clean(path) != path {
				return fault.New(fault.Invalid, "path %q: write it absolute and without detours", path)
			}
		}
	}
	return nil
}
