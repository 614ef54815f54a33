package control

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/store"
)

// asker is what a keeper has behind its socket, with one crossing that waits. As in a keeper, a policy that need not ask any more takes the question back.
type asker struct {
	mu       sync.Mutex
	crossing policy.Crossing
	law      *policy.Policy
	settled  context.CancelFunc
}

func (k *asker) Status() keeper.Status { return keeper.Status{} }

func (k *asker) SetPolicy(_ context.Context, p keeper.NewPolicy) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var err error
	if k.law, err = policy.Parse("", []byte(p.Policy)); err == nil && k.law.Decide(k.crossing).Verdict != policy.Ask {
		k.settled()
	}
	return err
}

func (k *asker) SetDeadline(context.Context, time.Time) error { return nil }
func (k *asker) Pause(context.Context, bool) error            { return nil }
func (k *asker) Stop(context.Context, string) error           { return nil }

func (k *asker) Start(context.Context, keeper.Exec) (io.ReadWriteCloser, keeper.Prepared, error) {
	return nil, keeper.Prepared{}, errors.New("this sandbox runs nothing")
}

func (k *asker) decides() policy.Decision {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.law.Decide(k.crossing)
}

// question is one that waits, and what becomes of it.
type question struct {
	*asker
	id   string // of the approval
	said chan keeper.Answer
	gone chan struct{} // nobody answered
}

// ask has a keeper of the agent's sandbox ask about a request to an address, over its real socket.
func (in *inbox) ask(text string) *question {
	t := in.t
	t.Helper()
	p := must[api.Policy](t)(in.Policy(t.Context(), in.admin(), in.agent.Policy))
	must[api.Policy](t)(in.ChangePolicy(t.Context(), in.admin(), p.ID, p.Version, api.PolicyChange{Text: &text}))
	law, err := policy.Parse("", []byte(text))
	done(t, err)
	crossing, ok := policy.CrossingOf(placeEvent(api.Place{Protocol: "http", Address: "9.9.9.9", Port: 80, Method: "GET", Path: "/x"}, ""))
	if !ok || law.Decide(crossing).Verdict != policy.Ask {
		t.Fatalf("the policy does not ask: %+v", law.Decide(crossing))
	}
	wait, settled := context.WithCancel(t.Context())
	q := &question{asker: &asker{crossing: crossing, law: law, settled: settled}, said: make(chan keeper.Answer, 1), gone: make(chan struct{})}
	l, err := keeper.Listen(in.State, in.run)
	done(t, err)
	board := &keeper.Board{}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = keeper.NewServer(q.asker, board).Serve(ctx, l) })
	wg.Go(func() {
		defer close(q.gone)
		if a, ok := board.Ask(wait, keeper.Ask{Protocol: "http", Address: "9.9.9.9", Port: 80, Method: "GET", Path: "/x", Rule: "default", Created: in.clock.Now(), Deadline: in.clock.Now().Add(time.Minute)}); ok {
			q.said <- a
		}
	})
	t.Cleanup(func() { settled(); stop(); wg.Wait() })
	_, err = sandboxes().Insert(t.Context(), in.DB, store.Object[SandboxData]{ID: in.run.String(), Tenant: in.admin().Tenant, Name: in.run.String(), Parent: in.agent.ID, State: string(api.Running), Data: SandboxData{Policy: text}})
	done(t, err)
	for try := 0; len(board.Waiting()) == 0; try++ {
		if try > 500 {
			t.Fatal("nothing waits")
		}
		time.Sleep(10 * time.Millisecond)
	}
	done(t, in.onAsk(t.Context(), room{tenant: in.admin().Tenant, agent: in.agent.ID, sandbox: in.run.String()}, board.Waiting()[0]))
	q.id = must[api.Page[api.Approval]](t)(in.Approvals(t.Context(), in.admin(), true, Page{})).Items[0].ID
	return q
}

const askPolicy = "version: 1\negress:\n  rules:\n    - {networks: [9.9.9.0/24], ports: [80], verdict: ask}\n"

