package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/policy"
)

const (
	// finishedDelay is how long the record of an end may wait for company: the next crossing's record, or the timer. It gates nothing.
	finishedDelay = 100 * time.Millisecond
	// maxPending ends are written at once.
	maxPending = 64
	// Denials are recorded one by one up to a burst, refilled slowly; over that they are summed up once a second by place and rule.
	burst      = 1000
	refill     = 100 // a second
	sumDelay   = time.Second
	maxSums    = 1024 // places summed up apart; the rest of a flood is summed up by rule only
	lastWrites = 5 * time.Second
)

// place is where a crossing goes, as far as summing up is concerned.
type place struct {
	host, addr string
	port       uint16
	git        string // repository and refs
}

func placeOf(c policy.Crossing) place {
	p := place{host: string(c.Host), port: c.Port}
	if c.Git != nil {
		p.git = fmt.Sprintf("%.256s", c.Git.Upstream+"/"+c.Git.Repository+" "+strings.Join(refsOf(c.Git), " "))
	}
	if c.Addr.IsValid() {
		p.addr = c.Addr.String()
	}
	return p
}

// denialKey is what makes denials the same.
type denialKey struct {
	protocol policy.Protocol
	to       place
	rule     string
}

// ledger writes the audit events of one sandbox. A decision to let something through is written before it happens; ends and floods are
// written soon. It is safe for concurrent use.
type ledger struct {
	sandbox  ident.Run
	recorder recorder
	log      *slog.Logger
	kick     chan struct{} // something waits

	mu     sync.Mutex
	ends   []audit.Event
	sums   map[denialKey]*audit.Event
	tokens float64
	filled time.Time
}

func newLedger(run ident.Run, r recorder, log *slog.Logger) *ledger {
	return &ledger{sandbox: run, recorder: r, log: log, kick: make(chan struct{}, 1), sums: make(map[denialKey]*audit.Event), tokens: burst, filled: time.Now()}
}

// event begins an event about a crossing.
func event(kind audit.Kind, c policy.Crossing, d policy.Decision) audit.Event {
	e := audit.Event{
		Kind: kind, Principal: "sandbox", Protocol: c.Protocol.String(), Host: string(c.Host), Port: c.Port,
		Method: c.Method, Path: c.Path, Access: access(c), Verdict: d.Verdict.String(), Rule: d.Rule, Reason: d.Reason,
	}
	if c.Addr.IsValid() {
		e.Address = c.Addr.String()
	}
	if c.Git != nil {
		e.Repository, e.Refs = c.Git.Upstream+"/"+c.Git.Repository, refsOf(c.Git)
	}
	return e
}

// access tells reading from writing where the protocol shows it.
func access(c policy.Crossing) string {
	if c.Git != nil {
		return c.Git.Access.String()
	}
	switch c.Method {
	case "":
		return ""
	case "GET", "HEAD", "OPTIONS":
		return "read"
	}
	return "write"
}

// decided writes the record of a crossing that is about to be let through, and what waits. An error means that it must not happen.
func (l *ledger) decided(ctx context.Context, e audit.Event) error {
	l.mu.Lock()
	ends := l.ends
	l.ends = nil
	l.mu.Unlock()
	e.Run = l.sandbox
	if err := l.recorder.Append(ctx, append(ends, e)...); err != nil {
		l.putBack(ends)
		return err
	}
	return nil
}

// putBack keeps what could not be written for the next try.
func (l *ledger) putBack(ends []audit.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ends = append(ends, l.ends...)
}

// finished takes the record of an end, which is written within finishedDelay.
func (l *ledger) finished(e audit.Event, started time.Time) {
	e.Run, e.Time, e.Millis = l.sandbox, time.Now().UTC(), time.Since(started).Milliseconds()
	l.mu.Lock()
	l.ends = append(l.ends, e)
	full := len(l.ends) >= maxPending
	l.mu.Unlock()
	if full {
		l.writeEnds()
		return
	}
	l.wake()
}

func (l *ledger) wake() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

func (l *ledger) writeEnds() {
	l.mu.Lock()
	ends := l.ends
	l.ends = nil
	l.mu.Unlock()
	if len(ends) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), lastWrites)
	defer cancel()
	if err := l.recorder.Append(ctx, ends...); err != nil {
		l.log.Error("ends of crossings wait because they cannot be recorded", "error", err, "count", len(ends))
		l.putBack(ends)
	}
}

// denied records a denial by itself, or adds it to a sum while there is a flood. It is never lost: what cannot be written now is summed up.
func (l *ledger) denied(ctx context.Context, c policy.Crossing, d policy.Decision, e audit.Event) {
	e.Run = l.sandbox
	if l.take() {
		err := l.recorder.Append(context.WithoutCancel(ctx), e)
		if err == nil {
			return
		}
		l.log.ErrorContext(ctx, "denial waits because it cannot be recorded", "error", err)
	}
	l.sum(c, d, "summed up")
}

// take takes a token from the bucket.
func (l *ledger) take() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.tokens = min(burst, l.tokens+now.Sub(l.filled).Seconds()*refill)
	l.filled = now
	if l.tokens < 1 {
		return false
	}
	l.tokens--
	return true
}

// sum counts a denial into the record of its place and rule, or of its rule alone when there are too many places.
func (l *ledger) sum(c policy.Crossing, d policy.Decision, detail string) { l.sumN(c, d, detail, 1) }

// sumN counts n denials.
func (l *ledger) sumN(c policy.Crossing, d policy.Decision, detail string, n uint64) {
	key := denialKey{c.Protocol, placeOf(c), d.Rule}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sums[key] == nil && len(l.sums) >= maxSums {
		c, detail = policy.Crossing{Protocol: c.Protocol}, "summed up over many places"
		key.to = place{}
	}
	s := l.sums[key]
	if s == nil {
		e := event(audit.CrossingDecided, c, d)
		e.Run, e.Detail = l.sandbox, detail
		s = &e
		l.sums[key] = s
	}
	s.Count += n
	l.wake()
}

// writeSums writes all sums; those that cannot be written go on counting.
func (l *ledger) writeSums() {
	l.mu.Lock()
	sums := l.sums
	l.sums = make(map[denialKey]*audit.Event)
	l.mu.Unlock()
	if len(sums) == 0 {
		return
	}
	batch := make([]audit.Event, 0, len(sums))
	for _, e := range sums {
		batch = append(batch, *e)
	}
	ctx, cancel := context.WithTimeout(context.Background(), lastWrites)
	defer cancel()
	err := l.recorder.Append(ctx, batch...)
	if err == nil {
		return
	}
	l.log.Error("sums of denials wait because they cannot be recorded", "error", err, "count", len(batch))
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, e := range sums {
		if now := l.sums[key]; now != nil {
			e.Count += now.Count
		}
		l.sums[key] = e
	}
}

// run writes what waits until done is closed, and then everything that is left. It sleeps while nothing waits.
func (l *ledger) run(done <-chan struct{}) {
	var summed time.Time
	for {
		select {
		case <-done:
			l.writeEnds()
			l.writeSums()
			if n := l.left(); n > 0 {
				l.log.Error("the run ends with records that cannot be written", "count", strconv.Itoa(n))
			}
			return
		case <-l.kick:
		}
		select {
		case <-done:
			continue
		case <-time.After(finishedDelay):
		}
		l.writeEnds()
		if time.Since(summed) >= sumDelay {
			summed = time.Now()
			l.writeSums()
		}
		if l.left() > 0 {
			l.wake()
		}
	}
}

func (l *ledger) left() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.ends) + len(l.sums)
}
