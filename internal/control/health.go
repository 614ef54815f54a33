package control

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

// The bounds beyond which something is not well.
const (
	leastFree  = 1 << 30  // bytes, for logs, changes of workspaces and the store
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
	check("audit log", s.Options.Audit.Sync(), "it can be written", "see the file system of the state directory: without the log nothing is let through")
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

func (s *Service) diskFree() error {
	var st unix.Statfs_t
	if err := unix.Statfs(s.State, &st); err != nil {
		return fmt.Errorf("look at the disk: %w", err)
	}
	if free := st.Bavail * uint64(st.Bsize); free < leastFree {
		return fault.New(fault.Unavailable, "%d MiB are free", free>>20)
	}
	return nil
}
