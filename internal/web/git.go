package web

import (
	"context"
	"strconv"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/control"
	"github.com/cofferdam/cofferdam/internal/fault"
)

type gitOperations interface {
	Upstreams(ctx context.Context, a control.Actor) ([]api.Upstream, error)
	CreateUpstream(ctx context.Context, a control.Actor, in api.Upstream) (api.Upstream, error)
	ChangeUpstream(ctx context.Context, a control.Actor, id string, version int64, in api.Upstream) (api.Upstream, error)
	DeleteUpstream(ctx context.Context, a control.Actor, id string) error
	Profiles(ctx context.Context, a control.Actor) ([]api.Profile, error)
	CreateProfile(ctx context.Context, a control.Actor, in api.Profile) (api.Profile, error)
	ChangeProfile(ctx context.Context, a control.Actor, id string, version int64, in api.Profile) (api.Profile, error)
	DeleteProfile(ctx context.Context, a control.Actor, id string) error
}

type gitData struct {
	Upstreams []api.Upstream
	Profiles  []api.Profile
}

func (p *Pages) git(v *visit) error {
	var d gitData
	var err error
	if d.Upstreams, err = v.ops.Upstreams(v.r.Context(), v.actor); err != nil {
		return err
	}
	if d.Profiles, err = v.ops.Profiles(v.r.Context(), v.actor); err != nil {
		return err
	}
	return v.show("git", "Git", "git", d)
}

// fresh is the place in an address where the identifier of a thing that is not there yet would stand.
const fresh = "new"

type upstreamData struct {
	Form        *form
	Upstream    *api.Upstream
	Credentials []api.Credential
}

func (p *Pages) upstreamPage(v *visit) error {
	u, err := v.upstream()
	if err != nil {
		return err
	}
	f := prefilled("type", "plain")
	if u != nil {
		f = prefilled("name", u.Name, "type", u.Type, "url", u.URL, "credential", u.Credential, "version", strconv.FormatInt(u.Version, 10))
		for _, h := range u.LFSHosts {
			f.values.Set("lfs_hosts", f.values.Get("lfs_hosts")+h+"\n")
		}
		if u.API != nil {
			f.values.Set("api_url", u.API.URL)
			f.values.Set("api_credential", u.API.Credential)
		}
	}
	return v.showUpstream(f, u)
}

// upstream is the one of the address; nil for a new one.
func (v *visit) upstream() (*api.Upstream, error) {
	id := v.r.PathValue("id")
	if id == fresh {
		return nil, nil
	}
	list, err := v.ops.Upstreams(v.r.Context(), v.actor)
	if err != nil {
		return nil, err
	}
	for i := range list {
		if list[i].ID == id {
			return &list[i], nil
		}
	}
	return nil, fault.New(fault.NotFound, "there is no such Git server")
}

func (v *visit) showUpstream(f *form, u *api.Upstream) error {
	credentials, err := v.ops.Credentials(v.r.Context(), v.actor)
	if err != nil {
		return err
	}
	title := "New Git server"
	if u != nil {
		title = u.Name
	}
	return v.showForm("git-upstream", title, "git", f, upstreamData{f, u, credentials})
}

func (p *Pages) saveUpstream(v *visit) error {
	u, err := v.upstream()
	if err != nil {
		return err
	}
	f := newForm(v.r.PostForm)
	in := api.Upstream{Name: f.text("name"), Type: f.text("type"), URL: f.text("url"), Credential: f.text("credential"), LFSHosts: f.list("lfs_hosts")}
	if f.text("api_url") != "" || f.text("api_credential") != "" {
		in.API = &struct {
			URL        string `json:"url,omitempty"`
			Credential string `json:"credential,omitempty"`
		}{f.text("api_url"), f.text("api_credential")}
	}
	if f.need("name", "url") {
		if u == nil {
			_, err = v.ops.CreateUpstream(v.r.Context(), v.actor, in)
		} else {
			_, err = v.ops.ChangeUpstream(v.r.Context(), v.actor, u.ID, f.version(), in)
		}
		if err == nil {
			return v.to("/git", "upstream-saved")
		}
		if err := f.take(err); err != nil {
			return err
		}
	}
	return v.showUpstream(f, u)
}

