package control

import (
	"context"
	"fmt"
	"slices"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/store"
)

// ProfileData is an access profile as stored.
type ProfileData struct {
	Text  string     `json:"text"` // one entry of git.profiles, less its name
	Paths []PathData `json:"paths,omitempty"`
}

// PathData is one path rule. Upstream is an identifier, so that a Git server can be renamed.
type PathData struct {
	Upstream   string `json:"upstream"`
	Repository string `json:"repository,omitempty"`
	Expression string `json:"expression,omitempty"`
}

func profiles() store.Collection[ProfileData] { return store.Of[ProfileData]("profile") }

// The bounds of a profile.
const (
	maxProfileText = 64 << 10
	maxPaths       = 1000
)

// Profiles lists access profiles by name.
func (s *Service) Profiles(ctx context.Context, a Actor) ([]api.Profile, error) {
	if err := may(a, ReadPolicies); err != nil {
		return nil, err
	}
	var list []store.Object[ProfileData]
	var ids []string
	err := every(ctx, s.DB, profiles(), a.Tenant, store.Filter{ByName: true}, func(o store.Object[ProfileData]) error {
		list, ids = append(list, o), append(ids, o.ID)
		return nil
	})
	if err != nil {
		return nil, err
	}
	counts := map[string]int{}
	for part := range slices.Chunk(ids, 500) {
		some, err := grants().CountBy(ctx, s.DB, a.Tenant, part)
		if err != nil {
			return nil, err
		}
		for id, n := range some {
			counts[id] = n
		}
	}
	names, err := s.upstreamNames(ctx, a.Tenant)
	if err != nil {
		return nil, err
	}
	out := make([]api.Profile, 0, len(list))
	for _, o := range list {
		out = append(out, showProfile(o, names, counts[o.ID]))
	}
	return out, nil
}

func (s *Service) upstreamNames(ctx context.Context, tenant string) (map[string]string, error) {
	names := map[string]string{}
	err := every(ctx, s.DB, upstreams(), tenant, store.Filter{}, func(o store.Object[UpstreamData]) error {
		names[o.ID] = o.Name
		return nil
	})
	return names, err
}

func showProfile(o store.Object[ProfileData], upstreamNames map[string]string, count int) api.Profile {
	p := api.Profile{ID: o.ID, Name: o.Name, Text: o.Data.Text, Paths: []api.GitPath{}, Agents: count, Created: o.Created, Version: o.Version}
	for _, path := range o.Data.Paths {
		p.Paths = append(p.Paths, api.GitPath{Upstream: upstreamNames[path.Upstream], Repository: path.Repository, Expression: path.Expression})
	}
	return p
}

func (s *Service) showProfileNow(ctx context.Context, o store.Object[ProfileData]) (api.Profile, error) {
	names, err := s.upstreamNames(ctx, o.Tenant)
	if err != nil {
		return api.Profile{}, err
	}
	n, err := grants().Count(ctx, s.DB, o.Tenant, store.Filter{Parent: o.ID})
	return showProfile(o, names, n), err
}

// readProfile reads an access profile by putting it into a section git, with the Git servers that it names.
func (s *Service) readProfile(ctx context.Context, tenant, self string, in api.Profile) (store.Object[ProfileData], gitSection, error) {
	section := gitSection{}
	o := store.Object[ProfileData]{ID: self, Tenant: tenant, Data: ProfileData{Text: in.Text}}
	var err error
	if o.Name, err = parseGitName(in.Name); err != nil {
		return o, section, err
	}
	switch {
	case o.Name == "read":
		return o, section, fault.New(fault.Invalid, "the profile read is built in, and only reads").WithHint("choose another name")
	case len(in.Text) > maxProfileText:
		return o, section, fault.New(fault.Invalid, "the text has %d bytes, more than %d", len(in.Text), maxProfileText).WithHint("shorten it")
	case len(in.Paths) > maxPaths:
		return o, section, fault.New(fault.Invalid, "there are %d path rules, more than %d", len(in.Paths), maxPaths).WithHint("write expressions that are about several repositories")
	}
	if err := freeName(ctx, s.DB, profiles(), tenant, "an access profile", o.Name, self); err != nil {
		return o, section, err
	}
	for _, path := range in.Paths {
		u, err := find(ctx, s.DB, upstreams(), tenant, "Git server", path.Upstream)
		if err != nil {
			return o, section, err
		}
		section.addUpstream(u)
		o.Data.Paths = append(o.Data.Paths, PathData{Upstream: u.ID, Repository: path.Repository, Expression: path.Expression})
	}
	section.profiles = append(section.profiles, o)
	_, err = parseGit(section)
	return o, section, err
}

// CreateProfile adds an access profile with its path rules.
func (s *Service) CreateProfile(ctx context.Context, a Actor, in api.Profile) (api.Profile, error) {
	if err := may(a, WritePolicies); err != nil {
		return api.Profile{}, err
	}
	o, _, err := s.readProfile(ctx, a.Tenant, store.NewID(), in)
	if err != nil {
		return api.Profile{}, err
	}
	var stored store.Object[ProfileData]
	err = s.change(ctx, a, gitEvent("add the access profile "+o.Name+pathFacts(in)), func(tx *store.DB) (events []store.Event, err error) {
		if err := sameUpstreams(ctx, tx, o); err != nil {
			return nil, err
		}
		stored, err = profiles().Insert(ctx, tx, o)
		return []store.Event{{Type: "git", Subject: o.ID, State: "created"}}, err
	})
	if err != nil {
		return api.Profile{}, err
	}
	return s.showProfileNow(ctx, stored)
}

