package main

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/ident"
)

func TestServiceAims(t *testing.T) {
	ours := series{values: []float64{1, 2, 9}}
	for _, c := range []struct {
		name string
		aim  aim
		met  bool
	}{
		{"slowest at most nine", atMostSlow(9), true}, {"slowest at most eight", atMostSlow(8), false},
		{"at least two", atLeastAlone(2), true}, {"at least three", atLeastAlone(3), false},
	} {
		if _, met := c.aim.judge(ours, series{values: []float64{1}}); met != c.met {
			t.Errorf("%s: met is %v, want %v", c.name, met, c.met)
		}
	}
}

func TestTokenOf(t *testing.T) {
	for link, want := range map[string]string{"http://127.0.0.1:1/setup?token=abc": "abc", "http://127.0.0.1:1/setup": "", "": "", "%": ""} {
		if got, err := tokenOf(link); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", link, got, err)
		}
	}
}

// TestAnswered: an answer that is no good one is never taken for one, since it would be quick.
func TestAnswered(t *testing.T) {
	for _, c := range []struct {
		status int
		body   string
		err    error
		want   string // "" for an error
	}{{200, `{"a":"x"}`, nil, "x"}, {429, `{"a":"x"}`, nil, ""}, {303, ``, nil, ""}, {200, `no JSON`, nil, ""}, {200, `{}`, errors.New("gone"), ""}} {
		r, _ := http.NewRequest(http.MethodGet, "http://127.0.0.1/p", nil) // it is valid
		answer := &http.Response{StatusCode: c.status, Status: http.StatusText(c.status), Body: io.NopCloser(strings.NewReader(c.body)), Request: r}
		var got struct{ A string }
		if err := answered(answer, c.err)(&got); got.A != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%d %s: %q, %v", c.status, c.body, got.A, err)
		}
	}
}

func TestBoard(t *testing.T) {
	happened := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	const event = `{"id":7,"type":"agent","time":"2026-01-01T00:00:00Z"}`
	w := newBoard(2)
	for i, after := range []time.Duration{30 * time.Millisecond, 20 * time.Millisecond} {
		if err := w.note(7, happened.Add(after), event); err != nil {
			t.Fatal(err)
		}
		if told := len(w.changed) == 1; told != (i == 1) {
			t.Errorf("after %d viewers: told is %v", i+1, told)
		}
	}
	if s := w.seen[7]; s.count != 2 || s.last.Sub(s.happened) != 30*time.Millisecond || len(w.order) != 1 || len(w.waits) != 2 || w.waits[1] != 20 {
		t.Errorf("%+v, %v, %v", s, w.order, w.waits)
	}
	if err := w.note(8, happened, "no JSON"); err == nil {
		t.Error("no error")
	}
}

// TestAuditMix holds the mix to what the searches look for.
func TestAuditMix(t *testing.T) {
	const n = 50_000
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	mix := newAuditMix(start, n)
	for i := range mix.runs {
		mix.runs[i] = []ident.Run{ident.NewRun(), ident.NewRun()}
	}
	busiest := map[ident.Run]bool{mix.runs[0][0]: true, mix.runs[0][1]: true}
	rare, last, refused, busy := 0, 0, 0, 0
	for i := range n {
		e := mix.event(i)
		if !e.Time.Equal(start.Add(time.Duration(i) * auditSpacing)) {
			t.Fatalf("event %d is of %v", i, e.Time)
		}
		switch e.Host {
		case rareHost:
			rare++
			if busiest[e.Run] {
				t.Error("the busiest agent meets the rare host")
			}
		case lastHost:
			if last++; i != n-1 {
				t.Errorf("event %d goes where only the last does", i)
			}
		}
		if e.Verdict == "deny" {
			if refused++; e.Kind != audit.CrossingDecided {
				t.Errorf("a refusal is %s", e.Kind)
			}
		}
		if busiest[e.Run] {
			busy++
		}
	}
	if rare != 1 || last != 1 || refused < n/2000 || refused > n/500 || busy < n/50 {
		t.Errorf("rare %d, last %d, refused %d, of the busiest %d", rare, last, refused, busy)
	}
}
