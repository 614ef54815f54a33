package control

import (
	"context"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/auth"
	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/store"
)

// Options are what the service works with.
type Options struct {
	DB       *store.DB
	Auth     *auth.Service
	Audit    *audit.Log // for the service's own events
	State    string     // directory: audit/, runs/, keepers/, tenants/, workspaces/
	Launcher *keeper.Launcher
	Log      *slog.Logger
	Clock    func() time.Time // time.Now if nil
	BaseURL  string
	Version  string
}

// Service is the operations. It is safe for concurrent use.
type Service struct {
	Options
	started  time.Time
	refusals refusals
	house    *house // what Run and the operations on sandboxes share
	// reading and replaying bound what of the dear work is done at once; see few.
	reading, replaying few
	ready              readiness
}

// New returns a service; Run does its background work. It refuses a store that is not the one with which the state directory was used.
func New(o Options) (*Service, error) {
	if err := knowStore(context.Background(), o.DB, o.State); err != nil { // it bounds its time itself
		return nil, err
	}
	return &Service{Options: o, started: time.Now().UTC(), house: newHouse(filepath.Join(o.State, "audit")), reading: newFew(2), replaying: newFew(2)}, nil
}

// Counts is what the navigation shows.
type Counts struct {
	Agents, Running, Denials, Approvals, Proposed int
}
