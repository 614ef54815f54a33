package web

import (
	"context"
	"strconv"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/control"
)

type serverOperations interface {
	Settings(ctx context.Context, a control.Actor) (api.Settings, error)
	ChangeSettings(ctx context.Context, a control.Actor, version int64, in api.Settings) (api.Settings, error)
	Health(ctx context.Context, a control.Actor) (api.Health, error)
	Tenants(ctx context.Context, a control.Actor, p control.Page) (api.Page[api.Tenant], error)
	CreateTenant(ctx context.Context, a control.Actor, name, adminEmail string) (api.Tenant, api.Invitation, error)
}

type settingsData struct {
	Form     *form
	Policies []api.Policy
}

func (p *Pages) settings(v *visit) error {
	s, err := v.ops.Settings(v.r.Context(), v.actor)
	if err != nil {
		return err
	}
	f := prefilled("retention_days", strconv.Itoa(s.RetentionDays), "max_sandboxes", strconv.Itoa(s.MaxSandboxes), "default_policy", s.DefaultPolicy, "version", strconv.FormatInt(s.Version, 10))
	if s.FourEyes {
		f.values.Set("four_eyes", "yes")
	}
	return v.showSettings(f)
}

func (v *visit) showSettings(f *form) error {
	policies, err := v.ops.Policies(v.r.Context(), v.actor, control.Page{Limit: 500})
	if err != nil {
		return err
	}
	return v.showForm("settings", "Settings", "settings", f, settingsData{f, policies.Items})
}

func (p *Pages) changeSettings(v *visit) error {
	f := newForm(v.r.PostForm)
	in := api.Settings{FourEyes: f.Has("four_eyes", "yes"), DefaultPolicy: f.text("default_policy")}
	for name, to := range map[string]*int{"retention_days": &in.RetentionDays, "max_sandboxes": &in.MaxSandboxes} {
		n, err := strconv.Atoi(f.text(name))
		if err != nil || n < 0 {
			f.wrong(name, "Write a whole number, 0 or more.")
		}
		*to = n
	}
	if !f.Bad() {
		_, err := v.ops.ChangeSettings(v.r.Context(), v.actor, f.version(), in)
		if err == nil {
			return v.to("/settings", "settings-changed")
		}
		if err := f.take(err); err != nil {
			return err
		}
	}
	return v.showSettings(f)
}

type serverData struct {
	Health     api.Health
	Tenants    api.Page[api.Tenant]
	Form       *form
	Tenant     *api.Tenant // just made
	Invitation *api.Invitation
}

func (p *Pages) server(v *visit) error { return v.showServer(serverData{Form: prefilled()}) }

func (v *visit) showServer(d serverData) error {
	var err error
	if d.Health, err = v.ops.Health(v.r.Context(), v.actor); err != nil {
		return err
	}
	if d.Tenants, err = v.ops.Tenants(v.r.Context(), v.actor, v.pageOf(50)); err != nil {
		return err
	}
	return v.showForm("server", "Server", "server", d.Form, d)
}

func (p *Pages) newTenant(v *visit) error {
	d := serverData{Form: newForm(v.r.PostForm)}
	if d.Form.need("name", "email") {
		tenant, invitation, err := v.ops.CreateTenant(v.r.Context(), v.actor, d.Form.text("name"), d.Form.text("email"))
		if err == nil { // shown here: the link has no address to be shown again at
			d.Tenant, d.Invitation, d.Form = &tenant, &invitation, prefilled()
		} else if err := d.Form.take(err); err != nil {
			return err
		}
	}
	return v.showServer(d)
}
