package confine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"unsafe"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/psx"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/seccomp"
)

// ImageConfig says what a process that pulls an image may still change.
type ImageConfig struct {
	WritePaths []string // directories to read and change, symbolic links included; each absolute and present
	PlacePath  string   // a directory into which directories are moved, whose content is neither read nor changed; absolute and present

	// BestEffort lets a process go on under a kernel without Landlock, which then reads and writes what its user may.
	BestEffort bool
}

// resolverFiles are all that is read besides the paths of the configuration: names have to be resolved, and those are no secrets. Certificates are read before.
func resolverFiles() []string {
	return []string{"/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf"}
}

// imageCapabilities is what root keeps: to give unpacked files to their owners, to make hard links to files that were given away, and to remove what was given away if it is
// not to be kept. The filter lets owners, modes, times and attributes be changed through open files only, and Landlock says which files can be opened, so that none of them
// reaches beyond the paths.
const imageCapabilities = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FOWNER

// Image confines every thread of the calling process, for good, to what it takes to fetch an image from a registry and to unpack it: the network, the directories of
// the configuration, and the files of name resolution. A process of root stays root, with three capabilities that reach no further; one of an ordinary user keeps none.
// No program is started, no socket listens, and no local socket is made.
//
// After an error the process may be half confined; the caller ends it.
func Image(cfg ImageConfig) error {
	p := &imagePlan{cfg: cfg, root: os.Geteuid() == 0}
	for _, step := range []func() error{p.prepare, p.dropPrivileges, p.restrictFiles, p.installFilter, p.verify} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// ImageMissing says what this kernel cannot enforce of Image, a sentence each.
func ImageMissing() []string {
	if landlockVersion() >= leastLandlock {
		return nil
	}
	return []string{"this kernel has no Landlock, or an early one: what makes images can open every file that its user can"}
}

// leastLandlock is the first version of Landlock under which something can be moved between directories, as finished images are.
const leastLandlock = 2

// imagePlan is what Image has found out before it changes anything.
type imagePlan struct {
	cfg    ImageConfig
	root   bool
	keep   uint64 // capabilities
	filter []unix.SockFilter
	lock   int // version of Landlock's interface, 0 for none
	before status
}

func (p *imagePlan) prepare() (err error) {
	paths := Config{WritePaths: append(slices.Clone(p.cfg.WritePaths), p.cfg.PlacePath)}
	if err := paths.check(); err != nil {
		return err
	}
	p.lock = landlockVersion()
	if p.lock < leastLandlock {
		if !p.cfg.BestEffort {
			return fault.New(fault.Unsupported, "this kernel cannot limit the files of a process that pulls images: it has no Landlock, or an early one").
				WithHint("boot a kernel 5.19 or later with landlock in its lsm= list, or accept it with --best-effort landlock")
		}
		p.lock = 0
	}
	if p.filter, err = seccomp.Compile(imageProfile(os.Getpid()), seccomp.Native()); err != nil {
		return fault.New(fault.Unsupported, "no system call filter for this machine").Because(err)
	}
	if p.before, err = readStatus("/proc/thread-self/status"); err != nil {
		return fault.New(fault.Unsupported, "cannot read the state of this process").Because(err).WithHint("mount /proc")
	}
	if p.root {
		p.keep = imageCapabilities & p.before.permitted
	}
	return nil
}

// imageProfile is the gateway's profile, and besides what unpacking takes, all of it through descriptors.
func imageProfile(pid int) seccomp.Profile {
	profile := seccomp.Gateway(pid)
	through := []string{"fchown", "fsetxattr", "syncfs"}
	rules := []seccomp.Rule{
		{Action: seccomp.Allow, Calls: through, Reason: "owners and attributes of files that are open, which Landlock lets be opened"},
		{Action: seccomp.Allow, Calls: []string{"utimensat"}, When: []seccomp.Condition{{Arg: 1, Op: seccomp.EqualTo, Value: 0}}, Reason: "times, of open files too: without a name"},
	}
	for _, r := range profile.Rules {
		r.Calls = slices.DeleteFunc(slices.Clone(r.Calls), func(call string) bool { return slices.Contains(through, call) })
		if len(r.Calls) > 0 {
			rules = append(rules, r)
		}
	}
	profile.Rules = rules
	return profile
}

// dropPrivileges takes everything but those capabilities away, on all threads at once.
func (p *imagePlan) dropPrivileges() error {
	if err := allThreadsPrctl(unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if p.root {
		err := setSecurebits()
		if err == nil {
			err = syscall.Setgroups(nil)
		}
		if err != nil {
			return fault.New(fault.Unsupported, "root here cannot give up its privileges").Because(err).WithHint("start as an ordinary user, or with the capabilities SETPCAP and SETGID")
		}
	}
	if err := keepCapabilities(p.keep); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil { // as Self has it
		return fmt.Errorf("clear dumpable: %w", err)
	}
	return nil
}

// keepCapabilities leaves these in the permitted and effective sets, and nothing in the others.
func keepCapabilities(keep uint64) error {
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	low, high := uint32(keep), uint32(keep>>32)
	sets := &[2]unix.CapUserData{{Effective: low, Permitted: low}, {Effective: high, Permitted: high}}
	_, _, errno := psx.Syscall3(unix.SYS_CAPSET, uintptr(unsafe.Pointer(header)), uintptr(unsafe.Pointer(sets)), 0)
	runtime.KeepAlive(header)
	runtime.KeepAlive(sets)
	if errno != 0 {
		return errno
	}
	return nil
}

// restrictFiles leaves the paths of the configuration and name resolution.
func (p *imagePlan) restrictFiles() error {
	if p.lock == 0 {
		return nil // accepted by name
	}
	full := landlockConfigs()[p.lock]
	config := landlock.Config{HandledAccessFS: full.HandledAccessFS, Scoped: full.Scoped}
	handled := config.HandledAccessFS
	unpack := (writeTree | landlock.AccessFSSet(ll.AccessFSMakeSym)) & handled
	place := landlock.AccessFSSet(ll.AccessFSMakeDir|ll.AccessFSRefer) & handled
	rules := []landlock.Rule{landlock.PathAccess(place, p.cfg.PlacePath), landlock.PathAccess(readTree, taskDir())} // threads: for verify
	for _, path := range p.cfg.WritePaths {
		rules = append(rules, landlock.PathAccess(unpack, path))
	}
	for _, path := range resolverFiles() {
		rule, err := fileRule(path, readFile, readFile, handled)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
			continue
		}
		if err != nil {
			return err
		}
		rules = append(rules, rule)
	}
	if err := config.Restrict(rules...); err != nil {
		return fmt.Errorf("limit the files of the pull: %w", err)
	}
	return nil
}

func (p *imagePlan) installFilter() error {
	if err := seccomp.InstallAll(p.filter); err != nil {
		return fmt.Errorf("install the system call filter for images: %w", err)
	}
	return nil
}

// verify reads back the state of every thread, as Self does.
func (p *imagePlan) verify() error {
	entries, err := os.ReadDir(taskDir())
	if err != nil {
		return fmt.Errorf("list threads to verify: %w", err)
	}
	verified := 0
	for _, entry := range entries {
		s, err := readStatus(filepath.Join(taskDir(), entry.Name(), "status"))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it ended
		}
		if err == nil {
			err = p.check(s)
		}
		if err != nil {
			return fmt.Errorf("verify thread %s: %w", entry.Name(), err)
		}
		verified++
	}
	if verified == 0 {
		return errors.New("no thread to verify")
	}
	probe := plan{landlock: p.lock}
	return probe.probeFiles()
}

// check compares a thread with what was meant.
func (p *imagePlan) check(s status) error {
	switch {
	case s.permitted != p.keep || s.effective != p.keep || s.inheritable|s.ambient != 0:
		return fmt.Errorf("capabilities %#x, want %#x", s.permitted|s.effective|s.inheritable|s.ambient, p.keep)
	case p.root && len(s.groups) > 0:
		return fmt.Errorf("supplementary groups %v", s.groups)
	case s.noNewPrivs != 1:
		return errors.New("no_new_privs is not set")
	case s.seccomp != unix.SECCOMP_MODE_FILTER || p.before.filters >= 0 && s.filters != p.before.filters+1:
		return fmt.Errorf("seccomp mode %d, %d filters", s.seccomp, s.filters)
	}
	return nil
}
