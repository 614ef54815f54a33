package control

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/store"
)

// SandboxData is a sandbox as stored. The object's identifier is also its run, its parent the agent, its state an api.SandboxState, and its name its
// identifier with what people call it, so that both can be searched for.
type SandboxData struct {
	Label     string    `json:"label,omitempty"`
	Command   []string  `json:"command,omitempty"`
	TTY       bool      `json:"tty,omitempty"`
	Isolation string    `json:"isolation"`
	Weaker    []string  `json:"weaker,omitempty"`
	Workspace string    `json:"workspace,omitempty"` // identifier of a persistent one
	ReadOnly  bool      `json:"read_only,omitempty"` // whether it was made so that it can only read its folder
	CreatedBy string    `json:"created_by"`
	Started   time.Time `json:"started,omitzero"`
	Ended     time.Time `json:"ended,omitzero"`
	Deadline  time.Time `json:"deadline,omitzero"`
	Paused    time.Time `json:"paused,omitzero"` // since when no process of it runs; its state is Running all the same, for policy holds in it
	How       string    `json:"how,omitempty"`
	ExitCode  *int      `json:"exit_code,omitempty"`
	Erased    []string  `json:"erased,omitempty"`
	Problems  []string  `json:"problems,omitempty"`
	Usage     api.Usage `json:"usage,omitzero"`
	// Policy is the document in force while the sandbox lives; Stale says why a newer one is not.
	Policy string `json:"policy,omitempty"`
	Stale  string `json:"stale,omitempty"`
	// Stopping is when it was told to end, and Reason why.
	Stopping time.Time `json:"stopping,omitzero"`
	Reason   string    `json:"reason,omitempty"`
}

func sandboxes() store.Collection[SandboxData] { return store.Of[SandboxData]("sandbox") }

// roomOf is a sandbox as what watches it knows it.
func roomOf(o store.Object[SandboxData]) room {
	return room{tenant: o.Tenant, agent: o.Parent, sandbox: o.ID}
}

func (r room) run() ident.Run { return ident.Run(r.sandbox) }

// event tells that a sandbox is in a state.
func (r room) event(state api.SandboxState, now time.Time) store.Event {
	return store.Event{Tenant: r.tenant, Type: "sandbox", Subject: r.sandbox, Agent: r.agent, State: string(state), Time: now}
}

func alive(o store.Object[SandboxData]) bool { return api.SandboxState(o.State).Live() }

// sandbox returns a sandbox of a tenant.
func (s *Service) sandbox(ctx context.Context, tenant, id string) (store.Object[SandboxData], error) {
	if _, err := ident.ParseRun(id); err != nil {
		return store.Object[SandboxData]{}, absent("sandbox")
	}
	o, err := sandboxes().Get(ctx, s.DB, tenant, id)
	if fault.KindOf(err) == fault.NotFound {
		return o, absent("sandbox")
	}
	return o, err
}

// running returns a sandbox in which something can be done, and its keeper.
func (s *Service) running(ctx context.Context, tenant, id string) (store.Object[SandboxData], *keeper.Client, error) {
	o, err := s.sandbox(ctx, tenant, id)
	if err != nil {
		return o, nil, err
	}
	if o.State != string(api.Running) {
		return o, nil, notRunning(o.State)
	}
	client, err := keeper.Dial(ctx, s.State, ident.Run(o.ID))
	if fault.KindOf(err) == fault.NotFound {
		return o, nil, notRunning("about to end")
	}
	return o, client, err
}

func notRunning(state string) error {
	return fault.New(fault.Conflict, "the sandbox is not running: it is %s", state).WithHint("make a new one")
}

// showSandbox is a sandbox as its tenant sees it. Its texts that came from inside are inert.
func showSandbox(o store.Object[SandboxData], agent string) api.Sandbox {
	d := o.Data
	out := api.Sandbox{
		ID: o.ID, Agent: o.Parent, AgentName: agent, Name: d.Label, State: shownState(o), Command: d.Command, Isolation: d.Isolation, Weaker: d.Weaker,
		Workspace: d.Workspace, CreatedBy: d.CreatedBy, Created: o.Created, Started: d.Started, Ended: d.Ended, Deadline: d.Deadline, How: d.How,
		ExitCode: d.ExitCode, Erased: d.Erased, Problems: d.Problems, Usage: d.Usage, Version: o.Version,
	}
	if d.Stale != "" {
		out.Problems = append(slices.Clone(out.Problems), d.Stale)
	}
	if d.Reason != "" && out.How == "" {
		out.How = d.Reason
	}
	return out
}

