package control

import (
	"context"
	"slices"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/store"
)

// UpstreamData is a Git server as stored.
type UpstreamData struct {
	Type          string   `json:"type"`
	URL           string   `json:"url"`
	Credential    string   `json:"credential,omitempty"`
	APIURL        string   `json:"api_url,omitempty"`
	APICredential string   `json:"api_credential,omitempty"`
	LFSHosts      []string `json:"lfs_hosts,omitempty"`
}

func upstreams() store.Collection[UpstreamData] { return store.Of[UpstreamData]("upstream") }

// Upstreams lists Git servers by name.
func (s *Service) Upstreams(ctx context.Context, a Actor) ([]api.Upstream, error) {
	if err := may(a, ReadPolicies); err != nil {
		return nil, err
	}
	out := []api.Upstream{}
	err := every(ctx, s.DB, upstreams(), a.Tenant, store.Filter{ByName: true}, func(o store.Object[UpstreamData]) error {
		out = append(out, showUpstream(o))
		return nil
	})
	return out, err
}

func showUpstream(o store.Object[UpstreamData]) api.Upstream {
	u := api.Upstream{
		ID: o.ID, Name: o.Name, Type: o.Data.Type, URL: o.Data.URL, Credential: o.Data.Credential, LFSHosts: o.Data.LFSHosts, Created: o.Created, Version: o.Version,
	}
	if o.Data.APIURL != "" || o.Data.APICredential != "" {
		u.API = &struct {
			URL        string `json:"url,omitempty"`
			Credential string `json:"credential,omitempty"`
		}{o.Data.APIURL, o.Data.APICredential}
	}
	return u
}

// readUpstream reads a Git server's settings as the section git of policies has them.
func (s *Service) readUpstream(ctx context.Context, tenant, self string, in api.Upstream) (store.Object[UpstreamData], error) {
	o := store.Object[UpstreamData]{ID: self, Tenant: tenant, Data: UpstreamData{Type: in.Type, URL: in.URL, Credential: in.Credential, LFSHosts: in.LFSHosts}}
	var err error
	if o.Name, err = parseGitName(in.Name); err != nil {
		return o, err
	}
	if o.Data.Type == "" {
		o.Data.Type = policy.PlainGit.String()
	}
	if in.API != nil {
		o.Data.APIURL, o.Data.APICredential = in.API.URL, in.API.Credential
	}
	if _, err := parseGit(gitSection{upstreams: []store.Object[UpstreamData]{o}}); err != nil {
		return o, err
	}
	if err := freeName(ctx, s.DB, upstreams(), tenant, "a Git server", o.Name, self); err != nil {
		return o, err
	}
	missing, err := s.missingCredentials(ctx, tenant, slices.DeleteFunc([]string{o.Data.Credential, o.Data.APICredential}, func(n string) bool { return n == "" }))
	if err == nil && len(missing) > 0 {
		err = fault.New(fault.Invalid, "there is no credential %s here", missing[0]).WithHint("add it first")
	}
	return o, err
}

// CreateUpstream adds a Git server.
func (s *Service) CreateUpstream(ctx context.Context, a Actor, in api.Upstream) (api.Upstream, error) {
	if err := may(a, WritePolicies); err != nil {
		return api.Upstream{}, err
	}
	o, err := s.readUpstream(ctx, a.Tenant, store.NewID(), in)
	if err != nil {
		return api.Upstream{}, err
	}
	var stored store.Object[UpstreamData]
	err = s.change(ctx, a, gitEvent("add the Git server "+o.Name+" at "+o.Data.URL), func(tx *store.DB) (events []store.Event, err error) {
		stored, err = upstreams().Insert(ctx, tx, o)
		return []store.Event{{Type: "git", Subject: o.ID, State: "created"}}, err
	})
	return showUpstream(stored), err
}

func gitEvent(detail string) audit.Event { return audit.Event{Kind: audit.GitChanged, Detail: detail} }

// ChangeUpstream replaces a Git server's settings. Version 0 changes whatever version there is.
func (s *Service) ChangeUpstream(ctx context.Context, a Actor, id string, version int64, in api.Upstream) (api.Upstream, error) {
	if err := may(a, WritePolicies); err != nil {
		return api.Upstream{}, err
	}
	before, err := find(ctx, s.DB, upstreams(), a.Tenant, "Git server", id)
	if err != nil {
		return api.Upstream{}, err
	}
	if err := current(before, version); err != nil {
		return api.Upstream{}, err
	}
	o, err := s.readUpstream(ctx, a.Tenant, before.ID, in)
	if err != nil {
		return api.Upstream{}, err
	}
	before.Name, before.Data = o.Name, o.Data
	named, err := s.profilesNaming(ctx, a.Tenant, before.ID)
	if err != nil {
		return api.Upstream{}, err
	}
	affected, err := s.agentsWith(ctx, a.Tenant, named, gitSection{upstreams: []store.Object[UpstreamData]{before}})
	if err != nil {
		return api.Upstream{}, err
	}
	var stored store.Object[UpstreamData]
	err = s.change(ctx, a, gitEvent("change the Git server "+o.Name+" at "+o.Data.URL), func(tx *store.DB) (events []store.Event, err error) {
		stored, err = upstreams().Update(ctx, tx, before)
		return []store.Event{{Type: "git", Subject: o.ID, State: "changed"}}, err
	})
	if err != nil {
		return api.Upstream{}, err
	}
	return showUpstream(stored), s.applyPolicy(ctx, a.Tenant, affected...)
}

// DeleteUpstream removes a Git server that no path rule names.
func (s *Service) DeleteUpstream(ctx context.Context, a Actor, id string) error {
	if err := may(a, WritePolicies); err != nil {
		return err
	}
	o, err := find(ctx, s.DB, upstreams(), a.Tenant, "Git server", id)
	if err != nil {
		return err
	}
	if err := s.unnamed(ctx, s.DB, o); err != nil {
		return err
	}
	return s.change(ctx, a, gitEvent("remove the Git server "+o.Name), func(tx *store.DB) ([]store.Event, error) {
		if err := s.unnamed(ctx, tx, o); err != nil {
			return nil, err
		}
		return []store.Event{{Type: "git", Subject: o.ID, State: "deleted"}}, upstreams().Delete(ctx, tx, a.Tenant, o.ID, 0)
	})
}

func (s *Service) unnamed(ctx context.Context, db *store.DB, o store.Object[UpstreamData]) error {
	return every(ctx, db, profiles(), o.Tenant, store.Filter{}, func(p store.Object[ProfileData]) error {
		if slices.ContainsFunc(p.Data.Paths, func(path PathData) bool { return path.Upstream == o.ID }) {
			return fault.New(fault.Conflict, "the access profile %s has a path rule about this Git server", p.Name).WithHint("take the rule out of the profile first")
		}
		return nil
	})
}