// TestDecideApprovalReally answers crossings that really wait: the crossing goes on or not, and what lasts is a rule that is listed and can be revoked.
func TestDecideApprovalReally(t *testing.T) {
	for _, c := range []struct {
		verdict string
		scope   api.Scope
		want    policy.Verdict
	}{{"allow", api.Once, policy.Ask}, {"allow", api.ForRun, policy.Allow}, {"allow", api.ForAgent, policy.Allow}, {"deny", api.ForRun, policy.Deny}, {"deny", api.ForAgent, policy.Deny}, {"deny", api.Once, policy.Ask}} {
		t.Run(c.verdict+" "+string(c.scope), func(t *testing.T) {
			in := newInbox(t)
			q := in.ask(askPolicy)
			got, err := in.DecideApproval(t.Context(), in.a[api.Reviewer], q.id, api.Decide{Verdict: c.verdict, Scope: c.scope, Widens: true})
			if err != nil {
				t.Fatalf("%v (%s)", err, fault.HintOf(err))
			}
			<-q.gone
			select {
			case a := <-q.said:
				if a.Allow != (c.verdict == "allow") || a.Lasting || a.Rule != "approved:"+q.id {
					t.Errorf("%+v", a)
				}
			default:
				t.Error("nobody answered the crossing that waited")
			}
			if v := q.decides().Verdict; v != c.want {
				t.Errorf("the next one: %v, want %v", v, c.want)
			}
			page := must[api.Page[api.Rule]](t)(in.Rules(t.Context(), in.admin(), "", []string{ruleActive}, Page{}))
			if c.scope == api.Once {
				if len(page.Items) > 0 || got.Rule != nil {
					t.Errorf("a rule for one crossing: %+v", page.Items)
				}
				return
			}
			if len(page.Items) != 1 || page.Items[0].Scope != c.scope || page.Items[0].Verdict != c.verdict || (page.Items[0].Sandbox != "") != (c.scope == api.ForRun) || len(got.InForce) != 1 {
				t.Fatalf("%+v, in force in %v", page.Items, got.InForce)
			}
			if d := q.decides(); d.Rule != "review-"+page.Items[0].ID {
				t.Errorf("the next one is decided by %q", d.Rule)
			}
			must[api.Rule](t)(in.RevokeRule(t.Context(), in.a[api.Reviewer], page.Items[0].ID))
			if v := q.decides().Verdict; v != policy.Ask {
				t.Errorf("after it was revoked: %v", v)
			}
		})
	}
}

// TestApprovalForRunIsRead: what holds for a whole run is a rule like others: its warnings are read, and four eyes look at it.
func TestApprovalForRunIsRead(t *testing.T) {
	in := newInbox(t)
	q := in.ask(askPolicy)
	if _, err := in.DecideApproval(t.Context(), in.a[api.Reviewer], q.id, api.Decide{Verdict: "allow", Scope: api.ForRun}); fault.KindOf(err) != fault.Invalid || !strings.Contains(fault.Public(err), "widens") {
		t.Errorf("warnings unread: %v", err)
	}
	settings := must[api.Settings](t)(in.Settings(t.Context(), in.admin()))
	settings.FourEyes = true
	must[api.Settings](t)(in.ChangeSettings(t.Context(), in.admin(), settings.Version, settings))
	got := must[api.Decision](t)(in.DecideApproval(t.Context(), in.a[api.Reviewer], q.id, api.Decide{Verdict: "allow", Scope: api.ForRun, Widens: true}))
	if got.Rule.State != ruleProposed || got.Approval.State != approvalWaiting || q.decides().Verdict != policy.Ask {
		t.Errorf("one pair of eyes was enough: %+v", got)
	}
	must[api.Rule](t)(in.ApproveRule(t.Context(), in.admin(), got.Rule.ID))
	<-q.gone // the policy need not ask any more
	if q.decides().Verdict != policy.Allow {
		t.Error("the second person's yes is not in force")
	}
}

// TestApprovalTooLate: where the question has gone, a rule that answers it is an answer, and nothing else is.
func TestApprovalTooLate(t *testing.T) {
	in := newInbox(t)
	q := in.ask(askPolicy)
	q.settled()
	<-q.gone
	got, err := in.DecideApproval(t.Context(), in.admin(), q.id, api.Decide{Verdict: "allow", Scope: api.ForAgent, Widens: true})
	if err != nil || got.Rule == nil || len(got.InForce) != 1 || q.decides().Verdict != policy.Allow {
		t.Errorf("%+v, %v", got, err)
	}
	other := newInbox(t)
	q = other.ask(askPolicy)
	q.settled()
	<-q.gone
	if _, err := other.DecideApproval(t.Context(), other.admin(), q.id, api.Decide{Verdict: "allow", Scope: api.Once}); fault.KindOf(err) != fault.Conflict {
		t.Errorf("%v", err)
	}
}
