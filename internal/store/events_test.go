package store_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/store"
)

func TestEvents(t *testing.T) {
	both(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		if last, err := db.LastEvent(ctx); last != 0 || err != nil {
			t.Error(last, err)
		}
		at := time.Date(2026, 5, 1, 0, 0, 0, 1000, time.UTC)
		e := store.Event{Tenant: "t", Type: "sandbox", Subject: "s\x00", Agent: "a", State: "running", Time: at}
		first, err := db.Emit(ctx, e, store.Event{Tenant: "u", Type: "other"}, e)
		if err != nil {
			t.Fatal(err)
		}
		boom := errors.New("boom")
		err = db.Within(ctx, func(tx *store.DB) error {
			if _, err := tx.Emit(ctx, e); err != nil {
				return err
			}
			return boom
		})
		if !errors.Is(err, boom) {
			t.Error(err)
		}
		last, err := db.Emit(ctx, e)
		if err != nil || last <= first {
			t.Error(first, last, err)
		}
		got, err := db.Events(ctx, "t", 0, 10)
		if err != nil || len(got) != 3 || got[2].ID != last || got[0].Subject != "s\uFFFD" || !got[0].Time.Equal(at) {
			t.Errorf("%+v %v", got, err)
		}
		if got, err := db.Events(ctx, "t", got[0].ID, 1); err != nil || len(got) != 1 || got[0].ID != first {
			t.Errorf("%+v %v", got, err)
		}
		if got, err := db.Events(ctx, store.AnyTenant, 0, 10); err != nil || len(got) != 4 {
			t.Errorf("%+v %v", got, err)
		}
		if now, err := db.LastEvent(ctx); now != last || err != nil {
			t.Error(now, last, err)
		}
	})
}

// TestEventsInOrder: who reads after an identifier misses none, though transactions that emit take longer or shorter.
func TestEventsInOrder(t *testing.T) {
	both(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		const writers, each = 8, 25
		var running sync.WaitGroup
		for w := range writers {
			running.Go(func() {
				for i := range each {
					err := db.Within(ctx, func(tx *store.DB) error {
						_, err := tx.Emit(ctx, store.Event{Tenant: "t", Type: fmt.Sprint(w, i)})
						if db.Dialect() == "postgres" {
							time.Sleep(time.Duration(rand.IntN(3)) * time.Millisecond)
						}
						return err
					})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		done := make(chan struct{})
		go func() { running.Wait(); close(done) }()
		seen, after := 0, int64(0)
		for ended := false; ; {
			events, err := db.Events(ctx, "t", after, 7)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range events {
				seen, after = seen+1, e.ID
			}
			if len(events) == 0 && ended {
				break
			}
			select {
			case <-done:
				ended = true
			default:
			}
		}
		if seen != writers*each {
			t.Errorf("saw %d of %d", seen, writers*each)
		}
	})
}

func TestWatch(t *testing.T) {
	for _, dialect := range []string{"sqlite", "postgres"} {
		t.Run(dialect, func(t *testing.T) {
			dsn := address(t, dialect)
			here, there := openAt(t, dsn), openAt(t, dsn)
			ctx, cancel := context.WithCancel(t.Context())
			mine, others := here.Watch(ctx), there.Watch(t.Context())
			time.Sleep(300 * time.Millisecond) // what a listener tells when it begins
			drain(mine)
			drain(others)
			begun := time.Now()
			if _, err := here.Emit(ctx, store.Event{Tenant: "t"}); err != nil {
				t.Fatal(err)
			}
			told(t, mine, time.Second)
			told(t, others, 5*time.Second)
			t.Logf("another process was told after %v", time.Since(begun).Round(time.Millisecond))
			if took := time.Since(begun); dialect == "postgres" && took > time.Second {
				t.Errorf("that took %v", took)
			}
			cancel()
			for range mine { // ends when it is closed
			}
			if err := there.Close(); err != nil {
				t.Error(err)
			}
			for range others {
			}
			for range there.Watch(t.Context()) {
			}
		})
	}
}

// TestWatchReconnects: the connection on which a process is told may be lost.
func TestWatchReconnects(t *testing.T) {
	dsn := address(t, "postgres")
	here, there := openAt(t, dsn), openAt(t, dsn)
	time.Sleep(300 * time.Millisecond)
	administer(t, dsn, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'")
	time.Sleep(1500 * time.Millisecond)
	watching := there.Watch(t.Context())
	drain(watching)
	if _, err := here.Emit(t.Context(), store.Event{Tenant: "t"}); err != nil {
		t.Fatal(err)
	}
	told(t, watching, 3*time.Second)
}

func drain(ch <-chan struct{}) {
	for {
		select {
		case <-ch:
		default:
			return
		}
	}
}

func told(t *testing.T, ch <-chan struct{}, within time.Duration) {
	t.Helper()
	select {
	case _, open := <-ch:
		if !open {
			t.Error("the channel is closed")
		}
	case <-time.After(within):
		t.Error("nobody told of an event")
	}
}
