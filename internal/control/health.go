package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

// The bounds beyond which something is not well.
const (
	leastFree  = 1 << 30  // bytes, for logs, changes of workspaces and the store
	noneFree   = 4 << 20  // bytes, which the next records and the store take within moments
	mostBehind = 16 << 20 // bytes of the log that are not in the index
)

// Health says how the server is, for operators.
func (s *Service) Health(ctx context.Context, a Actor) (api.Health, error) {
	if err := may(a, Operate); err != nil {
		return api.Health{}, err
	}
	h := api.Health{Version: s.Version, Started: s.started, Store: s.DB.Dialect(), Checks: []api.HealthCheck{}}
	check := func(name string, err error, detail, remedy string) {
		c := api.HealthCheck{Name: name, OK: err == nil, Detail: detail}
		if err != nil {
			c.Detail, c.Remedy = err.Error(), remedy // operators may see causes
		}
		h.Checks = append(h.Checks, c)
	}
	check("store", s.DB.Ping(ctx), "it answers", "see that the database runs and can be reached")
	check("audit log", s.logWritable(), "it can be written", "see the file system of the state directory: without the log nothing is let through")
	var err error
	if h.Sandboxes, err = sandboxesOf().Count(ctx, s.DB, store.AnyTenant, store.Filter{States: liveStates()}); err != nil {
		return h, err
	}
	if h.Audit, err = s.auditHealth(ctx); err != nil {
		check("audit index", err, "", "see that the service can read the audit log")
	} else {
		check("audit index", behind(h.Audit.Behind), fmt.Sprintf("%d bytes behind the log", h.Audit.Behind), "it catches up by itself; if it does not, start the service anew")
	}
	check("disk", s.diskFree(), "there is room", "free some space on the file system of the state directory")
	return h, nil
}

func (s *Service) auditHealth(ctx context.Context) (api.AuditHealth, error) {
	var h api.AuditHealth
	var err error
	if h.Indexed, err = s.DB.CountAudit(ctx); err != nil {
		return h, err
	}
	offset, _, err := s.DB.AuditPosition(ctx)
	if err != nil {
		return h, err
	}
	info, err := os.Stat(filepath.Join(s.State, "audit", "log.jsonl"))
	if err != nil {
		return h, fmt.Errorf("look at the audit log: %w", err)
	}
	h.Behind = max(info.Size()-offset, 0)
	return h, nil
}

func behind(n int64) error {
	if n > mostBehind {
		return fault.New(fault.Unavailable, "%d bytes of the log are not in the index yet", n)
	}
	return nil
}

func (s *Service) diskFree() error { return roomFor(s.State, leastFree) }

// roomFor is an error where a file system has less than some bytes free, for who is not root.
func roomFor(dir string, least uint64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("look at the disk: %w", err)
	}
	if free := st.Bavail * uint64(st.Bsize); free < least {
		return fault.New(fault.Unavailable, "%d MiB are free", free>>20)
	}
	return nil
}

// logWritable says whether the audit log can take another record. That what was written is safe says nothing of that: a full disk syncs well.
func (s *Service) logWritable() error {
	dir := filepath.Join(s.State, "audit")
	if err := roomFor(dir, noneFree); err != nil {
		return err
	}
	if err := tryWrite(dir); err != nil {
		return fmt.Errorf("write beside the audit log: %w", err)
	}
	return s.Options.Audit.Sync()
}

// tryWrite writes a file and removes it: that finds a full disk, a quota, and a file system that has become read-only.
func tryWrite(dir string) (err error) {
	f, err := os.CreateTemp(dir, ".probe-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	if _, err := f.Write(make([]byte, 16<<10)); err != nil {
		return err
	}
	return f.Sync()
}

// readiness is what was found out about this server a moment ago: strangers may ask, and each time costs a write.
type readiness struct {
	mu   sync.Mutex
	at   time.Time
	last error
}

// readyFor is how long an answer holds.
const readyFor = 5 * time.Second

// Ready is an error while requests had better go elsewhere: the store does not answer, or no record can be written, without which nothing is done here.
// It needs no Actor: it tells nobody more than that.
func (s *Service) Ready(ctx context.Context) error {
	if err := s.ready.look(s.logWritable); err != nil {
		return err
	}
	return s.DB.Ping(ctx)
}

func (r *readiness) look(found func() error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); r.at.IsZero() || now.Sub(r.at) >= readyFor {
		r.at, r.last = now, found()
	}
	return r.last
}
