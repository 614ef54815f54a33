package supervisor

import (
	"os"
	"slices"

	"github.com/cofferdam/cofferdam/internal/cgroup"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/isolation/container"
	"github.com/cofferdam/cofferdam/internal/isolation/gvisor"
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
	if spec.RootFS == "" {
		return container.SingleID(), nil, nil
	}
	ids, err := container.SubordinateIDs()
	if err != nil {
		return container.SingleID(), []string{"ids: only root exists inside (" + err.Error() + ")"}, nil
	}
	return ids, nil, nil
}

// limit makes the control group. Limits that this host cannot enforce are refused, unless they are named in BestEffort; then they are told.
// Processes are bounded by a resource limit of the user namespace everywhere, and by the control group where there is one.
func (b *built) limit() (err error) {
	l := cgroup.Limits{MilliCPUs: b.spec.Limits.MilliCPUs, Memory: b.spec.Limits.Memory, PIDs: b.spec.Limits.PIDs}
	host := cgroup.Detect()
	for _, controller := range host.Missing(l.Controllers()) {
		switch controller {
		case "pids":
			l.PIDs = 0
			continue
		case "memory":
			l.Memory = 0
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
	if len(l.Controllers()) == 0 {
		return nil
	}
	if l.PIDs > 0 {
		l.PIDs += frame.ReservedProcesses
		if b.spec.Level == gvisor.Level {
			l.PIDs = gvisor.HostTasks(l.PIDs)
		}
	}
	b.group, err = host.Create(groupName(b.spec.Run), l)
	if err != nil {
		return fault.New(fault.Unavailable, "cannot make a control group").Because(err)
	}
	return nil
}
