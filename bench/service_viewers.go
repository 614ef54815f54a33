package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	wire "github.com/cofferdam/cofferdam/api"
)

const (
	// viewers watch at once. Each person may have 128 streams, and each address 256 requests, so there are several of both.
	viewers          = 500
	viewersOfPerson  = 125
	viewersOfAddress = 250
)

// viewerRows has many people watch what happens, and measures from each event to the last of them.
func viewerRows(ctx context.Context, s *service) ([]row, error) {
	var people []*person
	for i := range viewers / viewersOfPerson {
		p, err := s.invite(ctx, fmt.Sprintf("viewer%d@bench.example.com", i), wire.Viewer)
		if err != nil {
			return nil, err
		}
		people = append(people, p)
	}
	if err := s.restart(ctx); err != nil { // to hash passwords takes memory, which would hide what viewers take
		return nil, err
	}
	agent, err := s.admin.api.Agent(ctx, builder)
	if err != nil {
		return nil, err
	}
	pid := s.cmd.Process.Pid
	alone, err := s.watched(ctx, people, 1, &agent)
	if err != nil {
		return nil, err
	}
	before, err := resident(pid, "VmRSS:")
	if err != nil {
		return nil, err
	}
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0) // forgets the peak; where not permitted it is no lower
	crowded, err := s.watched(ctx, people, viewers, &agent)
	if err != nil {
		return nil, err
	}
	most, err := resident(pid, "VmHWM:")
	if err != nil {
		return nil, err
	}
	due := series{name: "due", values: []float64{float64(viewers * len(crowded.last.values))}}
	crowded.all.name, alone.last.name = fmt.Sprintf("to each of %d viewers", viewers), "to a single viewer"
	return []row{
		{what: fmt.Sprintf("from an event to the last of %d viewers", viewers), unit: "ms", ours: crowded.last,
			others: []comparison{against(crowded.all, noAim()), against(alone.last, noAim())}},
		{what: fmt.Sprintf("events delivered to %d viewers, in order, none twice", viewers), unit: "all together", higher: true, ours: crowded.delivered,
			others: []comparison{against(due, atLeast(1))}},
		{what: fmt.Sprintf("its memory with %d viewers above that before, peak", viewers), unit: "MiB", ours: series{name: "service", values: []float64{most - before}},
			others: []comparison{against(series{name: "itself before, whole", values: []float64{before}}, noAim())}},
	}, nil
}

// views is what came of watching.
type views struct{ last, all, delivered series }

// watched opens so many streams, has events happen, and closes them.
func (s *service) watched(ctx context.Context, people []*person, n int, agent *wire.Agent) (v views, err error) {
	ctx, stop := context.WithCancel(ctx)
	w := newBoard(n)
	var all sync.WaitGroup
	problems := make(chan error, n)
	defer func() {
		stop()
		all.Wait()
	}()
	for i := range n {
		from := net.IPv4(127, 0, 0, byte(2+i/viewersOfAddress))
		all.Go(func() {
			if err := s.view(ctx, people[i/viewersOfPerson], from, w); err != nil && ctx.Err() == nil {
				problems <- fmt.Errorf("viewer %d: %w", i, err)
			}
		})
	}
	if err := w.until(ctx, problems, func() bool { return w.watching == n }); err != nil {
		return v, err
	}
	for i := range s.b.rounds(100) {
		text := "change " + strconv.Itoa(i)
		changed, err := s.admin.api.ChangeAgent(ctx, agent.ID, agent.Version, wire.AgentChange{Description: &text})
		if err != nil {
			return v, err
		}
		*agent = changed
		if err := w.until(ctx, problems, func() bool { return len(w.order) == i+1 && w.seen[w.order[i]].count == n }); err != nil {
			return v, fmt.Errorf("event %d: %w", i, err)
		}
		time.Sleep(breath)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	total := 0
	for _, id := range w.order {
		total += w.seen[id].count
		v.last.values = append(v.last.values, milliseconds(w.seen[id].last.Sub(w.seen[id].happened)))
	}
	v.all.values, v.delivered.values = w.waits, []float64{float64(total)}
	return v, nil
}

// board is where viewers note what they see. It is safe for concurrent use.
type board struct {
	n int

	mu       sync.Mutex
	watching int
	order    []int64 // identifiers of events, as they first came
	seen     map[int64]*sighting
	waits    []float64 // milliseconds from an event to a viewer
	changed  chan struct{}
}

// sighting is an event and who has seen it.
type sighting struct {
	happened, last time.Time
	count          int
}

func newBoard(n int) *board {
	return &board{n: n, seen: map[int64]*sighting{}, changed: make(chan struct{}, 1)}
}

func (w *board) begins() {
	w.mu.Lock()
	w.watching++
	w.mu.Unlock()
	w.tell()
}

func (w *board) tell() {
	select {
	case w.changed <- struct{}{}:
	default: // it is told already
	}
}

// note takes down that a viewer has an event.
func (w *board) note(id int64, at time.Time, data string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.seen[id]
	if s == nil {
		var e wire.Event
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			return err
		}
		s = &sighting{happened: e.Time}
		w.seen[id], w.order = s, append(w.order, id)
	}
	s.count++
	if at.After(s.last) {
		s.last = at
	}
	w.waits = append(w.waits, milliseconds(at.Sub(s.happened)))
	if s.count == w.n {
		w.tell()
	}
	return nil
}

// until waits until something is so.
func (w *board) until(ctx context.Context, problems <-chan error, is func() bool) error {
	patience := time.NewTimer(20 * time.Second)
	defer patience.Stop()
	for {
		w.mu.Lock()
		ok := is()
		w.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-w.changed:
		case err := <-problems:
			return err
		case <-patience.C:
			w.mu.Lock()
			defer w.mu.Unlock()
			for id, s := range w.seen {
				if s.count != w.n {
					return fmt.Errorf("event %d reached %d of %d viewers", id, s.count, w.n)
				}
			}
			return fmt.Errorf("%d of %d viewers watch", w.watching, w.n)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// view watches what happens, as a browser does, until ctx ends. Identifiers must grow.
func (s *service) view(ctx context.Context, p *person, from net.IP, w *board) error {
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: from}}
	own := &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true, ReadBufferSize: 1024, WriteBufferSize: 1024}}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/api/v1/events", nil)
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+p.token)
	r.Header.Set("Accept", "text/event-stream")
	answer, err := own.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return errors.New(answer.Status)
	}
	w.begins()
	id, last := int64(0), int64(0)
	lines := bufio.NewScanner(answer.Body)
	for lines.Scan() {
		at := time.Now()
		if text, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
			if id, err = strconv.ParseInt(text, 10, 64); err != nil {
				return err
			}
			if id <= last {
				return fmt.Errorf("event %d came after event %d", id, last)
			}
			last = id
		} else if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			if err := w.note(id, at, data); err != nil {
				return err
			}
		}
	}
	return errors.Join(errors.New("the stream ended"), lines.Err())
}
