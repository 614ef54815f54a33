package gateway

import (
	"sync"
	"time"

	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/policy"
)

const (
	// maxDenials bounds the distinct denials that are kept and told; what comes after is counted, and recorded by the ledger.
	maxDenials = 4096
	// Owners are asked for at most this often, so that a flood of new denials neither loads the runner nor delays what comes after.
	ownerBurst  = 20
	ownerRefill = 20 // a second
)

// Denial is one distinct denial and how often it happened. Process and PID in Owner come from inside the sandbox.
type Denial struct {
	Crossing policy.Crossing
	Decision policy.Decision
	Owner    frame.Owner
	Count    uint64
}

// denials counts what was refused. Its zero value is ready; it is safe for concurrent use.
type denials struct {
	mu     sync.Mutex
	known  map[denialKey]*Denial
	order  []*Denial
	count  uint64
	tokens float64
	filled time.Time
}

// add counts a denial and says whether it is a new one that is to be told.
func (d *denials) add(c policy.Crossing, why policy.Decision, n uint64) (fresh bool) {
	key := denialKey{c.Protocol, placeOf(c), why.Rule}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.count += n
	if one := d.known[key]; one != nil {
		one.Count += n
		return false
	}
	if len(d.order) >= maxDenials {
		return false
	}
	if d.known == nil {
		d.known = make(map[denialKey]*Denial)
	}
	one := &Denial{Crossing: c, Decision: why, Count: n}
	d.known[key] = one
	d.order = append(d.order, one)
	return true
}

// own notes whose a denial was and returns it.
func (d *denials) own(c policy.Crossing, why policy.Decision, owner frame.Owner) Denial {
	d.mu.Lock()
	defer d.mu.Unlock()
	one := d.known[denialKey{c.Protocol, placeOf(c), why.Rule}]
	one.Owner = owner
	return *one
}

// mayAsk says whether the runner may be asked for an owner now.
func (d *denials) mayAsk() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	if d.filled.IsZero() {
		d.tokens = ownerBurst
	} else {
		d.tokens = min(ownerBurst, d.tokens+now.Sub(d.filled).Seconds()*ownerRefill)
	}
	d.filled = now
	if d.tokens < 1 {
		return false
	}
	d.tokens--
	return true
}

func (d *denials) total() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.count
}

func (d *denials) list() []Denial {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]Denial, 0, len(d.order))
	for _, one := range d.order {
		out = append(out, *one)
	}
	return out
}