// Sandboxes lists sandboxes, newest first.
func (s *Service) Sandboxes(ctx context.Context, a Actor, agent string, live bool, p Page) (api.Page[api.Sandbox], error) {
	out := api.Page[api.Sandbox]{Items: []api.Sandbox{}}
	if err := may(a, ReadSandboxes); err != nil {
		return out, err
	}
	f, err := s.ofAgent(ctx, a.Tenant, agent, p)
	if err != nil {
		return out, err
	}
	if live {
		f.States = liveStates()
	}
	list, next, err := sandboxes().List(ctx, s.DB, a.Tenant, f)
	if err != nil {
		return out, err
	}
	names := s.agentNames(a.Tenant)
	for _, o := range list {
		name, err := names.of(ctx, o.Parent)
		if err != nil {
			return out, err
		}
		out.Items = append(out.Items, showSandbox(o, name))
	}
	out.Next = next
	return out, nil
}

// statusTime bounds how long a page waits for what a keeper knows.
const statusTime = 2 * time.Second

// Sandbox returns one sandbox, with its usage now if it lives.
func (s *Service) Sandbox(ctx context.Context, a Actor, id string) (api.Sandbox, error) {
	if err := may(a, ReadSandboxes); err != nil {
		return api.Sandbox{}, err
	}
	o, err := s.sandbox(ctx, a.Tenant, id)
	if err != nil {
		return api.Sandbox{}, err
	}
	if alive(o) {
		// A keeper that does not answer is no reason not to show what is known.
		if status, ok := s.status(ctx, o.ID); ok {
			o.Data.Usage = usageOf(status)
			o.Data.notePaused(status.Paused, s.now())
		}
	}
	return showSandbox(o, s.agentName(ctx, a.Tenant, o.Parent)), nil
}

func (s *Service) status(ctx context.Context, sandbox string) (keeper.Status, bool) {
	ctx, stop := context.WithTimeout(ctx, statusTime)
	defer stop()
	client, err := keeper.Dial(ctx, s.State, ident.Run(sandbox))
	if err != nil {
		return keeper.Status{}, false
	}
	status, err := client.Status(ctx)
	return status, err == nil
}

func usageOf(s keeper.Status) api.Usage {
	return api.Usage{Connections: s.Connections, Allowed: s.Allowed, Denied: s.Denied, BytesIn: s.BytesIn, BytesOut: s.BytesOut}
}

// changeSandbox changes a sandbox that lives and tells of it, unless do says that there is nothing to change. A sandbox that has ended is left as it is, and returned.
func (s *Service) changeSandbox(ctx context.Context, in room, do func(o *store.Object[SandboxData]) bool) (store.Object[SandboxData], error) {
	var out store.Object[SandboxData]
	err := s.DB.Within(ctx, func(tx *store.DB) error {
		o, err := sandboxes().Get(ctx, tx, in.tenant, in.sandbox)
		if err != nil {
			return err
		}
		out = o
		if !alive(o) || !do(&o) {
			return nil
		}
		if out, err = sandboxes().Update(ctx, tx, o); err != nil {
			return err
		}
		_, err = tx.Emit(ctx, in.event(shownState(o), s.now()))
		return err
	})
	if err != nil {
		return out, fmt.Errorf("change sandbox %s: %w", in.sandbox, err)
	}
	return out, nil
}

// StopSandbox ends a sandbox and returns when it was told so.
func (s *Service) StopSandbox(ctx context.Context, a Actor, id, reason string) (api.Sandbox, error) {
	if err := may(a, WriteSandboxes); err != nil {
		return api.Sandbox{}, err
	}
	if err := checkText("reason", reason, 200, false); err != nil {
		return api.Sandbox{}, err
	}
	o, err := s.sandbox(ctx, a.Tenant, id)
	if err != nil {
		return api.Sandbox{}, err
	}
	if !alive(o) {
		return showSandbox(o, s.agentName(ctx, a.Tenant, o.Parent)), nil // as was wanted
	}
	why := "stopped by " + a.byline()
	if reason != "" {
		why += ": " + reason
	}
	// Ending is always allowed: a log that cannot be written must not keep a sandbox alive. Its end is on record with the reason.
	if err := s.note(ctx, a, audit.Event{Kind: audit.SandboxChanged, Run: ident.Run(o.ID), Agent: o.Parent, Detail: why}); err != nil {
		s.Log.Error("record that a sandbox is stopped", "sandbox", o.ID, "error", err)
	}
	if err := s.stop(context.WithoutCancel(ctx), roomOf(o), why); err != nil {
		return api.Sandbox{}, err
	}
	if o, err = s.sandbox(ctx, a.Tenant, id); err != nil {
		return api.Sandbox{}, err
	}
	return showSandbox(o, s.agentName(ctx, a.Tenant, o.Parent)), nil
}