func (p *Pages) deleteUpstream(v *visit) error {
	if err := v.ops.DeleteUpstream(v.r.Context(), v.actor, v.r.PathValue("id")); err != nil {
		return err
	}
	return v.to("/git", "upstream-deleted")
}

// spareRows is how many empty path rules a profile's form has for more.
const spareRows = 3

type profileData struct {
	Form      *form
	Profile   *api.Profile
	Upstreams []api.Upstream
	Rows      []pathRow
}

// pathRow is one path rule in the form.
type pathRow struct {
	Upstream, Kind, Path, Error string
}

func (v *visit) profile() (*api.Profile, error) {
	id := v.r.PathValue("id")
	if id == fresh {
		return nil, nil
	}
	list, err := v.ops.Profiles(v.r.Context(), v.actor)
	if err != nil {
		return nil, err
	}
	for i := range list {
		if list[i].ID == id {
			return &list[i], nil
		}
	}
	return nil, fault.New(fault.NotFound, "there is no such access profile")
}

// starterProfile is where a new profile begins: it only reads.
const starterProfile = `access: read
`

func (p *Pages) profilePage(v *visit) error {
	pr, err := v.profile()
	if err != nil {
		return err
	}
	f := prefilled("text", starterProfile)
	var rows []pathRow
	if pr != nil {
		f = prefilled("name", pr.Name, "text", pr.Text, "version", strconv.FormatInt(pr.Version, 10))
		for _, path := range pr.Paths {
			row := pathRow{Upstream: path.Upstream, Kind: "exact", Path: path.Repository}
			if path.Expression != "" {
				row.Kind, row.Path = "expression", path.Expression
			}
			rows = append(rows, row)
		}
	}
	return v.showProfile(f, pr, rows)
}

func (v *visit) showProfile(f *form, pr *api.Profile, rows []pathRow) error {
	upstreams, err := v.ops.Upstreams(v.r.Context(), v.actor)
	if err != nil {
		return err
	}
	title := "New access profile"
	if pr != nil {
		title = pr.Name
	}
	for range spareRows {
		rows = append(rows, pathRow{Kind: "exact"})
	}
	return v.showForm("git-profile", title, "git", f, profileData{f, pr, upstreams, rows})
}

// readRows reads the path rules; rows without a path are left out.
func readRows(f *form) (rows []pathRow, paths []api.GitPath) {
	upstreams, kinds, names := f.values["path_upstream"], f.values["path_kind"], f.values["path"]
	for i := range names {
		if names[i] == "" || i >= len(upstreams) || i >= len(kinds) {
			continue
		}
		row := pathRow{Upstream: upstreams[i], Kind: kinds[i], Path: names[i]}
		path := api.GitPath{Upstream: row.Upstream}
		if row.Kind == "expression" {
			path.Expression = row.Path
		} else {
			path.Repository = row.Path
		}
		if row.Upstream == "" {
			row.Error = "Choose a Git server."
			f.wrong("paths", "A path rule has no Git server.")
		}
		rows, paths = append(rows, row), append(paths, path)
	}
	return rows, paths
}

func (p *Pages) saveProfile(v *visit) error {
	pr, err := v.profile()
	if err != nil {
		return err
	}
	f := newForm(v.r.PostForm)
	rows, paths := readRows(f)
	if f.need("name", "text") {
		in := api.Profile{Name: f.text("name"), Text: f.block("text"), Paths: paths}
		if pr == nil {
			_, err = v.ops.CreateProfile(v.r.Context(), v.actor, in)
		} else {
			_, err = v.ops.ChangeProfile(v.r.Context(), v.actor, pr.ID, f.version(), in)
		}
		if err == nil {
			return v.to("/git", "profile-saved")
		}
		if err := f.take(err); err != nil {
			return err
		}
	}
	return v.showProfile(f, pr, rows)
}

func (p *Pages) deleteProfile(v *visit) error {
	if err := v.ops.DeleteProfile(v.r.Context(), v.actor, v.r.PathValue("id")); err != nil {
		return err
	}
	return v.to("/git", "profile-deleted")
}
