package control

import (
	"context"
	"maps"
	"slices"
	"strconv"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/review"
	"github.com/cofferdam/cofferdam/internal/store"
)

// maxGroups bounds the open groups of denials of one agent. What goes beyond is counted in one more for each protocol.
const maxGroups = 500

// refused is a denied crossing of an agent, from the audit log.
type refused struct {
	tenant, agent string
	event         audit.Event
}

// tally is the denials of one batch that belong into one group, oldest first.
type tally struct {
	refused
	key  string
	more []*audit.Event // the newest is refused.event itself
}

// noteDenials counts denials into their groups, in the transaction that takes them into the index, so that each counts once whatever ends this process.
// A group is written once for all of them: a program makes ten thousand a second.
func (s *Service) noteDenials(ctx context.Context, tx *store.DB, found []refused) error {
	var groups []*tally
	known := map[[2]string]*tally{}
	for i := range found {
		f := &found[i]
		at := [2]string{f.tenant, review.Key(f.agent, &f.event)}
		if known[at] == nil {
			known[at] = &tally{key: at[1]}
			groups = append(groups, known[at])
		}
		known[at].refused, known[at].more = *f, append(known[at].more, &f.event)
	}
	told := map[[2]string]store.Event{}
	for _, g := range groups {
		o, err := noteGroup(ctx, tx, g)
		if err != nil {
			return err
		}
		told[[2]string{g.tenant, o.ID}] = store.Event{Tenant: g.tenant, Type: "denial", Subject: o.ID, Agent: g.agent, State: o.State, Time: g.event.Time}
	}
	if len(told) == 0 {
		return nil
	}
	_, err := tx.Emit(ctx, slices.Collect(maps.Values(told))...)
	return err
}

func noteGroup(ctx context.Context, tx *store.DB, g *tally) (store.Object[DenialData], error) {
	o, err := denials().ByName(ctx, tx, g.tenant, g.key)
	if fault.KindOf(err) == fault.NotFound {
		return firstDenial(ctx, tx, g)
	}
	if err != nil {
		return o, err
	}
	return anotherDenial(ctx, tx, g, o)
}

// firstDenial opens a group, or where there are too many counts into the one that takes the rest.
func firstDenial(ctx context.Context, tx *store.DB, g *tally) (store.Object[DenialData], error) {
	n, err := denials().Count(ctx, tx, g.tenant, store.Filter{Parent: g.agent, States: []string{string(api.Open)}})
	if err != nil {
		return store.Object[DenialData]{}, err
	}
	place := review.PlaceOf(&g.event)
	if n >= maxGroups {
		g.key, place = review.OverflowKey(g.agent, &g.event), api.Place{Protocol: g.event.Protocol}
		o, err := denials().ByName(ctx, tx, g.tenant, g.key)
		if err == nil {
			return anotherDenial(ctx, tx, g, o)
		}
		if fault.KindOf(err) != fault.NotFound {
			return o, err
		}
	}
	data := DenialData{Place: place, First: g.more[0].Time}
	data.add(g)
	return denials().Insert(ctx, tx, store.Object[DenialData]{Tenant: g.tenant, Name: g.key, Parent: g.agent, State: string(api.Open), Data: data})
}

// anotherDenial counts into a group. What was dismissed, or allowed by a rule that has ended since, is open again; what a person refused stays refused.
func anotherDenial(ctx context.Context, tx *store.DB, g *tally, o store.Object[DenialData]) (store.Object[DenialData], error) {
	if !o.Data.add(g) {
		return o, nil // all of them were counted before
	}
	if o.State != string(api.Refused) {
		o.State, o.Data.DecidedBy = string(api.Open), ""
	}
	return denials().Update(ctx, tx, o)
}

// add counts what is newer than what was counted, as after the index was made anew, and says whether there was any.
func (d *DenialData) add(g *tally) bool {
	before := d.Count
	for _, e := range g.more {
		if e.Seq > d.Sequence {
			d.Count += max(e.Count, 1)
		}
	}
	if d.Count == before {
		return false
	}
	d.latest(&g.refused)
	return true
}

// latest takes over what the newest denial of a group says.
func (d *DenialData) latest(f *refused) {
	e := &f.event
	d.Rule, d.Reason, d.Credential = e.Rule, e.Reason, e.Credential
	d.Last, d.Sandbox, d.Sequence = e.Time, e.Run.String(), e.Seq
	if e.Process != "" {
		d.Process = e.Process
		if e.PID > 0 {
			d.Process += " (" + strconv.Itoa(e.PID) + ")"
		}
	}
	d.Resolved = ""
	if e.Host != "" {
		d.Resolved = e.Address
	}
}
