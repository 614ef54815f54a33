package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/store"
)

const (
	// usualLife is how long a sandbox lives if nobody says otherwise.
	usualLife = 24 * time.Hour
	// workPath is where its workspace is inside.
	workPath = "/work"
)

// CreateSandbox makes a sandbox and returns when it runs.
func (s *Service) CreateSandbox(ctx context.Context, a Actor, in api.NewSandbox) (api.Sandbox, error) {
	if err := may(a, WriteSandboxes); err != nil {
		return api.Sandbox{}, err
	}
	agent, err := s.agent(ctx, s.DB, a.Tenant, in.Agent)
	if err != nil {
		return api.Sandbox{}, err
	}
	if err := s.enoughLeft(); err != nil {
		return api.Sandbox{}, err
	}
	o, spec, err := s.plan(ctx, a, agent, in)
	if err != nil {
		return api.Sandbox{}, err
	}
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	// From before it is in the store until it runs, or does not, nobody else looks after it.
	defer s.house.make(o.ID, giveUp)()
	if o, err = s.claim(ctx, o); err != nil {
		return api.Sandbox{}, err
	}
	if o, err = s.launch(ctx, o, spec); err != nil {
		return api.Sandbox{}, err
	}
	return showSandbox(o, agent.Name), nil
}

// plan checks what is asked for and says what is to be made.
func (s *Service) plan(ctx context.Context, a Actor, agent store.Object[AgentData], in api.NewSandbox) (store.Object[SandboxData], keeper.Spec, error) {
	var none store.Object[SandboxData]
	var spec keeper.Spec
	run := ident.NewRun()
	if err := checkSandbox(in); err != nil {
		return none, spec, err
	}
	l, err := s.orders(ctx, a.Tenant, agent, run.String(), "")
	if err != nil {
		return none, spec, err
	}
	doc := l.doc
	if len(l.once) > 0 { // such rules belong to a sandbox, and this one is not yet
		return none, spec, fault.New(fault.Internal, "rules for one crossing in a sandbox that is being made")
	}
	p, err := policy.Parse("", []byte(doc))
	if err != nil {
		return none, spec, fmt.Errorf("the policy in force for agent %s: %w", agent.ID, err)
	}
	if overlayLine(doc) > 0 { // stored before it was refused
		return none, spec, fault.New(fault.Invalid, "workspace.mode: %s", noOverlay).WithHint(noOverlayHint)
	}
	level, err := strongest(p, agent.Data.Isolation, in.Isolation)
	if err != nil {
		return none, spec, err
	}
	data := SandboxData{
		ReadOnly: readsOnly(p), Label: in.Name, Command: in.Command, TTY: in.TTY, Isolation: level.String(), CreatedBy: a.byline(), Policy: doc,
		Deadline: s.now().Add(lifetime(p, in.Seconds)).Truncate(time.Millisecond),
	}
	if len(data.Command) == 0 && !in.Hold {
		data.Command = agent.Data.Command
	}
	if in.TTY && len(data.Command) == 0 {
		return none, spec, fault.New(fault.Invalid, "tty: the sandbox has no main command").WithHint("leave it out: each command that you start later can have a terminal")
	}
	if in.Workspace != "" {
		w, err := find(ctx, s.DB, workspaces(), a.Tenant, "workspace", in.Workspace)
		if err != nil {
			return none, spec, err
		}
		data.Workspace = w.ID
	}
	o := store.Object[SandboxData]{ID: run.String(), Tenant: a.Tenant, Name: run.String() + " " + in.Name, Parent: agent.ID, State: string(api.Starting), Data: data}
	spec = keeper.Spec{
		Run: run, Tenant: a.Tenant, Agent: agent.ID, Principal: a.Principal(), Policy: doc, Then: l.then, Isolation: level.String(), Secrets: s.secretsDir(a.Tenant),
		Workspace: &keeper.Workspace{Dir: s.workDir(o), Path: workPath, Mode: folderMode(data.ReadOnly), Alone: true}, Env: environment(agent.Data.Environment, in.Environment),
		Command: data.Command, TTY: in.TTY, Deadline: data.Deadline,
	}
	return o, spec, nil
}

func checkSandbox(in api.NewSandbox) error {
	if in.Hold && len(in.Command) > 0 {
		return fault.New(fault.Invalid, "hold: a sandbox that waits has no main command").WithHint("leave out one of the two")
	}
	if in.Seconds < 0 || in.Seconds > int64(longest/time.Second) {
		return fault.New(fault.Invalid, "seconds: write 1 to %d", int64(longest/time.Second))
	}
	return errors.Join(checkText("name", in.Name, 100, false), checkCommand(in.Command), checkEnvironment(in.Environment))
}

// strongest is the policy's level of isolation, or a stronger one that the agent or the caller asks for.
func strongest(p *policy.Policy, levels ...string) (policy.Level, error) {
	level := cmp.Or(p.Isolation(), policy.Container)
	for _, text := range levels {
		if text == "" {
			continue
		}
		if err := checkIsolation(text, level); err != nil {
			return 0, err
		}
		var err error
		if level, err = policy.ParseLevel(text); err != nil {
			return 0, err
		}
	}
	return level, nil
}