// pathFacts says for the record what a profile is about.
func pathFacts(in api.Profile) string {
	if len(in.Paths) == 0 {
		return ", about no repository"
	}
	first := in.Paths[0]
	text := fmt.Sprintf(" for %s/%s%s", first.Upstream, first.Repository, first.Expression)
	if n := len(in.Paths) - 1; n > 0 {
		text += fmt.Sprintf(" and %d more", n)
	}
	return text
}

// sameUpstreams sees that the Git servers that a profile names are still there.
func sameUpstreams(ctx context.Context, tx *store.DB, o store.Object[ProfileData]) error {
	for _, path := range o.Data.Paths {
		if _, err := upstreams().Get(ctx, tx, o.Tenant, path.Upstream); err != nil {
			return err
		}
	}
	return nil
}

// ChangeProfile replaces an access profile; it is in force when ChangeProfile returns. Version 0 changes whatever version there is.
func (s *Service) ChangeProfile(ctx context.Context, a Actor, id string, version int64, in api.Profile) (api.Profile, error) {
	if err := may(a, WritePolicies); err != nil {
		return api.Profile{}, err
	}
	before, err := find(ctx, s.DB, profiles(), a.Tenant, "access profile", id)
	if err != nil {
		return api.Profile{}, err
	}
	if err := current(before, version); err != nil {
		return api.Profile{}, err
	}
	o, section, err := s.readProfile(ctx, a.Tenant, before.ID, in)
	if err != nil {
		return api.Profile{}, err
	}
	before.Name, before.Data = o.Name, o.Data
	affected, err := s.agentsWith(ctx, a.Tenant, []string{o.ID}, section)
	if err != nil {
		return api.Profile{}, err
	}
	var stored store.Object[ProfileData]
	err = s.change(ctx, a, gitEvent("change the access profile "+o.Name+pathFacts(in)), func(tx *store.DB) (events []store.Event, err error) {
		if err := sameUpstreams(ctx, tx, before); err != nil {
			return nil, err
		}
		stored, err = profiles().Update(ctx, tx, before)
		return []store.Event{{Type: "git", Subject: o.ID, State: "changed"}}, err
	})
	if err != nil {
		return api.Profile{}, err
	}
	if err := s.applyPolicy(ctx, a.Tenant, affected...); err != nil {
		return api.Profile{}, err
	}
	return s.showProfileNow(ctx, stored)
}

// DeleteProfile removes an access profile that no agent has.
func (s *Service) DeleteProfile(ctx context.Context, a Actor, id string) error {
	if err := may(a, WritePolicies); err != nil {
		return err
	}
	o, err := find(ctx, s.DB, profiles(), a.Tenant, "access profile", id)
	if err != nil {
		return err
	}
	unused := func(db *store.DB) error {
		n, err := grants().Count(ctx, db, a.Tenant, store.Filter{Parent: o.ID})
		if err == nil && n > 0 {
			err = fault.New(fault.Conflict, "%d agents have the access profile", n).WithHint("take it from them first")
		}
		return err
	}
	if err := unused(s.DB); err != nil {
		return err
	}
	return s.change(ctx, a, gitEvent("remove the access profile "+o.Name), func(tx *store.DB) ([]store.Event, error) {
		if err := unused(tx); err != nil {
			return nil, err
		}
		return []store.Event{{Type: "git", Subject: o.ID, State: "deleted"}}, profiles().Delete(ctx, tx, a.Tenant, o.ID, 0)
	})
}

// profilesNaming lists the profiles that have a path rule about a Git server.
func (s *Service) profilesNaming(ctx context.Context, tenant, upstream string) ([]string, error) {
	var ids []string
	err := every(ctx, s.DB, profiles(), tenant, store.Filter{}, func(o store.Object[ProfileData]) error {
		if slices.ContainsFunc(o.Data.Paths, func(p PathData) bool { return p.Upstream == upstream }) {
			ids = append(ids, o.ID)
		}
		return nil
	})
	return ids, err
}

// agentsWith lists the agents that have one of some profiles, and sees that what they have goes together when the changed parts stand in it.
func (s *Service) agentsWith(ctx context.Context, tenant string, profileIDs []string, changed gitSection) ([]string, error) {
	affected := map[string]bool{}
	for _, id := range profileIDs {
		err := every(ctx, s.DB, grants(), tenant, store.Filter{Parent: id}, func(o store.Object[GrantData]) error {
			affected[o.Data.Agent] = true
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	var ids []string
	seen := map[string]bool{}
	for id := range affected {
		o, err := agents().Get(ctx, s.DB, tenant, id)
		if fault.KindOf(err) == fault.NotFound {
			continue
		}
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
		key := fmt.Sprint(o.Parent, o.Data.Profiles)
		if seen[key] {
			continue
		}
		seen[key] = true
		if err := s.together(ctx, o, changed); err != nil {
			return nil, forAgent(o.Name, err)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// together sees that an agent's policy and profiles go together, with some of the parts changed.
func (s *Service) together(ctx context.Context, o store.Object[AgentData], changed gitSection) error {
	law, err := policies().Get(ctx, s.DB, o.Tenant, o.Parent)
	if err != nil {
		return err
	}
	text, err := s.policyText(ctx, s.DB, law)
	if err != nil {
		return err
	}
	section, err := s.sectionOf(ctx, s.DB, o.Tenant, o.Data.Profiles)
	if err != nil {
		return err
	}
	doc, err := addSection(text, "git", section.replaced(changed).node())
	if err != nil {
		return err
	}
	if _, err := policy.Parse("", []byte(doc)); err != nil {
		return togetherError(err)
	}
	return nil
}
