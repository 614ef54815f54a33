package gateway

import (
	"context"
	"sync"
	"time"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// ownerTime is how long the runner may take to say whose socket it is; the program waits for as long.
const ownerTime = 200 * time.Millisecond

// admit decides about a crossing and records an allowed one. Anything but Allow in the answer is a refusal, which the caller passes to refuse.
func (p *passage) admit(ctx context.Context, c policy.Crossing, detail string) policy.Decision {
	d, law, once := p.g.once.decide(p.g, c)
	if d.Verdict == policy.Ask {
		d = p.ask(ctx, c, d)
	}
	if d.Verdict != policy.Allow {
		return d
	}
	p.under(c, once)
	// A policy set since it was loaded may not have seen this crossing in the open list.
	if now := p.g.policy.Load(); now != law {
		if again := p.onTop(now).Decide(c); again.Verdict == policy.Deny {
			return again
		}
	}
	p.id = p.g.crossing.Add(1)
	p.started = time.Now()
	e := event(audit.CrossingDecided, c, d)
	e.Crossing, e.Detail, e.Credential, e.Grant = p.id, detail, p.credential, p.grant
	if err := p.g.ledger.decided(ctx, e); err != nil {
		p.g.log.ErrorContext(ctx, "crossing refused because it cannot be recorded", "error", err)
		if once != nil {
			p.g.once.giveBack(p.g, once)
		}
		return policy.Decision{Rule: RuleAuditUnavailable, Reason: "it cannot be recorded, and what cannot be recorded does not happen"}
	}
	p.g.counters.allowed.Add(1)
	if once != nil && p.g.config.Used != nil {
		p.g.config.Used(once.Name)
	}
	return d
}

// ask puts the question to a human, once for one connection.
func (p *passage) ask(ctx context.Context, c policy.Crossing, d policy.Decision) policy.Decision {
	if d.PerRequest { // what was said about one request says nothing about another
		return p.g.asks.ask(ctx, p.g, c, d, p.query("tcp"))
	}
	p.answer.mu.Lock()
	defer p.answer.mu.Unlock() // the other requests of the connection wait for the same answer
	if p.answer.said == nil {
		said := p.g.asks.ask(ctx, p.g, c, d, p.query("tcp"))
		p.answer.said = &said
	}
	return *p.answer.said
}

// answer is what a human said about a connection. Its zero value is nothing yet.
type answer struct {
	mu   sync.Mutex
	said *policy.Decision
}

// query asks the runner about the client's socket.
func (p *passage) query(network string) frame.Query {
	return frame.Query{Network: network, Source: p.peer.String(), Dest: p.dest.String()}
}

// refuse records a denial and resets the connection. The reset comes last: the runner can only find a socket that is still there.
func (p *passage) refuse(ctx context.Context, c policy.Crossing, d policy.Decision, detail string) {
	p.g.deny(ctx, c, d, p.query("tcp"), detail)
	reset(p.client)
}

// deny records a denial, tells whoever listens if it is a new one, and returns it as told.
func (g *Gateway) deny(ctx context.Context, c policy.Crossing, d policy.Decision, q frame.Query, detail string) policy.Decision {
	return g.denyUse(ctx, c, d, q, detail, "")
}

// denyUse is deny for a refusal that is about a credential.
func (g *Gateway) denyUse(ctx context.Context, c policy.Crossing, d policy.Decision, q frame.Query, detail, credential string) policy.Decision {
	if d.Verdict == policy.Ask {
		d = unasked(d)
	}
	d.Verdict = policy.Deny
	if d.Rule == "" {
		d.Rule = policy.RuleDefault
	}
	fresh := g.denials.add(c, d, 1)
	e := event(audit.CrossingDecided, c, d)
	e.Crossing, e.Detail, e.Credential = g.crossing.Add(1), detail, credential
	if fresh {
		owner := g.owner(ctx, q)
		e.Process, e.PID = owner.Name, owner.PID
		denial := g.denials.own(c, d, owner)
		g.ledger.denied(ctx, c, d, e)
		if g.config.Denied != nil {
			g.config.Denied(denial)
		}
		return d
	}
	g.ledger.denied(ctx, c, d, e)
	return d
}

// owner asks the runner, if it is to be had in time.
func (g *Gateway) owner(ctx context.Context, q frame.Query) frame.Owner {
	if g.config.Owner == nil || q.Source == "" || !g.denials.mayAsk() {
		return frame.Owner{}
	}
	ctx, cancel := context.WithTimeout(ctx, ownerTime)
	defer cancel()
	return g.config.Owner(ctx, q)
}

// unasked is the refusal of what policy would ask about.
func unasked(d policy.Decision) policy.Decision {
	return policy.Decision{Rule: RuleNobodyToAsk, Reason: "policy asks about this (rule " + d.Rule + "), and nobody can be asked"}
}

// question is what one human answer is about.
type question struct {
	protocol     policy.Protocol
	to           place
	method, path string // where the answer is about one request
}

// asks keeps questions apart and puts each only once, however many connections wait for its answer. Its zero value is ready.
type asks struct {
	mu      sync.Mutex
	open    map[question]*asked
	waiting int
}

type asked struct {
	done   chan struct{}
	answer policy.Decision
}

// ask returns Allow or Deny, never Ask. d is what policy said.
func (a *asks) ask(ctx context.Context, g *Gateway, c policy.Crossing, d policy.Decision, q frame.Query) policy.Decision {
	no := unasked(d)
	if g.config.Ask == nil {
		return no
	}
	key := question{protocol: c.Protocol, to: placeOf(c)}
	if d.PerRequest {
		key.method, key.path = c.Method, c.Path
	}
	a.mu.Lock()
	if a.waiting >= g.limits.Asking {
		a.mu.Unlock()
		no.Reason = "too many connections wait for an answer already"
		return no
	}
	a.waiting++
	same := a.open[key]
	mine := same == nil
	if mine {
		same = &asked{done: make(chan struct{})}
		if a.open == nil {
			a.open = make(map[question]*asked)
		}
		a.open[key] = same
	}
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		a.waiting--
		a.mu.Unlock()
	}()
	if mine {
		a.put(ctx, g, key, same, c, q, no)
	}
	select {
	case <-same.done:
		return same.answer
	case <-ctx.Done():
		no.Reason = "the connection ended before the question was answered"
		return no
	}
}

// put asks and hands the answer to all who wait.
func (a *asks) put(ctx context.Context, g *Gateway, key question, same *asked, c policy.Crossing, q frame.Query, no policy.Decision) {
	limited, cancel := context.WithTimeout(ctx, g.limits.Ask)
	defer cancel()
	answer := g.config.Ask(limited, c, g.owner(limited, q))
	switch {
	case limited.Err() != nil && answer.Verdict != policy.Allow:
		no.Reason = "the question was not answered in time"
		answer = no
	case answer.Verdict != policy.Allow:
		answer.Verdict = policy.Deny
		if answer.Rule == "" {
			answer.Rule, answer.Reason = no.Rule, no.Reason
		}
	}
	a.mu.Lock()
	delete(a.open, key)
	a.mu.Unlock()
	same.answer = answer
	close(same.done)
}
