package control

import (
	"context"
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

// noteDenials counts denials into their groups, in the transaction that takes them into the index, so that each counts once whatever ends this process.
func (s *Service) noteDenials(ctx context.Context, tx *store.DB, found []refused) error {
	type group struct{ tenant, key string }
	told := map[group]store.Event{}
	for i := range found {
		f := &found[i]
		o, err := noteDenial(ctx, tx, f)
		if err != nil {
			return err
		}
		told[group{f.tenant, o.ID}] = store.Event{Tenant: f.tenant, Type: "denial", Subject: o.ID, Agent: f.agent, State: o.State, Time: f.event.Time}
	}
	events := make([]store.Event, 0, len(told))
	for _, e := range told {
		events = append(events, e)
	}
	if len(events) == 0 {
		return nil
	}
	_, err := tx.Emit(ctx, events...)
	return err
}

func noteDenial(ctx context.Context, tx *store.DB, f *refused) (store.Object[DenialData], error) {
	key := review.Key(f.agent, &f.event)
	o, err := denials().ByName(ctx, tx, f.tenant, key)
	if fault.KindOf(err) == fault.NotFound {
		return firstDenial(ctx, tx, f, key)
	}
	if err != nil {
		return o, err
	}
	return anotherDenial(ctx, tx, f, o)
}

// firstDenial opens a group, or where there are too many counts into the one that takes the rest.
func firstDenial(ctx context.Context, tx *store.DB, f *refused, key string) (store.Object[DenialData], error) {
	n, err := denials().Count(ctx, tx, f.tenant, store.Filter{Parent: f.agent, States: []string{string(api.Open)}})
	if err != nil {
		return store.Object[DenialData]{}, err
	}
	e := &f.event
	place := review.PlaceOf(e)
	if n >= maxGroups {
		key = review.OverflowKey(f.agent, e)
		place = api.Place{Protocol: e.Protocol}
		o, err := denials().ByName(ctx, tx, f.tenant, key)
		if err == nil {
			return anotherDenial(ctx, tx, f, o)
		}
		if fault.KindOf(err) != fault.NotFound {
			return o, err
		}
	}
	data := DenialData{Place: place, Count: max(e.Count, 1), First: e.Time}
	data.latest(f)
	return denials().Insert(ctx, tx, store.Object[DenialData]{Tenant: f.tenant, Name: key, Parent: f.agent, State: string(api.Open), Data: data})
}

// anotherDenial counts into a group. What was dismissed, or allowed by a rule that has ended since, is open again; what a person refused stays refused.
func anotherDenial(ctx context.Context, tx *store.DB, f *refused, o store.Object[DenialData]) (store.Object[DenialData], error) {
	if f.event.Seq <= o.Data.Sequence {
		return o, nil // counted already
	}
	o.Data.Count += max(f.event.Count, 1)
	o.Data.latest(f)
	if o.State != string(api.Refused) {
		o.State, o.Data.DecidedBy = string(api.Open), ""
	}
	return denials().Update(ctx, tx, o)
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
