package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	wire "github.com/cofferdam/cofferdam/api"
	remote "github.com/cofferdam/cofferdam/client"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/control"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/store"
)

const (
	fullAgents       = 10_000
	sandboxesOfAgent = 5 // that have ended
	rareHost         = "needle.rare.example.org"
	rareAgent        = 10
	auditSpacing     = 2 * time.Second
)

// fullRows measures lists and searches where much is stored.
func fullRows(ctx context.Context, s *service) ([]row, error) {
	events := 1_000_000
	if os.Getenv("COFFERDAM_BENCH") == "full" {
		events = 10_000_000
	}
	events = max(20_000, int(float64(events)*min(1, s.b.scale)))
	mix, index, err := s.fill(ctx, events)
	if err != nil {
		return nil, err
	}
	rows := []row{index}
	lists, err := listRows(ctx, s)
	if rows = append(rows, lists...); err != nil {
		return rows, err
	}
	searches, err := searchRows(ctx, s, mix)
	return append(rows, searches...), err
}

// fill stores agents with sandboxes that have ended, and a log of what they did, and measures how the service takes it into its index.
func (s *service) fill(ctx context.Context, events int) (*auditMix, row, error) {
	me, err := s.admin.api.Me(ctx)
	if err != nil {
		return nil, row{}, err
	}
	builders, err := s.admin.api.Agent(ctx, builder)
	if err != nil {
		return nil, row{}, err
	}
	if err := s.stop(); err != nil {
		return nil, row{}, err
	}
	mix, err := s.fillStore(ctx, me.Tenant.ID, builders.Policy, events)
	if err != nil {
		return nil, row{}, err
	}
	if err := s.fillAudit(ctx, mix, events); err != nil {
		return nil, row{}, err
	}
	began := time.Now()
	if err := s.start(ctx); err != nil {
		return nil, row{}, err
	}
	if err := s.reconnect(s.admin); err != nil {
		return nil, row{}, err
	}
	for { // the newest record is found when all are
		page, err := s.admin.api.Audit(ctx, wire.AuditQuery{Host: lastHost, Limit: 1})
		if err != nil {
			return nil, row{}, err
		}
		if len(page.Items) == 1 {
			break
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return nil, row{}, ctx.Err()
		}
	}
	rate := float64(events) / time.Since(began).Seconds()
	return mix, row{what: fmt.Sprintf("audit events indexed, of %d in one go", events), unit: "1/s", higher: true, ours: series{name: "service", values: []float64{rate}}}, nil
}

// lastHost is where the last event of the log goes.
const lastHost = "last.example.org"

