package control

import (
	"context"
	"fmt"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

// SettingsData is a tenant's settings as stored, one object of a tenant. A tenant without one has the defaults.
type SettingsData struct {
	FourEyes      bool   `json:"four_eyes"`
	RetentionDays int    `json:"retention_days"`
	MaxSandboxes  int    `json:"max_sandboxes"`
	DefaultPolicy string `json:"default_policy,omitempty"`
}

func settingsObjects() store.Collection[SettingsData] { return store.Of[SettingsData]("settings") }

// The bounds and defaults of settings.
const (
	settingsName     = "settings"
	usualSandboxes   = 100
	mostSandboxes    = 10_000
	usualRetention   = 365
	longestRetention = 36_500
)

// settingsObject returns the stored settings, or the defaults with version 0.
func (s *Service) settingsObject(ctx context.Context, db *store.DB, tenant string) (store.Object[SettingsData], error) {
	o, err := settingsObjects().ByName(ctx, db, tenant, settingsName)
	if fault.KindOf(err) == fault.NotFound {
		return store.Object[SettingsData]{
			Tenant: tenant, Name: settingsName, Data: SettingsData{RetentionDays: usualRetention, MaxSandboxes: usualSandboxes},
		}, nil
	}
	return o, err
}

// settings returns a tenant's settings.
func (s *Service) settings(ctx context.Context, tenant string) (api.Settings, error) {
	o, err := s.settingsObject(ctx, s.DB, tenant)
	return showSettings(o), err
}

func showSettings(o store.Object[SettingsData]) api.Settings {
	return api.Settings{
		FourEyes: o.Data.FourEyes, RetentionDays: o.Data.RetentionDays, MaxSandboxes: o.Data.MaxSandboxes, DefaultPolicy: o.Data.DefaultPolicy, Version: o.Version,
	}
}

// Settings returns the tenant's settings. Whoever is signed in may read them: they say how the tenant works, and nothing else.
func (s *Service) Settings(ctx context.Context, a Actor) (api.Settings, error) {
	if err := known(a); err != nil {
		return api.Settings{}, err
	}
	return s.settings(ctx, a.Tenant)
}

// ChangeSettings replaces the tenant's settings. Version 0 changes whatever version there is.
func (s *Service) ChangeSettings(ctx context.Context, a Actor, version int64, in api.Settings) (api.Settings, error) {
	if err := may(a, WriteSettings); err != nil {
		return api.Settings{}, err
	}
	o, err := s.settingsObject(ctx, s.DB, a.Tenant)
	if err != nil {
		return api.Settings{}, err
	}
	if err := current(o, version); err != nil {
		return api.Settings{}, err
	}
	switch {
	case in.RetentionDays < 0 || in.RetentionDays > longestRetention:
		return api.Settings{}, fault.New(fault.Invalid, "retention_days: %d days cannot be kept", in.RetentionDays).WithHint("write 1 to %d, or 0 to keep all", longestRetention)
	case in.MaxSandboxes < 1 || in.MaxSandboxes > mostSandboxes:
		return api.Settings{}, fault.New(fault.Invalid, "max_sandboxes: %d is out of bounds", in.MaxSandboxes).WithHint("write 1 to %d", mostSandboxes)
	}
	o.Data = SettingsData{FourEyes: in.FourEyes, RetentionDays: in.RetentionDays, MaxSandboxes: in.MaxSandboxes}
	if in.DefaultPolicy != "" {
		p, err := s.policy(ctx, s.DB, a.Tenant, in.DefaultPolicy)
		if err != nil {
			return api.Settings{}, err
		}
		o.Data.DefaultPolicy = p.ID
	}
	detail := fmt.Sprintf("four eyes %t, keep the index for %d days, at most %d sandboxes, default policy %q", in.FourEyes, in.RetentionDays, in.MaxSandboxes, o.Data.DefaultPolicy)
	var stored store.Object[SettingsData]
	err = s.change(ctx, a, audit.Event{Kind: audit.SettingsChanged, Detail: detail}, func(tx *store.DB) (events []store.Event, err error) {
		if o.Data.DefaultPolicy != "" {
			if _, err := policies().Get(ctx, tx, a.Tenant, o.Data.DefaultPolicy); err != nil {
				return nil, err
			}
		}
		if o.Version == 0 {
			stored, err = settingsObjects().Insert(ctx, tx, o)
		} else {
			stored, err = settingsObjects().Update(ctx, tx, o)
		}
		return []store.Event{{Type: "settings", State: "changed"}}, err
	})
	return showSettings(stored), err
}
