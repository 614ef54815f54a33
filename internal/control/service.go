package control

import (
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
}

// New returns a service; Run does its background work.
func New(o Options) (*Service, error) {
	return &Service{Options: o, started: time.Now().UTC(), house: newHouse(filepath.Join(o.State, "audit"))}, nil
}

// Counts is what the navigation shows.
type Counts struct {
	Agents, Running, Denials, Approvals, Proposed int
}
