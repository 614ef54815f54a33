package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
)

const emptyPolicy = "version: 1\n"

// crossing is a decided crossing of a sandbox.
func crossing(in room, n uint64, host, verdict string) audit.Event {
	return audit.Event{Kind: audit.CrossingDecided, Run: in.run(), Principal: "sandbox", Crossing: n, Protocol: "tls", Host: host, Port: 443, Verdict: verdict, Rule: "default"}
}

func TestIndexFollowsTheLog(t *testing.T) {
	h := newTestHouse(t, "")
	agentA, agentB := h.agent(t, h.a, "one", emptyPolicy), h.agent(t, h.b, "one", emptyPolicy)
	inA, inB := h.room(t, h.a, agentA.ID, api.Running), h.room(t, h.b, agentB.ID, api.Ended)
	h.append(t, crossing(inA, 1, "before.example.com", "deny")) // while no service runs
	stop := h.run(t)
	hosts := func(a Actor, q api.AuditQuery) (got []string) {
		t.Helper()
		q.Kinds = []string{string(audit.CrossingDecided)}
		page, err := h.Audit(t.Context(), a, q)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Items {
			var record audit.Event
			if err := json.Unmarshal(e.Record, &record); err != nil || int64(record.Seq) != e.Sequence {
				t.Errorf("record %d: %s: %v", e.Sequence, e.Record, err)
			}
			got = append(got, record.Host)
		}
		return got
	}
	eventually(t, "what was written before is found", 10*time.Second, func() bool { return slices.Equal(hosts(h.a, api.AuditQuery{}), []string{"before.example.com"}) })
	began := time.Now()
	operator := room{sandbox: ident.NewRun().String()} // a run by hand
	h.append(t, crossing(inA, 2, "Allowed.example.com.", "allow"), crossing(inB, 1, "other.example.com", "deny"), crossing(operator, 1, "hand.example.com", "deny"))
	eventually(t, "new records are found", 10*time.Second, func() bool { return len(hosts(h.a, api.AuditQuery{})) == 2 })
	t.Logf("from append to index: %v", time.Since(began))
	for _, c := range []struct {
		name string
		a    Actor
		q    api.AuditQuery
		want []string
	}{
		{"newest first", h.a, api.AuditQuery{}, []string{"Allowed.example.com.", "before.example.com"}},
		{"the other tenant", h.b, api.AuditQuery{}, []string{"other.example.com"}},
		{"of another's sandbox", h.b, api.AuditQuery{Sandbox: inA.sandbox}, nil},
		{"of another's agent", h.b, api.AuditQuery{Agent: agentA.ID}, nil},
		{"an agent by name", h.a, api.AuditQuery{Agent: "one", Verdict: "deny"}, []string{"before.example.com"}},
		{"host in any case", h.a, api.AuditQuery{Host: "ALLOWED.example.com"}, []string{"Allowed.example.com."}},
		{"below a domain", h.a, api.AuditQuery{Host: "*.example.com"}, []string{"Allowed.example.com.", "before.example.com"}},
	} {
		if got := hosts(c.a, c.q); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	for _, a := range []Actor{h.a, h.b} {
		page, err := h.Denials(t.Context(), a, "", nil, Page{})
		if err != nil || len(page.Items) != 1 || page.Items[0].Count != 1 {
			t.Errorf("inbox of %s: %+v %v", a.Tenant, page.Items, err)
		}
	}
	stop()
	// What is written while no service runs is counted once by the next.
	h.append(t, crossing(inA, 3, "before.example.com", "deny"))
	h.run(t)
	eventually(t, "counted after a restart", 2*time.Second, func() bool {
		page, err := h.Denials(t.Context(), h.a, "", nil, Page{})
		return err == nil && len(page.Items) == 1 && page.Items[0].Count == 2
	})
}

func TestIndexOfAnotherLog(t *testing.T) {
	h := newTestHouse(t, "")
	agent := h.agent(t, h.a, "one", emptyPolicy)
	in := h.room(t, h.a, agent.ID, api.Running)
	h.append(t, crossing(in, 1, "old.example.com", "deny"))
	h.run(t)
	find := func(host string) int {
		t.Helper()
		page, err := h.Audit(t.Context(), h.a, api.AuditQuery{Host: host})
		if err != nil {
			t.Fatal(err)
		}
		return len(page.Items)
	}
	eventually(t, "indexed", 10*time.Second, func() bool { return find("old.example.com") == 1 })
	dir := filepath.Join(h.State, "audit")
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	log, err := audit.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if err := log.Append(t.Context(), crossing(in, 1, "new.example.com", "deny")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the index is of the new log", 3*time.Second, func() bool { return find("new.example.com") == 1 && find("old.example.com") == 0 })
}

// TestForgedOwner: a keeper that was taken over writes into the log that a run is another tenant's. The store knows better.
func TestForgedOwner(t *testing.T) {
	h := newTestHouse(t, "")
	agent := h.agent(t, h.a, "one", emptyPolicy)
	in := h.room(t, h.a, agent.ID, api.Running)
	h.append(t, audit.Event{Kind: audit.RunStarted, Run: in.run(), Tenant: h.b.Tenant, Agent: "victim"}, crossing(in, 1, "forged.example.com", "deny"))
	h.run(t)
	eventually(t, "indexed", 10*time.Second, func() bool {
		page, err := h.Audit(t.Context(), h.a, api.AuditQuery{Sandbox: in.sandbox})
		return err == nil && len(page.Items) == 2
	})
	page, err := h.Audit(t.Context(), h.b, api.AuditQuery{Sandbox: in.sandbox})
	if err != nil || len(page.Items) != 0 {
		t.Errorf("the other tenant sees %v %v", page.Items, err)
	}
}

func TestAuditRecordWasChanged(t *testing.T) {
	h := newTestHouse(t, "")
	agent := h.agent(t, h.a, "one", emptyPolicy)
	in := h.room(t, h.a, agent.ID, api.Running)
	h.append(t, crossing(in, 1, "aaaa.example.com", "deny"), crossing(in, 2, "bbbb.example.com", "allow"))
	h.run(t)
	q := api.AuditQuery{Sandbox: in.sandbox}
	eventually(t, "indexed", 10*time.Second, func() bool {
		page, err := h.Audit(t.Context(), h.a, q)
		return err == nil && len(page.Items) == 2
	})
	name := filepath.Join(h.State, "audit", "log.jsonl")
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.ReplaceAll(data, []byte("aaaa.example"), []byte("cccc.example")), 0); err != nil {
		t.Fatal(err)
	}
	page, err := h.Audit(t.Context(), h.a, q)
	if err != nil || len(page.Items) != 2 {
		t.Fatalf("%v %v", page, err)
	}
	if e := page.Items[1]; string(e.Record) != "null" || !strings.Contains(e.Summary, "does not stand in the audit log") || !strings.Contains(e.Summary, "aaaa.example.com") {
		t.Errorf("a changed record is shown as %+v", e)
	}
	var out bytes.Buffer
	if err := h.ExportAudit(t.Context(), h.a, q, &out); err != nil || strings.Count(out.String(), "\n") != 1 || !strings.Contains(out.String(), "bbbb") {
		t.Errorf("export: %s %v", out.String(), err)
	}
}

func TestAuditPagesAndExport(t *testing.T) {
	h := newTestHouse(t, "")
	agent := h.agent(t, h.a, "one", emptyPolicy)
	in := h.room(t, h.a, agent.ID, api.Running)
	var events []audit.Event
	for i := range 2500 {
		e := crossing(in, uint64(i+1), fmt.Sprintf("h%d.example.com", i%7), "allow")
		if i%50 == 0 {
			e.Credential = "token"
		}
		if i%100 == 0 {
			e.Repository, e.Access = "forge/a/b", "write"
		}
		events = append(events, e)
	}
	h.append(t, events...)
	h.run(t)
	all := api.AuditQuery{Sandbox: in.sandbox}
	lines := func(q api.AuditQuery) []string {
		t.Helper()
		var out bytes.Buffer
		if err := h.ExportAudit(t.Context(), h.a, q, &out); err != nil {
			t.Fatal(err)
		}
		return strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	}
	eventually(t, "indexed", 30*time.Second, func() bool { return len(lines(all)) == 2500 })
	last := uint64(0)
	for _, line := range lines(all) {
		var e audit.Event
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Seq <= last {
			t.Fatalf("after %d: %s %v", last, line, err)
		}
		last = e.Seq
	}
	for _, c := range []struct {
		q    api.AuditQuery
		want int
	}{
		{api.AuditQuery{Credential: "*"}, 50}, {api.AuditQuery{Credential: "token"}, 50}, {api.AuditQuery{Credential: "*", Repository: "*"}, 25}, {api.AuditQuery{Repository: "*"}, 25}, {api.AuditQuery{Access: "write"}, 25},
		{api.AuditQuery{Host: "h3.example.com", Credential: "*"}, 7}, {api.AuditQuery{Until: time.Now().Add(-time.Hour)}, 0},
	} {
		q, got := c.q, 0
		q.Limit = 20
		seen := map[int64]bool{}
		for range 200 {
			page, err := h.Audit(t.Context(), h.a, q)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range page.Items {
				if seen[e.Sequence] {
					t.Fatalf("%+v: %d twice", c.q, e.Sequence)
				}
				seen[e.Sequence] = true
			}
			got += len(page.Items)
			if q.After = page.Next; q.After == "" {
				break
			}
		}
		if got != c.want {
			t.Errorf("%+v: %d, want %d", c.q, got, c.want)
		}
	}
	for _, bad := range []api.AuditQuery{{Verdict: "maybe"}, {Access: "x"}, {Kinds: []string{"nothing"}}, {After: "x"}, {After: "-1"}, {Limit: 1000}, {Limit: -1}, {Host: strings.Repeat("x", 600)}} {
		if _, err := h.Audit(t.Context(), h.a, bad); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func TestQueries(t *testing.T) {
	h := newTestHouse(t, "")
	builtin, err := h.Queries(t.Context(), h.a)
	if err != nil || len(builtin) < 6 {
		t.Fatalf("%v %v", builtin, err)
	}
	for _, q := range builtin {
		if _, err := h.Audit(t.Context(), h.a, q.Query); err != nil || !q.BuiltIn {
			t.Errorf("%s: %v", q.Name, err)
		}
		if err := h.DeleteQuery(t.Context(), h.a, q.ID); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s can be deleted: %v", q.Name, err)
		}
	}
	saved, err := h.SaveQuery(t.Context(), h.a, api.SavedQuery{Name: "mine", Query: api.AuditQuery{Verdict: "deny", After: "5", Limit: 3}})
	if err != nil || saved.Query.After != "" || saved.Query.Limit != 0 {
		t.Fatalf("%v %v", saved, err)
	}
	again, err := h.SaveQuery(t.Context(), h.a, api.SavedQuery{Name: "mine", Query: api.AuditQuery{Verdict: "allow"}})
	if err != nil || again.ID != saved.ID || again.Query.Verdict != "allow" {
		t.Errorf("%v %v", again, err)
	}
	if list, err := h.Queries(t.Context(), h.b); err != nil || len(list) != len(builtin) {
		t.Errorf("the other tenant has %v %v", list, err)
	}
	if err := h.DeleteQuery(t.Context(), h.b, saved.ID); fault.KindOf(err) != fault.NotFound {
		t.Errorf("the other tenant deletes: %v", err)
	}
	if err := h.DeleteQuery(t.Context(), h.a, saved.ID); err != nil {
		t.Error(err)
	}
}

func TestEvents(t *testing.T) {
	h := newTestHouse(t, "")
	agent := h.agent(t, h.a, "one", emptyPolicy)
	in := h.room(t, h.a, agent.ID, api.Running)
	h.run(t)
	ctx, stop := context.WithCancel(t.Context())
	got := make(chan api.Event, 100)
	done := make(chan error, 1)
	go func() {
		done <- h.Events(ctx, h.a, -1, func(e api.Event) error { got <- e; return nil })
	}()
	other := make(chan api.Event, 100)
	go func() { _ = h.Events(ctx, h.b, -1, func(e api.Event) error { other <- e; return nil }) }()
	time.Sleep(50 * time.Millisecond) // until they listen
	began := time.Now()
	for i := range 5 {
		h.append(t, crossing(in, uint64(i+1), "a.example.com", "deny"))
	}
	var first api.Event
	types := map[string]bool{}
	for !types["crossing"] || !types["denial"] {
		select {
		case e := <-got:
			if first.ID == 0 {
				first = e
			}
			types[e.Type] = true
			if e.Type == "crossing" && (e.Subject != in.sandbox || e.Agent != agent.ID) {
				t.Errorf("%+v", e)
			}
		case <-time.After(2 * time.Second):
			t.Fatalf("only %v", types)
		}
	}
	t.Logf("from append to event: %v", time.Since(began))
	stop()
	if err := <-done; err != nil {
		t.Errorf("the end of listening is %v", err)
	}
	if len(other) > 0 {
		t.Errorf("the other tenant heard %+v", <-other)
	}
	// Resuming behind an event gives what came after it, and an error of the listener ends it.
	enough := errors.New("enough")
	err := h.Events(t.Context(), h.a, first.ID-1, func(e api.Event) error {
		if e.ID != first.ID {
			t.Errorf("%+v, want %+v", e, first)
		}
		return enough
	})
	if !errors.Is(err, enough) {
		t.Error(err)
	}
	counts, err := h.Counts(t.Context(), h.a)
	if want := (Counts{Agents: 1, Denials: 1}); err != nil || counts != want { // without a keeper the sandbox has ended
		t.Errorf("%+v %v", counts, err)
	}
}

func TestTrace(t *testing.T) {
	h := newTestHouse(t, "")
	agent := h.agent(t, h.a, "one", emptyPolicy)
	in := h.room(t, h.a, agent.ID, api.Running)
	lent := crossing(in, 2, "b.example.com", "allow")
	lent.Credential = "token"
	done := audit.Event{Kind: audit.CrossingFinished, Run: in.run(), Crossing: 2, Protocol: "https", Host: "b.example.com", Address: "192.0.2.1:443", Status: 200, BytesIn: 10, BytesOut: 20, Millis: 30}
	open := crossing(in, 3, "c.example.com", "allow")
	h.append(t, crossing(in, 1, "a.example.com", "deny"), lent, open, done)
	following, stop := context.WithCancel(t.Context())
	defer stop()
	go h.followLog(following) // nothing looks for a keeper, so the sandbox goes on
	var trace api.Trace
	eventually(t, "indexed", 10*time.Second, func() bool {
		var err error
		trace, err = h.Trace(t.Context(), h.a, in.sandbox)
		return err == nil && len(trace.Spans) == 3 && trace.Spans[1].Status == 200
	})
	s := trace.Spans
	if s[0].Verdict != "deny" || s[0].Open || s[1].Open || s[1].Millis != 30 || s[1].Credential != "token" || s[1].Place.Address != "192.0.2.1:443" || !s[2].Open {
		t.Errorf("%+v", s)
	}
	if _, err := h.Trace(t.Context(), h.b, in.sandbox); fault.KindOf(err) != fault.NotFound {
		t.Errorf("the other tenant: %v", err)
	}
}
