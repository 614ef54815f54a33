package supervisor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/cgroup"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/isolation/container"
	"github.com/cofferdam/cofferdam/internal/isolation/gvisor"
	"github.com/cofferdam/cofferdam/internal/rights"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// probe tries what sandboxes need, one by one, so that doctor can name what is missing and how to get it.
func probe(ctx context.Context, runsc string) []call.Feature {
	features := []call.Feature{privilege(), kernelVersion(), userNamespaces()}
	features = append(features, controlGroups()...)
	return append(features, landlock(), seccompFilter(), unixSockets(), levelGVisor(ctx, runsc), platformKVM(ctx, runsc))
}

func privilege() call.Feature {
	f := call.Feature{Name: "privilege", OK: true, Detail: "root: ids are mapped through mounts, the root file system is an overlay"}
	if os.Geteuid() != 0 {
		f.Detail = fmt.Sprintf("user %d (rootless): the host's system directories are read-only inside, one user id exists there", os.Geteuid())
	}
	return f
}

func kernelVersion() call.Feature {
	var u unix.Utsname
	f := call.Feature{Name: "kernel", Need: true, Remedy: "use Linux 6.6 or later"}
	if err := unix.Uname(&u); err != nil {
		f.Detail = err.Error()
		return f
	}
	release := unix.ByteSliceToString(u.Release[:])
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		f.Detail = "cannot read release " + release
		return f
	}
	f.OK = major > 6 || major == 6 && minor >= 6
	f.Detail = "Linux " + release
	return f
}

// userNamespaces really makes one, with the other namespaces that a sandbox has.
func userNamespaces() call.Feature {
	f := call.Feature{Name: "namespaces", Need: true, Remedy: "allow unprivileged user namespaces: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns"}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{NothingName}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if err := cmd.Run(); err != nil {
		f.Detail = err.Error()
		return f
	}
	f.OK, f.Detail = true, "user, mount, process, network, IPC and host name namespaces can be made"
	return f
}

// NothingName is argv[0] of a supervisor that is only to prove that it can be started.
const NothingName = "cofferdam-nothing"

func controlGroups() []call.Feature {
	missing := cgroup.Detect().Missing([]string{"memory", "cpu", "pids"})
	var features []call.Feature
	for _, name := range []string{"memory", "cpu", "pids"} {
		f := call.Feature{Name: "limit " + name, OK: true, Detail: "control group"}
		for _, m := range missing {
			if m == name {
				f.OK, f.Detail = false, "no control group is delegated to this user"
				f.Remedy = "systemd-run --user --scope -p Delegate=yes cofferdam …"
			}
		}
		if name == "pids" && !f.OK {
			f.OK, f.Detail, f.Remedy = true, "resource limit of the user namespace", ""
		}
		features = append(features, f)
	}
	return append(features, call.Feature{Name: "limit disk", OK: true, Detail: "size of scratch memory"})
}

func landlock() call.Feature {
	abi := rights.LandlockABI()
	return call.Feature{Name: "landlock", OK: abi > 0, Detail: fmt.Sprintf("ABI %d", abi), Remedy: "add landlock to the kernel's lsm= list, or run without it: --best-effort landlock"}
}

func seccompFilter() call.Feature {
	data, err := os.ReadFile("/proc/sys/kernel/seccomp/actions_avail")
	f := call.Feature{Name: "seccomp", Need: true, Remedy: "use a kernel with CONFIG_SECCOMP_FILTER"}
	if err != nil {
		f.Detail = err.Error()
		return f
	}
	f.OK = strings.Contains(string(data), "kill_process") && strings.Contains(string(data), "errno")
	f.Detail = "filters with " + strings.Join(strings.Fields(string(data)), ", ")
	return f
}

func levelGVisor(ctx context.Context, runsc string) call.Feature {
	f := call.Feature{Name: "level " + gvisor.Level, Remedy: gvisor.Remedy}
	version, err := gvisor.Probe(ctx, runsc)
	if err != nil {
		f.Detail = err.Error()
		return f
	}
	f.OK, f.Detail = true, "runsc "+version+", systrap"
	return f
}

// platformKVM says whether level gvisor can have its programs run on the processor's virtualisation. That nobody has seen it do so stands there either way.
func platformKVM(ctx context.Context, runsc string) call.Feature {
	const unseen = "not run on hardware yet"
	f := call.Feature{Name: "gvisor platform " + gvisor.KVM}
	if _, err := os.Stat(runsc); err != nil {
		f.Detail, f.Remedy = gvisor.Program+" is not installed beside the other programs; "+unseen, gvisor.Remedy
		return f
	}
	if err := gvisor.ProbeKVM(ctx); err != nil {
		f.Detail, f.Remedy = fault.Public(err)+"; "+unseen, fault.HintOf(err)
		return f
	}
	f.OK, f.Detail = true, "the processor executes; "+unseen
	return f
}

// unixSockets says whether every sandbox of this user has to do without them.
func unixSockets() call.Feature {
	f := call.Feature{Name: "unix sockets", Remedy: "run as root, or keep them where they can reach the host's programs: --best-effort " + container.UnixSockets}
	direct, err := container.SeenDirectly()
	switch {
	case err != nil:
		f.Detail = err.Error()
	case len(direct) > 0:
		f.Detail = "none with names inside: other file systems are mounted below " + strings.Join(direct, ", ") + ", over which an ordinary user can lay no overlay"
	default:
		f.OK, f.Detail = true, "the sandbox's own; none with names while a folder is shared for writing"
	}
	return f
}