func (s *service) fillStore(ctx context.Context, tenant, law string, events int) (_ *auditMix, err error) {
	db, err := store.Open(ctx, "sqlite:"+filepath.Join(s.state, "server", "cofferdam.db"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	mix := newAuditMix(time.Now().Add(-time.Duration(events)*auditSpacing), events)
	agents, boxes := store.Of[control.AgentData]("agent"), store.Of[control.SandboxData]("sandbox")
	const batch = 500
	for first := 0; first < fullAgents; first += batch {
		err := db.Within(ctx, func(tx *store.DB) error {
			for n := first; n < first+batch; n++ {
				agent := store.Object[control.AgentData]{Tenant: tenant, Name: agentName(n), Parent: law, State: "active",
					Data: control.AgentData{Description: "does what the team that has it wants done, and nothing else", Command: []string{"/usr/bin/agent", "--serve"}}}
				agent, err := agents.Insert(ctx, tx, agent)
				if err != nil {
					return err
				}
				mix.ids[n], mix.runs[n] = agent.ID, nil // whatever an attempt before had
				for range sandboxesOfAgent {
					box := store.Object[control.SandboxData]{ID: ident.NewRun().String(), Tenant: tenant, Parent: agent.ID, State: string(wire.Ended),
						Data: control.SandboxData{Isolation: "container", CreatedBy: operatorEmail, How: "it exited with 0", Started: mix.start, Ended: mix.start.Add(time.Hour)}}
					box.Name = box.ID
					if _, err := boxes.Insert(ctx, tx, box); err != nil {
						return err
					}
					mix.runs[n] = append(mix.runs[n], ident.Run(box.ID))
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return mix, nil
}

func agentName(n int) string { return fmt.Sprintf("agent-%05d", n) }

// auditMix makes events.
type auditMix struct {
	random      *rand.Rand
	agent, host *rand.Zipf
	start       time.Time
	events      int
	ids         []string      // of agents
	runs        [][]ident.Run // of agents
}

func newAuditMix(start time.Time, events int) *auditMix {
	random := rand.New(rand.NewPCG(1, 2))
	return &auditMix{random: random, agent: rand.NewZipf(random, 1.1, 1, fullAgents-1), host: rand.NewZipf(random, 1.2, 1, 49_999), start: start.UTC(), events: events,
		ids: make([]string, fullAgents), runs: make([][]ident.Run, fullAgents)}
}

// at is when an event happened.
func (m *auditMix) at(i int) time.Time { return m.start.Add(time.Duration(i) * auditSpacing) }

func (m *auditMix) event(i int) audit.Event {
	agent, host := int(m.agent.Uint64()), m.host.Uint64()
	e := audit.Event{
		Time: m.at(i), Kind: audit.CrossingDecided, Principal: "sandbox", Crossing: uint64(i/2 + 1), Protocol: "https", Verdict: "allow",
		Access: []string{"read", "read", "read", "write"}[m.random.IntN(4)], Host: fmt.Sprintf("h%d.zone%d.example.com", host, host%40), Port: 443, Method: "GET",
		Path: "/v1/things/" + strconv.Itoa(i), Rule: "egress.rules[" + strconv.Itoa(m.random.IntN(30)) + "]", Reason: "named by a rule", Process: "npm", PID: 42,
	}
	switch {
	case i%2 == 1:
		e.Kind, e.Status, e.BytesIn, e.Millis = audit.CrossingFinished, 200, 4711, 31
	case m.random.IntN(500) == 0:
		e.Verdict, e.Rule, e.Reason = "deny", "default", "no rule allows it"
	}
	switch {
	case i == m.events/3: // what hardly ever happens, and never to the busiest
		agent, e.Host = rareAgent, rareHost
	case i == m.events-1:
		agent, e.Host = rareAgent, lastHost
	}
	e.Run = m.runOf(agent, i/2000)
	return e
}

// listRows measures lists of ten thousand agents, in the API and as pages.
func listRows(ctx context.Context, s *service) ([]row, error) {
	middle, err := s.admin.api.Agents(ctx, remote.Page{Limit: 50})
	for i := 0; i < 20 && err == nil; i++ {
		middle, err = s.admin.api.Agents(ctx, remote.Page{Limit: 50, After: middle.Next})
		time.Sleep(breath)
	}
	if err != nil {
		return nil, err
	}
	after := url.Values{"after": {middle.Next}}.Encode()
	health := s.asks("nothing: /healthz", "/healthz", 3)
	var rows []row
	for _, c := range []struct{ what, path string }{
		{"/api/v1/agents, first page", "/api/v1/agents"},
		{"/api/v1/agents, 500 after a thousand", "/api/v1/agents?limit=500&" + after},
		{"/api/v1/agents, a search that finds one", "/api/v1/agents?search=nt-07777"},
		{"/agents as a page", "/agents"},
		{"/agents as a page, after a thousand", "/agents?" + after},
		{"/agents as a page, a search that finds ten", "/agents?q=nt-0777"},
	} {
		ours, others, err := s.b.settle(takeTurns(ctx, s.b.rounds(100), []subject{s.asks("service", c.path, 300), health}))
		if err != nil {
			return rows, err
		}
		rows = append(rows, row{what: fmt.Sprintf("%d agents: %s", fullAgents, c.what), unit: "ms", ours: ours, others: []comparison{against(others[0], atMostSlow(200))}})
	}
	return rows, nil
}

// asks is a subject that asks the service for something, as a browser that is signed in. An answer shorter than least is none.
func (s *service) asks(name, path string, least int) subject {
	return subject{name, func(ctx context.Context) ([]float64, error) {
		time.Sleep(breath)
		var text string
		began := time.Now()
		err := s.get(ctx, s.admin, path, &text)
		took := time.Since(began)
		if err == nil && len(text) < least {
			err = fmt.Errorf("%s: an answer of %d bytes", path, len(text))
		}
		return []float64{milliseconds(took)}, err
	}}
}

// searchRows measures searches of the audit log through the API, with what each finds from the log itself.
func searchRows(ctx context.Context, s *service, mix *auditMix) ([]row, error) {
	busy, quiet := mix.ids[0], mix.ids[fullAgents-9]
	hour := func(share int) url.Values {
		from := mix.at(mix.events / share)
		return url.Values{"since": {from.Format(time.RFC3339Nano)}, "until": {from.Add(time.Hour).Format(time.RFC3339Nano)}}
	}
	with := func(v url.Values, pairs ...string) url.Values {
		for i := 0; i < len(pairs); i += 2 {
			v.Set(pairs[i], pairs[i+1])
		}
		return v
	}
	plain := s.searches("newest, no condition", url.Values{}, 50)
	var rows []row
	for _, c := range []struct {
		what  string
		query url.Values
		least int // events found
	}{
		{"by the busiest agent", with(url.Values{}, "agent", busy), 50},
		{"by a quiet agent", with(url.Values{}, "agent", quiet), 0},
		{"by a host seen once", with(url.Values{}, "host", rareHost), 1},
		{"by all below a busy domain", with(url.Values{}, "host", "*.example.com"), 50},
		{"by refusals", with(url.Values{}, "verdict", "deny"), 1},
		{"by an hour in the middle", hour(2), 50},
		{"by agent, domain, refusal", with(url.Values{}, "agent", busy, "host", "*.example.com", "verdict", "deny"), 1},
		{"by agent, domain, refusal, an hour", with(hour(2), "agent", busy, "host", "*.example.com", "verdict", "deny"), 0},
		{"by agent and host that never met", with(url.Values{}, "agent", busy, "host", rareHost), 0},
		{"by 500 refusals", with(url.Values{}, "verdict", "deny", "limit", "500"), 1},
	} {
		ours, others, err := s.b.settle(takeTurns(ctx, s.b.rounds(30), []subject{s.searches("search", c.query, c.least), plain}))
		if err != nil {
			return rows, fmt.Errorf("%s: %w", c.what, err)
		}
		rows = append(rows, row{what: fmt.Sprintf("audit search in %d events, %s", mix.events, c.what), unit: "ms", ours: ours, others: []comparison{against(others[0], atMostSlow(300))}})
	}
	return rows, nil
}

// searches is a subject that searches the audit log and wants at least so many events.
func (s *service) searches(name string, query url.Values, least int) subject {
	return subject{name, func(ctx context.Context) ([]float64, error) {
		time.Sleep(breath)
		var text string
		began := time.Now()
		err := s.get(ctx, s.admin, "/api/v1/audit?"+query.Encode(), &text)
		took := time.Since(began)
		var page wire.Page[json.RawMessage]
		if err == nil {
			err = json.Unmarshal([]byte(text), &page)
		}
		if err == nil && len(page.Items) < least {
			err = fmt.Errorf("%d events found, want at least %d", len(page.Items), least)
		}
		return []float64{milliseconds(took)}, err
	}}
}
