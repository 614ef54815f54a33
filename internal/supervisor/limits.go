package supervisor

import (
	"os"
	"slices"

	"github.com/cofferdam/cofferdam/internal/cgroup"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/isolation/container"
	"github.com/cofferdam/cofferdam/internal/isolation/gvisor"
	"github.com/cofferdam/cofferdam/internal/isolation/vm"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// chooseIDs maps ids as strongly as this process may.
func chooseIDs(spec call.Create) (container.IDs, []string, error) {
	if os.Geteuid() == 0 {
		if spec.UIDBase < 1<<16 {
			return container.IDs{}, nil, fault.New(fault.Invalid, "user id base %d overlaps the host's users", spec.UIDBase)
		}
		return container.PrivilegedIDs(spec.UIDBase), nil, nil
	}
	if slices.Contains(vm.Levels(), spec.Level) { // ids inside are the machine's own; this is who its program is
		return container.SingleNobody(), nil, nil
	}
	if spec.RootFS == "" {
		return container.SingleID(), nil, nil
	}
	ids, err := container.SubordinateIDs()
	if err != nil {
		return container.SingleID(), []string{"ids: only root exists inside (" + err.Error() + ")"}, nil
	}
	return ids, nil, nil
}

// machine says whether the sandbox is a virtual machine.
func (b *built) machine() bool { return slices.Contains(vm.Levels(), b.spec.Level) }

// wanted are the limits of the control group: those that were asked for, in terms of what the host sees at this level. A machine's program is always bounded, since its
// size is known.
func (b *built) wanted() cgroup.Limits {
	l := cgroup.Limits{MilliCPUs: b.spec.Limits.MilliCPUs, Memory: b.spec.Limits.Memory, PIDs: b.spec.Limits.PIDs}
	if b.machine() {
		l.Memory, l.PIDs = vm.Memory(l.Memory)+vm.Overhead, vm.HostTasks
		return l
	}
	if l.PIDs > 0 {
		l.PIDs += frame.ReservedProcesses
		if b.spec.Level == gvisor.Level {
			l.PIDs = gvisor.HostTasks(l.PIDs)
		}
	}
	return l
}

// limit makes the control group, or bounds the one that is there anew. Limits that this host cannot enforce are refused, unless they are named in BestEffort; then they are told.
// Processes are bounded by a resource limit of the user namespace everywhere, and by the control group where there is one.
func (b *built) limit() (err error) {
	l := b.wanted()
	host := cgroup.Detect()
	for _, controller := range host.Missing(l.Controllers()) {
		switch controller {
		case "pids":
			l.PIDs = 0
			continue
		case "memory":
			l.Memory = 0
			if b.machine() {
				continue // the machine has no more than that
			}
		case "cpu":
			l.MilliCPUs = 0
		}
		name := map[string]string{"memory": "memory", "cpu": "cpus"}[controller]
		if !slices.Contains(b.spec.BestEffort, name) {
			return fault.New(fault.Unsupported, "no control group is delegated to this user, so %s cannot be limited", name).
				WithHint("start it with: systemd-run --user --scope -p Delegate=yes cofferdam …  or run without the limit: --best-effort %s", name)
		}
		b.weaker = append(b.weaker, name+": not limited (no delegated control group)")
	}
	if b.group == nil && !host.Groups(l) {
		return nil
	}
	if b.group != nil {
		err = b.group.Relimit(l)
	} else {
		b.group, err = host.Create(groupName(b.name()), l)
	}
	if err != nil {
		return fault.New(fault.Unavailable, "cannot make a control group").Because(err)
	}
	return nil
}
