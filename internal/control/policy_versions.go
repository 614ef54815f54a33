package control

import (
	"bytes"
	"context"
	"strconv"

	"github.com/rogpeppe/go-internal/diff"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

// PolicyVersions lists versions, newest first.
func (s *Service) PolicyVersions(ctx context.Context, a Actor, id string, p Page) (api.Page[api.PolicyVersion], error) {
	var out api.Page[api.PolicyVersion]
	if err := may(a, ReadPolicies); err != nil {
		return out, err
	}
	o, err := s.policy(ctx, s.DB, a.Tenant, id)
	if err != nil {
		return out, err
	}
	f, err := p.filter()
	if err != nil {
		return out, err
	}
	f.Parent, f.Search = o.ID, ""
	f.Limit = min(f.Limit, 50) // their texts are read, though not shown
	return pageOf(ctx, s.DB, versions(), a.Tenant, f, func(v store.Object[VersionData]) api.PolicyVersion {
		shown := showVersion(v)
		shown.Text = ""
		return shown
	})
}

// PolicyVersion returns one version.
func (s *Service) PolicyVersion(ctx context.Context, a Actor, id string, number int) (api.PolicyVersion, error) {
	if err := may(a, ReadPolicies); err != nil {
		return api.PolicyVersion{}, err
	}
	o, err := s.policy(ctx, s.DB, a.Tenant, id)
	if err != nil {
		return api.PolicyVersion{}, err
	}
	v, err := s.version(ctx, o, number)
	return showVersion(v), err
}

func (s *Service) version(ctx context.Context, o store.Object[PolicyData], number int) (store.Object[VersionData], error) {
	if number < 1 || number > o.Data.Number {
		return store.Object[VersionData]{}, absent("version of the policy")
	}
	v, err := versions().Get(ctx, s.DB, o.Tenant, versionID(o.ID, number))
	if fault.KindOf(err) == fault.NotFound {
		return v, absent("version of the policy")
	}
	return v, err
}

func showVersion(v store.Object[VersionData]) api.PolicyVersion {
	return api.PolicyVersion{Number: v.Data.Number, Text: v.Data.Text, Comment: v.Data.Comment, Author: v.Data.Author, Created: v.Created}
}

// DiffPolicy is a unified diff of two versions, empty if they say the same.
func (s *Service) DiffPolicy(ctx context.Context, a Actor, id string, from, to int) (string, error) {
	if err := may(a, ReadPolicies); err != nil {
		return "", err
	}
	o, err := s.policy(ctx, s.DB, a.Tenant, id)
	if err != nil {
		return "", err
	}
	before, err := s.version(ctx, o, from)
	if err != nil {
		return "", err
	}
	after, err := s.version(ctx, o, to)
	if err != nil {
		return "", err
	}
	name := func(v store.Object[VersionData]) string { return o.Name + "@" + strconv.Itoa(v.Data.Number) }
	text := diff.Diff(name(before), []byte(before.Data.Text), name(after), []byte(after.Data.Text))
	if _, rest, ok := bytes.Cut(text, []byte("\n")); ok { // its own first line, "diff A B"
		text = rest
	}
	return string(text), nil
}
