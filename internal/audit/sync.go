package audit

import (
	"errors"
	"sync"
)

// flusher puts what was appended on the disk, once for all who wait: an fsync costs the same for one record and for a thousand. Its zero value is ready.
type flusher struct {
	mu      sync.Mutex
	running bool
	next    *flush // joined by those who come while one is under way, whose records it may not hold
}

type flush struct {
	lead chan struct{} // holds a value for the one of those who wait that is to do it
	done chan struct{}
	err  error
}

// wait returns when a flush that began after the call has ended.
func (f *flusher) wait(do func() error) error {
	f.mu.Lock()
	if f.next == nil {
		f.next = &flush{lead: make(chan struct{}, 1), done: make(chan struct{})}
	}
	mine := f.next
	if !f.running {
		f.running = true
		mine.lead <- struct{}{}
	}
	f.mu.Unlock()
	select {
	case <-mine.done:
		return mine.err
	case <-mine.lead:
	}
	f.mu.Lock()
	f.next = nil // who comes from here on may have written what this flush does not hold
	f.mu.Unlock()
	mine.err = do()
	close(mine.done)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.next != nil {
		f.next.lead <- struct{}{} // one of those who came meanwhile goes on: nobody works for others for ever
	} else {
		f.running = false
	}
	return mine.err
}

// Sync returns when everything appended so far is on the disk. Those who call it at once share the work.
func (l *Log) Sync() error {
	return l.flusher.wait(func() error {
		if err := errors.Join(l.file.Sync(), l.head.Sync()); err != nil {
			return unavailable(l.dir, err)
		}
		return nil
	})
}
