package certificate

import (
	"context"
	"sync"

	"github.com/caddyserver/certmagic"
)

// storage is files in a directory that also knows which locks are held: certmagic has one for as long as it asks an authority for something.
type storage struct {
	*certmagic.FileStorage

	mu   sync.Mutex
	held map[string]struct{}
}

func newStorage(dir string) *storage {
	return &storage{FileStorage: &certmagic.FileStorage{Path: dir}, held: map[string]struct{}{}}
}

// Lock takes a lock, or waits for it until ctx ends.
func (s *storage) Lock(ctx context.Context, name string) error {
	if err := s.FileStorage.Lock(ctx, name); err != nil {
		return err
	}
	s.note(name, true)
	return nil
}

// TryLock takes a lock if nobody has it.
func (s *storage) TryLock(ctx context.Context, name string) (bool, error) {
	ok, err := s.FileStorage.TryLock(ctx, name)
	if ok && err == nil {
		s.note(name, true)
	}
	return ok, err
}

// Unlock gives a lock back.
func (s *storage) Unlock(ctx context.Context, name string) error {
	defer s.note(name, false)
	return s.FileStorage.Unlock(ctx, name)
}

func (s *storage) note(name string, held bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if held {
		s.held[name] = struct{}{}
		return
	}
	delete(s.held, name)
}

// idle says that no lock is held.
func (s *storage) idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held) == 0
}