// longest is the longest that a sandbox can be told to live from now.
const longest = 30 * 24 * time.Hour

// ExtendSandbox moves the deadline. The timeout of the policy stays the last word.
func (s *Service) ExtendSandbox(ctx context.Context, a Actor, id string, in api.Extend) (api.Sandbox, error) {
	if err := may(a, WriteSandboxes); err != nil {
		return api.Sandbox{}, err
	}
	if in.Seconds < 1 || in.Seconds > int64(longest/time.Second) {
		return api.Sandbox{}, fault.New(fault.Invalid, "seconds: write 1 to %d", int64(longest/time.Second))
	}
	o, client, err := s.running(ctx, a.Tenant, id)
	if err != nil {
		return api.Sandbox{}, err
	}
	deadline := s.now().Add(time.Duration(in.Seconds) * time.Second).Truncate(time.Millisecond)
	if last, err := lastMoment(o.Data); err != nil {
		return api.Sandbox{}, err
	} else if !last.IsZero() && deadline.After(last) {
		return api.Sandbox{}, fault.New(fault.Denied, "the policy ends every sandbox after its timeout, this one at %s", last.Format(time.RFC3339)).WithHint("extend it by less, or change the policy")
	}
	in2 := roomOf(o)
	e := audit.Event{Kind: audit.SandboxChanged, Run: in2.run(), Agent: o.Parent, Detail: "ends at " + deadline.Format(time.RFC3339)}
	if err := s.note(ctx, a, e); err != nil {
		return api.Sandbox{}, err
	}
	if err := client.SetDeadline(ctx, keeper.NewDeadline{Deadline: deadline}); err != nil {
		return api.Sandbox{}, s.undone(ctx, a, e, err)
	}
	o, err = s.changeSandbox(ctx, in2, func(o *store.Object[SandboxData]) bool {
		o.Data.Deadline = deadline
		return true
	})
	if err != nil {
		return api.Sandbox{}, err
	}
	return showSandbox(o, s.agentName(ctx, a.Tenant, o.Parent)), nil
}

// lastMoment is when the policy in force ends a sandbox whatever anybody says; zero if it does not.
func lastMoment(d SandboxData) (time.Time, error) {
	p, err := policy.Parse("", []byte(d.Policy))
	if err != nil {
		return time.Time{}, fmt.Errorf("the policy in force: %w", err)
	}
	if timeout := p.Resources().Timeout; timeout > 0 {
		return d.Started.Add(timeout), nil
	}
	return time.Time{}, nil
}

// maxOutput bounds what one call reads of a sandbox's output.
const maxOutput = 1 << 20

// Output reads the main command's output from an offset.
func (s *Service) Output(ctx context.Context, a Actor, id string, offset int64, most int) (data []byte, next, skipped int64, live bool, err error) {
	if err := may(a, ReadSandboxes); err != nil {
		return nil, 0, 0, false, err
	}
	if offset < 0 || most < 0 {
		return nil, 0, 0, false, fault.New(fault.Invalid, "offset: this is no place in the output")
	}
	if most == 0 || most > maxOutput {
		most = maxOutput
	}
	o, err := s.sandbox(ctx, a.Tenant, id)
	if err != nil {
		return nil, 0, 0, false, err
	}
	live = alive(o) // asked before reading, so that who reads to the end of what has ended has it all
	data, next, skipped, err = keeper.Output(s.State, ident.Run(o.ID), offset, most)
	if fault.KindOf(err) == fault.NotFound { // it has said nothing, or what it said is not kept any more
		return nil, offset, 0, live, nil
	}
	return data, next, skipped, live, err
}

// inert makes a text from inside safe to show.
func inert(text string) string { return frame.Inert(text, 1000) }
