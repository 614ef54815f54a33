package supervisor

import (
	"context"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/isolation/container"
	"github.com/cofferdam/cofferdam/internal/isolation/gvisor"
	"github.com/cofferdam/cofferdam/internal/isolation/vm"
	"github.com/cofferdam/cofferdam/internal/netns"
	"github.com/cofferdam/cofferdam/internal/rights"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// levels are the ways to build, by the names that callers use. There is no default.
func levels() map[string]func(*Server, context.Context, *built, container.Options) (netns.Listeners, error) {
	return map[string]func(*Server, context.Context, *built, container.Options) (netns.Listeners, error){
		"container": (*Server).startContainer, gvisor.Level: (*Server).startGVisor, vm.Level: (*Server).startVM, vm.LevelEmulated: (*Server).startVM,
	}
}

// levelNames lists the levels for people.
func levelNames() string { return strings.Join(slices.Sorted(maps.Keys(levels())), ", ") }

// machinePatience bounds the start of a machine whose processor is imitated, which takes two seconds on a host that does nothing else.
const machinePatience = 2 * time.Minute

// patience bounds the making of a sandbox.
func patience(level string) time.Duration {
	if level == vm.LevelEmulated {
		return machinePatience
	}
	return startPatience
}

func (s *Server) startContainer(ctx context.Context, b *built, o container.Options) (netns.Listeners, error) {
	if rights.LandlockABI() == 0 {
		if !slices.Contains(b.spec.BestEffort, "landlock") {
			return netns.Listeners{}, fault.New(fault.Unsupported, "this kernel has no Landlock").
				WithHint("add landlock to the kernel's lsm= list, or run without it: --best-effort landlock")
		}
		b.weaker = append(b.weaker, "landlock: the kernel has none")
	}
	c, err := container.Start(ctx, b.spec, o)
	if err != nil {
		return netns.Listeners{}, err
	}
	b.box, b.upper, b.weaker = c, c.Upper, append(b.weaker, c.Weaker...)
	return c.Listeners, nil
}

// checkPlatform refuses a platform at a level that has none.
func checkPlatform(spec call.Create) error {
	if spec.Platform != "" && spec.Level != gvisor.Level {
		return fault.New(fault.Invalid, "isolation level %s has no platforms, as level %s has", spec.Level, gvisor.Level)
	}
	return nil
}

// startGVisor needs no Landlock: what that would keep a sandbox from, gVisor's kernel cannot do.
func (s *Server) startGVisor(ctx context.Context, b *built, o container.Options) (netns.Listeners, error) {
	o.Kernel = &container.Kernel{Program: s.GVisor}
	g, err := gvisor.Start(ctx, b.spec, o)
	if err != nil {
		return netns.Listeners{}, err
	}
	b.box, b.upper, b.weaker = g, g.Upper, append(b.weaker, g.Weaker...)
	return g.Listeners, nil
}

// startVM needs no Landlock either: what a sandbox does to files there, it does to a kernel of its own.
func (s *Server) startVM(ctx context.Context, b *built, o container.Options) (netns.Listeners, error) {
	v, err := vm.Start(ctx, s.machines(), b.spec, o)
	if err != nil {
		return netns.Listeners{}, err
	}
	b.box, b.upper, b.weaker, b.started = v, v.Upper, append(b.weaker, v.Weaker...), v.Since()
	return v.Listeners, nil
}

// machines is the folder of the kernel of virtual machines, which lies beside the programs.
func (s *Server) machines() string { return filepath.Join(filepath.Dir(s.Runner), boot.FolderName) }
