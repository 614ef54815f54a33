package control

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
)

// Whoever may read may have any text checked: it costs little time and gives a short answer.
func TestCheckOfHostileText(t *testing.T) {
	s := newStage(t)
	var b strings.Builder
	b.WriteString("version: 1\n")
	for i := range 90_000 {
		fmt.Fprintf(&b, "k%d:\n", i)
	}
	began := time.Now()
	out, err := s.CheckPolicy(t.Context(), s.a[api.Viewer], api.PolicyText{Text: b.String()})
	done(t, err)
	if n := len(out.Problems); out.OK || n != 101 || time.Since(began) > 30*time.Second {
		t.Errorf("%d problems in %v", n, time.Since(began))
	}
}

func TestFewAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFew(2)
		var all sync.WaitGroup
		enter := func(ctx context.Context) (func(), error) { return f.enter(ctx) }
		one, err := enter(t.Context())
		done(t, err)
		two, err := enter(t.Context())
		done(t, err)
		began := time.Now()
		_, err = enter(t.Context())
		wants(t, err, fault.TooMany)
		if d := time.Since(began); d != fewWait {
			t.Errorf("refused after %v", d)
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := enter(gone); err == nil {
			t.Error("a place for who has gone")
		}
		all.Go(func() { time.Sleep(time.Second); one() })
		three, err := enter(t.Context())
		done(t, err)
		all.Wait()
		two()
		three()
		if len(f) != 0 {
			t.Errorf("%d places are taken", len(f))
		}
	})
}

// The operations that read documents wait for their turn.
func TestReadingTakesTurns(t *testing.T) {
	s := newStage(t)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	for range cap(s.reading) {
		_, err := s.reading.enter(ctx)
		done(t, err)
	}
	if _, err := s.CheckPolicy(ctx, s.admin(), api.PolicyText{Text: "version: 1\n"}); err == nil {
		t.Error("CheckPolicy does not wait")
	}
	if _, err := s.Explain(ctx, s.admin(), api.ExplainRequest{Text: "version: 1\n", Target: "example.com:443"}); err == nil {
		t.Error("Explain does not wait")
	}
}
