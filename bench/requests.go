package main

import (
	"context"
	"errors"
	"strings"
)

// spoken is how people write a protocol inside TLS.
func spoken(protocol string) string {
	return map[string]string{http1: "HTTP/1.1", http2: "HTTP/2"}[protocol]
}

// inspectRows sends small requests with a credential lent to each.
func inspectRows(ctx context.Context, b *bench) ([]row, error) {
	rows, err := b.waits(ctx)
	if err != nil {
		return nil, err
	}
	more, err := b.rates(ctx)
	return append(rows, more...), err
}

// waits sends one request after the other, over one connection and each over a new one.
func (b *bench) waits(ctx context.Context) ([]row, error) {
	i, err := b.inspect(ctx, nil, nil)
	if err != nil {
		return nil, err
	}
	defer i.stop()
	var rows []row
	for _, protocol := range []string{http1, http2} {
		mine, others, err := b.settle(takeTurns(ctx, b.rounds(20), i.subjects(task{Do: "ask", Protocol: protocol, Count: 200})))
		if err != nil {
			return nil, err
		}
		r, ok := addedRow("inspected request with a lent credential, "+spoken(protocol)+", added to the direct p50", mine, others, 0.3, func(name string) aim {
			if strings.HasPrefix(name, mitmproxyName) {
				return atMostBoth(0.1)
			}
			return noAim()
		})
		if !ok {
			return nil, errors.New("nothing to compare with: no direct request was answered")
		}
		rows = append(rows, r)
	}
	mine, others, err := b.settle(takeTurns(ctx, b.rounds(20), i.subjects(task{Do: "ask anew", Protocol: http1, Count: 10})))
	if err != nil {
		return nil, err
	}
	r := row{what: "new inspected connection with one request, whole", unit: "ms", ours: mine}
	for _, o := range others {
		a := noAim()
		if o.name == directName {
			a = atMostAlone(3)
		}
		r.others = append(r.others, against(o, a))
	}
	return append(rows, r), nil
}

// rates sends as many requests as can be, through one processor for whatever inspects, and says how large it had grown.
func (b *bench) rates(ctx context.Context) ([]row, error) {
	first, second := b.pins()
	i, err := b.inspect(ctx, first, second)
	if err != nil {
		return nil, err
	}
	defer i.stop()
	var rows []row
	for _, protocol := range []string{http1, http2} {
		mine, others, err := b.settle(takeTurns(ctx, b.rounds(6), i.subjects(task{Do: "ask at once", Protocol: protocol, Count: 1000, Clients: 16})))
		if err != nil {
			return nil, err
		}
		over := map[string]string{http1: "over 16 connections in HTTP/1.1", http2: "16 at once over one connection in HTTP/2"}[protocol]
		r := row{what: "inspected requests, " + over + ", one processor for gateway or proxy", unit: "1/s", higher: true, ours: mine}
		for _, o := range others {
			a := noAim()
			if strings.HasPrefix(o.name, mitmproxyName) {
				a = atLeast(10)
			}
			r.others = append(r.others, against(o, a))
		}
		rows = append(rows, r)
	}
	grown, err := i.grown()
	return append(rows, grown), err
}

// grown is how large each of those that inspect has ever been.
func (i *inspecting) grown() (row, error) {
	mine, err := peak("gateway", i.in.cmd.Process.Pid)
	r := row{what: "memory of gateway or proxy after these requests, at its peak", unit: "MiB", ours: mine}
	for _, o := range i.others {
		theirs, failed := peak(o.name, o.cmd.Process.Pid)
		if err = errors.Join(err, failed); failed == nil {
			r.others = append(r.others, against(theirs, noAim()))
		}
	}
	return r, err
}

func peak(name string, pid int) (series, error) {
	mib, err := resident(pid, "VmHWM:")
	return series{name: name, values: []float64{mib}}, err
}