// lifetime is how long a sandbox lives: as asked for, or as usual, but never longer than its policy lets it.
func lifetime(p *policy.Policy, seconds int64) time.Duration {
	timeout := p.Resources().Timeout
	life := time.Duration(seconds) * time.Second
	switch {
	case life == 0 && timeout > 0:
		return timeout
	case life == 0:
		return usualLife
	case timeout > 0:
		return min(life, timeout)
	}
	return life
}

// environment lays variables over each other, and sorts them so that the same request makes the same sandbox.
func environment(layers ...map[string]string) []string {
	all := map[string]string{}
	for _, layer := range layers {
		maps.Copy(all, layer)
	}
	list := make([]string, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		list = append(list, name+"="+all[name])
	}
	return list
}

// secretsDir is where a tenant's credentials and keys lie, "" if it has none.
func (s *Service) secretsDir(tenant string) string {
	dir, err := s.tenantDir(tenant)
	if err != nil {
		return ""
	}
	if _, err := os.Stat(dir); err != nil {
		return ""
	}
	return dir
}

// claim notes that a sandbox is about to exist, with what only it may have, in one step: the place among the tenant's sandboxes, the workspace.
func (s *Service) claim(ctx context.Context, o store.Object[SandboxData]) (store.Object[SandboxData], error) {
	settings, err := s.settings(ctx, o.Tenant)
	if err != nil {
		return o, err
	}
	var claimed store.Object[SandboxData]
	err = s.DB.Within(ctx, func(tx *store.DB) error {
		agent, err := agents().Get(ctx, tx, o.Tenant, o.Parent)
		if fault.KindOf(err) == fault.NotFound {
			return absent("agent")
		}
		if err != nil {
			return err
		}
		if agent.State == agentSuspended {
			return fault.New(fault.Conflict, "the agent is suspended").WithHint("an administrator can end that on the agent's page")
		}
		n, err := sandboxes().Count(ctx, tx, o.Tenant, store.Filter{States: liveStates()})
		if err != nil {
			return err
		}
		if n >= settings.MaxSandboxes {
			return fault.New(fault.TooMany, "there are %d sandboxes at once already, as many as the tenant may have", n).WithHint("stop one, or have an administrator raise the bound in the settings")
		}
		if err := s.claimWorkspace(ctx, tx, o); err != nil {
			return err
		}
		if claimed, err = sandboxes().Insert(ctx, tx, o); err != nil {
			return err
		}
		_, err = tx.Emit(ctx, roomOf(claimed).event(api.Starting, s.now()))
		return err
	})
	return claimed, err
}

// launch makes the sandbox. After an error nothing is left of it but its object, which says why.
func (s *Service) launch(ctx context.Context, o store.Object[SandboxData], spec keeper.Spec) (store.Object[SandboxData], error) {
	in := roomOf(o)
	ready, err := s.start(ctx, o, spec)
	// What was begun is brought to its end even though the caller has gone.
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), afterwards)
	defer cancel()
	if err != nil {
		s.abandon(after, in, err)
		return o, err
	}
	now := s.now()
	o, err = s.changeSandbox(after, in, func(o *store.Object[SandboxData]) bool {
		if o.State == string(api.Starting) {
			o.State = string(api.Running)
		}
		o.Data.Started, o.Data.Weaker = now, ready.Weaker
		return true
	})
	defer s.house.watch(in)
	if err != nil {
		return o, err // whoever watches it finds it running, and tries again
	}
	if o.State == string(api.Stopping) { // somebody was quicker
		return o, errors.Join(fault.New(fault.Conflict, "%s", o.Data.Reason), s.stop(after, in, o.Data.Reason))
	}
	// A policy that was changed since the sandbox was planned was not told to it.
	if err := s.enforceOne(after, in); err != nil && !errors.Is(err, errNotInForce) {
		return o, err // it is looked after, and this tried again
	}
	return s.sandbox(after, o.Tenant, o.ID)
}

// start makes the workspace and then the keeper.
func (s *Service) start(ctx context.Context, o store.Object[SandboxData], spec keeper.Spec) (keeper.Ready, error) {
	if err := os.MkdirAll(spec.Workspace.Dir, 0o700); err != nil {
		return keeper.Ready{}, fmt.Errorf("make the workspace of sandbox %s: %w", o.ID, err)
	}
	ready, err := s.Launcher.Launch(ctx, spec)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		if _, told := errors.AsType[*fault.Error](cause); !told {
			cause = fault.New(fault.Unavailable, "the request for the sandbox ended before it ran").Because(cause)
		}
		return ready, cause
	}
	return ready, err
}

// abandon ends a sandbox that could not be made. If that fails, whoever watches it tries again.
func (s *Service) abandon(ctx context.Context, in room, cause error) {
	e, err := s.remains(ctx, in)
	if err == nil {
		e.state, e.how, e.exit = api.Failed, fault.Public(cause), nil
		err = s.conclude(ctx, in, e)
	}
	if err == nil {
		s.dropTombstone(in) // Launch has seen the keeper's end, so none can come any more
	}
	if err != nil {
		s.Log.Error("clean up after a sandbox that could not be made", "sandbox", in.sandbox, "error", err)
		s.house.watch(in)
	}
	if fault.KindOf(cause) == fault.Internal {
		s.Log.Error("make a sandbox", "sandbox", in.sandbox, "error", cause)
	}
}
