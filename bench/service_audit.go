package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/ident"
)

// appendRows measures the audit log alone: how much it takes, and what one crossing pays for being recorded. A gateway without a log cannot be had: what
// cannot be recorded does not happen.
func appendRows(ctx context.Context, s *service) ([]row, error) {
	length := time.Duration(float64(time.Second) * min(1, s.b.scale))
	var rows []row
	for _, r := range []struct {
		what     string
		subjects []subject
	}{
		{"audit events appended", []subject{
			{"64 writers, group-committed", s.b.appending(load{logs: 1, writers: 64, length: length})},
			{"one writer", s.b.appending(load{logs: 1, writers: 1, length: length})},
			{"8 processes, one writer each", s.b.appending(load{logs: 8, writers: 1, length: length})},
		}},
		{"audit events appended and on the disk", []subject{
			{"64 writers, each until its own is there", s.b.appending(load{logs: 1, writers: 64, length: length, safe: true})},
			{"one writer, 100 at a time", s.b.appending(load{logs: 1, writers: 1, at: 100, length: length, safe: true})},
		}},
	} {
		mine, rest, err := s.b.settle(takeTurns(ctx, s.b.rounds(5), r.subjects))
		if err != nil {
			return rows, err
		}
		line := row{what: r.what + ", " + mine.name, unit: "1/s", higher: true, ours: mine, others: []comparison{against(rest[0], atLeastAlone(20_000))}}
		for _, o := range rest[1:] {
			line.others = append(line.others, against(o, noAim()))
		}
		rows = append(rows, line)
	}
	mine, rest, err := s.b.settle(takeTurns(ctx, s.b.rounds(20), []subject{{"one gateway", s.b.crossings(0)}, {"one of 8 busy gateways", s.b.crossings(7)}}))
	if err != nil {
		return rows, err
	}
	pair := row{what: "what its two audit records add to a crossing, nothing else going on", unit: "ms", ours: mine}
	for _, o := range rest {
		pair.others = append(pair.others, against(o, atMostAlone(0.2)))
	}
	return append(rows, pair), nil
}

// crossingEvents are the two records of a request.
func crossingEvents(n uint64) (decided, finished audit.Event) {
	decided = audit.Event{Kind: audit.CrossingDecided, Run: "abcdefgh", Principal: "sandbox", Crossing: n, Protocol: "https", Access: "read", Host: "mirror.example.com",
		Address: "198.18.0.7:443", Port: 443, Method: "GET", Path: "/v1/things/7", Verdict: "allow", Rule: "egress.rules[3]", Reason: "named by a rule", Process: "npm", PID: 42}
	finished = audit.Event{Kind: audit.CrossingFinished, Run: "abcdefgh", Principal: "sandbox", Crossing: n, Protocol: "https", Access: "read", Host: "mirror.example.com",
		Address: "93.184.216.34:443", Port: 443, Status: 200, BytesIn: 4711, BytesOut: 512, Millis: 31}
	return decided, finished
}

// openLogs opens a log of its own several times, as several processes do, and returns what closes and removes it.
func (b *bench) openLogs(n int) (logs []*audit.Log, closeAll func() error, err error) {
	dir, err := os.MkdirTemp(b.dir, "audit")
	if err != nil {
		return nil, nil, err
	}
	closeAll = func() error {
		var err error
		for _, l := range logs {
			err = errors.Join(err, l.Close())
		}
		return errors.Join(err, os.RemoveAll(dir))
	}
	for range n {
		l, err := audit.Open(dir)
		if err != nil {
			return nil, nil, errors.Join(err, closeAll())
		}
		logs = append(logs, l)
	}
	return logs, closeAll, nil
}

// load is who appends.
type load struct {
	logs, writers int // of one log opened so many times, and of each of them
	at            int // events at once; 0 means one
	length        time.Duration
	safe          bool // each waits until what it wrote is on the disk
}

// appending measures events a second.
func (b *bench) appending(l load) func(context.Context) ([]float64, error) {
	return func(ctx context.Context) ([]float64, error) {
		logs, closeAll, err := b.openLogs(l.logs)
		if err != nil {
			return nil, err
		}
		began := time.Now()
		n, err := l.append(ctx, logs, began.Add(l.length))
		took := time.Since(began)
		return []float64{float64(n) / took.Seconds()}, errors.Join(err, closeAll())
	}
}

func (l load) append(ctx context.Context, logs []*audit.Log, until time.Time) (total int, err error) {
	var wg sync.WaitGroup
	counts, problems := make([]int, l.writers*len(logs)), make([]error, l.writers*len(logs))
	event, _ := crossingEvents(7)
	events := slices.Repeat([]audit.Event{event}, max(1, l.at))
	for i := range counts {
		log := logs[i%len(logs)]
		wg.Go(func() {
			for time.Now().Before(until) && problems[i] == nil {
				problems[i] = log.Append(ctx, events...)
				if problems[i] == nil && l.safe {
					problems[i] = log.Sync()
				}
				counts[i] += len(events)
			}
		})
	}
	wg.Wait()
	for _, n := range counts {
		total += n
	}
	return total, errors.Join(problems...)
}

// crossings measures milliseconds for the two records of a crossing, while others write a hundred pairs a second each.
func (b *bench) crossings(busy int) func(context.Context) ([]float64, error) {
	return func(ctx context.Context) (values []float64, err error) {
		logs, closeAll, err := b.openLogs(1 + busy)
		if err != nil {
			return nil, err
		}
		others, stop := context.WithCancel(ctx)
		var wg sync.WaitGroup
		for _, l := range logs[1:] {
			wg.Go(func() {
				for tick := time.NewTicker(10 * time.Millisecond); ; {
					select {
					case <-others.Done():
						tick.Stop()
						return
					case <-tick.C:
						_ = appendPair(others, l, 1) // it is only there to be in the way
					}
				}
			})
		}
		for n := range uint64(200) {
			began := time.Now()
			if err = appendPair(ctx, logs[0], n); err != nil {
				break
			}
			values = append(values, milliseconds(time.Since(began)))
			time.Sleep(time.Millisecond) // so that others have their turn
		}
		stop()
		wg.Wait()
		return values, errors.Join(err, closeAll())
	}
}

func appendPair(ctx context.Context, l *audit.Log, n uint64) error {
	decided, finished := crossingEvents(n)
	if err := l.Append(ctx, decided); err != nil {
		return err
	}
	return l.Append(ctx, finished)
}

// fillAudit writes so many events of the past into the service's log, which must not run, as many agents would: few of them busy, few hosts in
// nearly every event, a long tail, few refusals.
func (s *service) fillAudit(ctx context.Context, mix *auditMix, n int) (err error) {
	l, err := audit.Open(filepath.Join(s.state, "audit"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	const batch = 500
	events := make([]audit.Event, 0, batch)
	for i := range n {
		if events = append(events, mix.event(i)); len(events) == batch || i == n-1 {
			if err := l.Append(ctx, events...); err != nil {
				return fmt.Errorf("write the log: %w", err)
			}
			events = events[:0]
		}
	}
	return nil
}

// runOf is the sandbox that an agent's events belong to.
func (m *auditMix) runOf(agent, i int) ident.Run { return m.runs[agent][i%len(m.runs[agent])] }
