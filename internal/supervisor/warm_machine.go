package supervisor

import (
	"context"
	"slices"

	"github.com/cofferdam/cofferdam/internal/isolation/vm"
	"github.com/cofferdam/cofferdam/internal/netns"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// isMachine says whether sandboxes of a level are virtual machines.
func isMachine(level string) bool { return slices.Contains(vm.Levels(), level) }

// prepareMachine builds a machine that is nobody's. On error nothing is left.
func (s *Server) prepareMachine(ctx context.Context, p call.Prepare) (*warm, error) {
	spec := call.Create{Run: p.Name, Level: p.Level, Hostname: p.Hostname, RootFS: p.RootFS, RootDisk: p.RootDisk, Limits: p.Limits, UIDBase: p.UIDBase, BestEffort: []string{"memory", "cpus"}}
	w := &warm{asked: p, half: &built{spec: spec}}
	var err error
	if w.options.IDs, _, err = chooseIDs(spec); err != nil {
		return nil, err
	}
	if err := w.half.limit(); err != nil {
		return nil, err
	}
	w.half.weaker = nil // said anew of the sandbox that it becomes
	w.options.Runner, w.options.Cgroup = s.Runner, w.half.group
	starting, cancel := context.WithTimeout(ctx, patience(spec.Level))
	defer cancel()
	if w.machine, err = vm.Prepare(starting, s.machines(), spec, w.options); err != nil {
		return nil, w.half.undo(err)
	}
	return w, nil
}

// finishMachine makes a prepared machine the sandbox that b, whose limits are set, is to be.
func finishMachine(ctx context.Context, b *built, w *warm) (*built, netns.Listeners, error) {
	v, err := w.machine.Finish(ctx, b.spec, w.options)
	if err != nil {
		return nil, netns.Listeners{}, err
	}
	b.box, b.upper, b.weaker, b.started = v, v.Upper, append(b.weaker, v.Weaker...), v.Since()
	return b, v.Listeners, nil
}
