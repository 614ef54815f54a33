package supervisor

import (
	"context"
	"errors"
	"slices"

	"github.com/cofferdam/cofferdam/internal/isolation/container"
	"github.com/cofferdam/cofferdam/internal/isolation/vm"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// A virtual machine is prepared as a template: it was up and idle once, and no process of it is left. Each prepared machine has a template of its own, so that no two
// sandboxes have memory in common.

// isMachine says whether sandboxes of a level are virtual machines.
func isMachine(level string) bool { return slices.Contains(vm.Levels(), level) }

// prepareMachine makes a template. On error nothing is left.
func (s *Server) prepareMachine(ctx context.Context, p call.Prepare) (*warm, error) {
	spec := call.Create{Run: p.Name, Level: p.Level, Hostname: p.Hostname, Limits: p.Limits, UIDBase: p.UIDBase, BestEffort: []string{"memory", "cpus"}}
	b := &built{spec: spec}
	ids, _, err := chooseIDs(spec)
	if err != nil {
		return nil, err
	}
	if err := b.limit(); err != nil {
		return nil, err
	}
	starting, cancel := context.WithTimeout(ctx, patience(spec.Level))
	defer cancel()
	t, err := vm.PrepareTemplate(starting, s.machines(), spec, container.Options{Runner: s.Runner, Cgroup: b.group, IDs: ids})
	if err = b.undo(err); err != nil { // its process is gone, and with it the need of a bound
		if t != nil {
			t.Close()
		}
		return nil, err
	}
	return &warm{asked: p, template: t, half: &built{}}, nil
}

// machine switches a machine on, or makes a copy of the one that was prepared, if that is one as is wanted.
func (s *Server) machine(ctx context.Context, b *built, o container.Options) (*vm.Sandbox, error) {
	if b.template == nil {
		return vm.Start(ctx, s.machines(), b.spec, o)
	}
	v, err := vm.StartFrom(ctx, s.machines(), b.template, b.spec, o)
	if err == nil {
		b.warm = true
		return v, nil
	}
	v, again := vm.Start(ctx, s.machines(), b.spec, o) // what is wrong with the specification itself is said here too
	if again != nil {
		return nil, errors.Join(again, err)
	}
	return v, nil
}
