package main

import (
	"cmp"
	"context"
	"sync"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/client"
)

// denialWatch tells, while a command runs at a server, what it is denied and what waits for a person.
type denialWatch struct {
	r      *remote
	box    api.Sandbox
	say    *notifier
	stop   context.CancelFunc
	over   sync.WaitGroup
	mu     sync.Mutex
	told   map[string]bool // groups of denials, and approvals
	denied int             // groups
}

// watchDenials begins. The caller calls end.
func watchDenials(ctx context.Context, r *remote, box api.Sandbox, say *notifier) *denialWatch {
	ctx, stop := context.WithCancel(ctx)
	w := &denialWatch{r: r, box: box, say: say, stop: stop, told: map[string]bool{}}
	w.over.Go(func() {
		err := r.Events(ctx, -1, func(e api.Event) error {
			if e.Agent == box.Agent {
				w.happened(ctx, e)
			}
			return nil
		})
		if err != nil && ctx.Err() == nil {
			say.note("what is denied is not told as it happens: " + inert(explain(r.URL, err).Error(), 200))
		}
	})
	return w
}

// happened looks at what an event is about. Only what concerns this sandbox is told.
func (w *denialWatch) happened(ctx context.Context, e api.Event) {
	switch {
	case w.knows(e.Subject): // a flood is told once, and asked about once
	case e.Type == "denial" && e.State == string(api.Open):
		if d, err := w.r.Denial(ctx, e.Subject); err == nil { // what cannot be seen is counted at the end
			w.denial(d)
		}
	case e.Type == "approval" && e.State == "waiting":
		if one, err := w.r.Approval(ctx, e.Subject); err == nil {
			w.approval(one)
		}
	}
}

func (w *denialWatch) knows(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.told[id]
}

// first says whether something is new.
func (w *denialWatch) first(id string, denied int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.told[id] {
		return false
	}
	w.told[id] = true
	w.denied += denied
	return true
}

func (w *denialWatch) denial(d api.Denial) {
	if d.Sandbox != w.box.ID || !w.first(d.ID, 1) || w.say.quiet {
		return
	}
	remedy := ""
	if d.Suggestion != nil {
		remedy = "cofferdam review allow " + d.ID
	}
	process, where := inert(cmp.Or(d.Process, "a program"), 60), inert(d.Destination, 200)
	if w.say.json {
		w.say.object("denied", deniedJSON{Destination: where, Protocol: inert(d.Place.Protocol, 20), Process: process, Rule: inert(d.Rule, 200), Reason: inert(d.Reason, 300), Allow: remedy})
		return
	}
	text := "cofferdam: denied " + process + " → " + where + ": " + inert(d.Reason, 300)
	if remedy != "" {
		text += "; to allow: " + remedy
	}
	w.say.line(text)
}

func (w *denialWatch) approval(one api.Approval) {
	if one.Sandbox != w.box.ID || !w.first(one.ID, 0) {
		return
	}
	w.say.note(inert(cmp.Or(one.Process, "a program"), 60) + " → " + inert(one.Destination, 200) + " waits " + until(one.Deadline) + " for a person: cofferdam review allow " + one.ID + " or deny " + one.ID)
}

// lastLook bounds the search for what the events have not told yet.
const lastLook = 5 * time.Second

// end tells what the server noted last, and ends.
func (w *denialWatch) end() {
	w.stop()
	w.over.Wait()
	if w.box.ID == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), lastLook)
	defer cancel()
	page, err := w.r.Denials(ctx, w.box.Agent, []api.DenialState{api.Open}, client.Page{Limit: 200})
	if err != nil {
		return // the summary counts
	}
	for _, d := range page.Items {
		w.denial(d)
	}
}

// groups is how many denials there were that differ.
func (w *denialWatch) groups() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.denied
}
