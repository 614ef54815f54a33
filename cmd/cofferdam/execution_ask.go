package main

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/terminal"
)

// answers are what the person said in this run. Its zero value is ready. It is safe for concurrent use.
type answers struct {
	mu    sync.Mutex
	turns map[string]*turn
}

// maxTurns bounds what is remembered: the sandbox chooses the destinations.
const maxTurns = 4096

// turn is the question about one destination: asked by one connection at a time, while the others wait for the answer.
type turn struct {
	mu      sync.Mutex
	lasting *policy.Decision // "always" and "never" hold for the rest of the run
}

func (a *answers) turn(destination string) *turn {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.turns == nil {
		a.turns = map[string]*turn{}
	}
	if a.turns[destination] == nil {
		if len(a.turns) >= maxTurns {
			return &turn{} // asked about each time; a person has long stopped answering
		}
		a.turns[destination] = &turn{}
	}
	return a.turns[destination]
}

// ask puts a destination to the person, unless that was answered for the whole run.
func (e *execution) ask(ctx context.Context, c policy.Crossing, owner frame.Owner) policy.Decision {
	t := e.answers.turn(destination(c))
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lasting != nil {
		return *t.lasting
	}
	decision, lasting := e.question(ctx, c, owner)
	if lasting {
		t.lasting = &decision
	}
	return decision
}

// question asks at the terminal. lasting says that the answer was not for once.
func (e *execution) question(ctx context.Context, c policy.Crossing, owner frame.Owner) (d policy.Decision, lasting bool) {
	refuse := func(reason string) policy.Decision {
		return policy.Decision{Verdict: policy.Deny, Rule: "asked", Reason: reason}
	}
	session := e.say.session()
	rule, ok := policy.RuleFor(c)
	if session == nil || !ok {
		return refuse("nobody could be asked"), false
	}
	choices := []terminal.Choice{{Key: 'o', Label: "once"}, {Key: 'n', Label: "never in this run"}}
	if e.always != nil {
		choices = slices.Insert(choices, 1, terminal.Choice{Key: 'a', Label: "always"})
	}
	key, err := session.Ask(ctx, process(owner)+" wants to reach "+destination(c), choices)
	switch {
	case errors.Is(err, terminal.ErrDismissed):
		return refuse("you dismissed the question"), false
	case err != nil:
		return refuse("nobody could be asked"), false
	case key == 'n':
		return refuse("you refused it for this run"), true
	case key == 'a':
		if err := e.keep(ctx, rule); err != nil {
			session.Notify("cofferdam: the answer holds for this run only: " + err.Error())
		}
		return policy.Decision{Verdict: policy.Allow, Rule: "asked", Reason: "you allowed it for good"}, true
	}
	return policy.Decision{Verdict: policy.Allow, Rule: "asked", Reason: "you allowed it once"}, false
}

// keep writes a rule into the policy file, which was opened before this process lost its rights, and records that.
func (e *execution) keep(ctx context.Context, rule policy.Rule) error {
	old, err := io.ReadAll(io.NewSectionReader(e.always, 0, maxPolicy))
	if err != nil {
		return err
	}
	changed, err := policy.AppendRule(old, rule)
	if err != nil {
		return err
	}
	event := audit.Event{Kind: audit.PolicyChanged, Run: e.id, Principal: "user", Rule: rule.Name, Detail: rule.Flag()}
	if err := e.log.Append(ctx, event); err != nil {
		return err
	}
	if _, err := e.always.WriteAt(changed, 0); err != nil {
		return err
	}
	return e.always.Truncate(int64(len(changed)))
}
