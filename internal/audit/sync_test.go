package audit

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestFlushesAreShared: whoever waits gets a flush that began after the call, and many share one.
func TestFlushesAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flusher
		var flushes, written, durable atomic.Int64
		do := func() error {
			flushes.Add(1)
			seen := written.Load()
			time.Sleep(time.Millisecond)
			durable.Store(seen)
			return nil
		}
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				mine := written.Add(1)
				if err := f.wait(do); err != nil {
					t.Error(err)
				}
				if durable.Load() < mine {
					t.Errorf("record %d is not on the disk", mine)
				}
			})
		}
		wg.Wait()
		if n := flushes.Load(); n > 3 {
			t.Errorf("%d flushes for a thousand who came at once", n)
		}
		before := flushes.Load()
		if err := f.wait(do); err != nil || flushes.Load() != before+1 {
			t.Errorf("one alone: %v, %d flushes", err, flushes.Load()-before)
		}
		broken := errors.New("no disk")
		if err := f.wait(func() error { return broken }); !errors.Is(err, broken) {
			t.Error(err)
		}
	})
}
