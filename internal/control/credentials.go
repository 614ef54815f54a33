package control

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/credential"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/seal"
	"github.com/cofferdam/cofferdam/internal/secret"
	"github.com/cofferdam/cofferdam/internal/store"
)

// masked stands for every secret of every credential: their last characters are shown nowhere either, since nobody needs them here, and to tell them
// each would have to be opened.
const masked = "••••"

// Credentials lists credentials, masked. One that is damaged does not hide the others: it is left out, and the operator's log says so.
func (s *Service) Credentials(ctx context.Context, a Actor) ([]api.Credential, error) {
	if err := may(a, ReadCredentials); err != nil {
		return nil, err
	}
	v, err := s.safe(a.Tenant)
	if err != nil {
		return nil, err
	}
	list, problem := v.store.List(ctx)
	if problem != nil {
		s.warn("a credential cannot be read", "tenant", a.Tenant, "error", problem)
	}
	users, err := s.users(ctx, a.Tenant)
	if err != nil {
		return nil, err
	}
	out := make([]api.Credential, 0, len(list))
	for _, m := range list {
		out = append(out, showCredential(m, users))
	}
	return out, nil
}

// Credential returns one, masked.
func (s *Service) Credential(ctx context.Context, a Actor, name string) (api.Credential, error) {
	if err := may(a, ReadCredentials); err != nil {
		return api.Credential{}, err
	}
	v, m, err := s.credential(ctx, a.Tenant, name)
	if err != nil {
		return api.Credential{}, err
	}
	return s.showCredentialNow(ctx, a.Tenant, v, m.Name)
}

// credential finds a credential. A name that cannot be one is not there, and is not repeated: it may be a secret.
func (s *Service) credential(ctx context.Context, tenant, text string) (safe, credential.Meta, error) {
	v, err := s.safe(tenant)
	if err != nil {
		return v, credential.Meta{}, err
	}
	name, err := credential.ParseName(text)
	if err != nil {
		return v, credential.Meta{}, absent("credential")
	}
	m, err := v.store.Get(ctx, name)
	if fault.KindOf(err) == fault.NotFound {
		err = absent("credential")
	}
	return v, m, err
}

func (s *Service) showCredentialNow(ctx context.Context, tenant string, v safe, name credential.Name) (api.Credential, error) {
	m, err := v.store.Get(ctx, name)
	if err != nil {
		return api.Credential{}, err
	}
	users, err := s.users(ctx, tenant)
	return showCredential(m, users), err
}

// users lists by credential what lends it: policies by their names, Git servers as git:NAME.
func (s *Service) users(ctx context.Context, tenant string) (map[string][]string, error) {
	used := map[string][]string{}
	add := func(user string, names ...string) {
		for _, n := range names {
			if n != "" && !slices.Contains(used[n], user) {
				used[n] = append(used[n], user)
			}
		}
	}
	err := every(ctx, s.DB, policies(), tenant, store.Filter{ByName: true}, func(o store.Object[PolicyData]) error {
		add(o.Name, o.Data.Credentials...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = every(ctx, s.DB, upstreams(), tenant, store.Filter{ByName: true}, func(o store.Object[UpstreamData]) error {
		add("git:"+o.Name, o.Data.Credential, o.Data.APICredential)
		return nil
	})
	return used, err
}

func showCredential(m credential.Meta, users map[string][]string) api.Credential {
	return api.Credential{
		Name: string(m.Name), Kind: string(m.Kind), Hosts: orEmpty(m.Scope.Hosts), Ports: m.Scope.Ports, Paths: m.Scope.Paths, Methods: m.Scope.Methods,
		Header: m.Header, User: m.User, Masked: masked, Created: m.Created, Rotated: m.Rotated, UsedBy: users[string(m.Name)],
	}
}

// CreateCredential seals a credential.
func (s *Service) CreateCredential(ctx context.Context, a Actor, in api.NewCredential) (api.Credential, error) {
	if err := may(a, WriteCredentials); err != nil {
		return api.Credential{}, err
	}
	m, err := describe(in)
	if err != nil {
		return api.Credential{}, err
	}
	secrets, err := material(m.Kind, in.Values, true)
	if err != nil {
		return api.Credential{}, err
	}
	defer wipe(secrets)
	v, err := s.safe(a.Tenant)
	if err != nil {
		return api.Credential{}, err
	}
	if _, err := v.store.Get(ctx, m.Name); fault.KindOf(err) != fault.NotFound {
		return api.Credential{}, fault.New(fault.Conflict, "there is a credential of that name").WithHint("give it a new value, or choose another name").Because(err)
	}
	event := audit.Event{Kind: audit.CredentialChanged, Credential: string(m.Name), Detail: "add " + string(m.Kind) + " for " + m.Scope.Words()}
	err = s.changeCredential(ctx, a, event, "created", func() error {
		return v.withKeys(ctx, func(ring *seal.Keyring) error { return v.store.Add(ring, m, secrets) })
	})
	if err != nil {
		return api.Credential{}, err
	}
	return s.showCredentialNow(ctx, a.Tenant, v, m.Name)
}

// changeCredential records a change, does it in the tenant's files, and tells whoever watches.
func (s *Service) changeCredential(ctx context.Context, a Actor, e audit.Event, state string, do func() error) error {
	if err := s.note(ctx, a, e); err != nil {
		return err
	}
	if err := do(); err != nil {
		return s.undone(ctx, a, e, err)
	}
	_, err := s.DB.Emit(ctx, store.Event{Tenant: a.Tenant, Type: "credential", Subject: e.Credential, State: state, Time: s.now()})
	if err != nil { // it is done: that a page shows it later is no failure of it
		s.warn("a change of a credential was not told", "tenant", a.Tenant, "credential", e.Credential, "error", err)
	}
	return nil
}

// describe reads what a credential is for.
func describe(in api.NewCredential) (credential.Meta, error) {
	var m credential.Meta
	var err error
	if m.Name, err = credential.ParseName(in.Name); err != nil {
		return m, err
	}
	if looksSecret(in.Name) {
		return m, fault.New(fault.Invalid, "that looks like a secret, not like the name of a credential").WithHint("take it as leaked and replace it; then write a name such as github-main")
	}
	kind := in.Kind
	if kind == "" {
		kind = string(credential.Static)
	}
	if m.Kind, err = credential.ParseKind(kind); err != nil {
		return m, err
	}
	m.Scope = credential.Scope{Hosts: in.Hosts, Ports: in.Ports, Paths: in.Paths, Methods: in.Methods}
	m.Header, m.User = in.Header, in.User
	if in.Prefix != nil {
		m.Prefix = spaced(*in.Prefix)
		if *in.Prefix == "" && in.Header == "" { // without a header and a prefix the store would write Bearer
			m.Header = "Authorization"
		}
	}
	if err := settle(&m, in.Settings); err != nil {
		return m, err
	}
	return credential.Normalised(m)
}

// spaced adds the space that belongs after a scheme's name.
func spaced(prefix string) string {
	if prefix != "" && strings.Trim(prefix, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") == "" {
		return prefix + " "
	}
	return prefix
}

// looksSecret reports whether a text is one of the well-known tokens, or too random to be a name.
func looksSecret(text string) bool {
	known := slices.ContainsFunc([]string{"ghp_", "gho_", "ghu_", "ghs_", "github_pat_", "glpat-", "npm_", "pypi-", "sk-", "xoxb-", "xoxp-"},
		func(p string) bool { return strings.HasPrefix(text, p) && len(text) > len(p)+12 })
	return known || len(text) >= 32 && strings.ContainsAny(text, "0123456789") && !strings.ContainsAny(text, "-._")
}

// settle reads the settings that belong to a kind.
func settle(m *credential.Meta, settings json.RawMessage) error {
	var into any
	switch m.Kind {
	case credential.GitHubApp:
		m.GitHub = &credential.GitHubSettings{}
		into = m.GitHub
	case credential.OAuth2Client, credential.OAuth2Refresh, credential.TokenExchange:
		m.OAuth = &credential.OAuthSettings{}
		into = m.OAuth
	case credential.AWS:
		m.AWS = &credential.AWSSettings{}
		into = m.AWS
	default:
		if len(settings) > 0 && string(settings) != "null" {
			return fault.New(fault.Invalid, "settings: a credential of kind %s has none", m.Kind).WithHint("leave them out, or choose another kind")
		}
		return nil
	}
	if len(settings) == 0 {
		return fault.New(fault.Invalid, "settings: a credential of kind %s needs them", m.Kind).WithHint("see docs/credentials.md for what each kind needs")
	}
	dec := json.NewDecoder(bytes.NewReader(settings))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil || dec.More() {
		return fault.New(fault.Invalid, "settings: they are not those of a credential of kind %s", m.Kind).WithHint("see docs/credentials.md for what each kind needs")
	}
	return nil
}

// material moves values to where nothing prints them. One line break at the end is not part of a value, except of a key's PEM. whole says that
// all that the kind needs must be there; without it, at least one.
func material(kind credential.Kind, values map[string]string, whole bool) (credential.Material, error) {
	required, optional := kind.Fields()
	out := credential.Material{}
	for field, text := range values {
		f := credential.Field(field)
		if !slices.Contains(required, f) && !slices.Contains(optional, f) {
			wipe(out)
			return nil, fault.New(fault.Invalid, "values: a credential of kind %s has no such part", kind).WithHint("its parts are %s", credential.FieldNames(append(required, optional...)))
		}
		value := []byte(text)
		if f != credential.PrivateKey {
			value = bytes.TrimSuffix(bytes.TrimSuffix(value, []byte("\n")), []byte("\r"))
		}
		if len(value) == 0 {
			wipe(out)
			return nil, fault.New(fault.Invalid, "values: the %s is empty", f).WithHint("give the secret alone")
		}
		out[f] = secret.Take(value)
	}
	if len(out) == 0 || whole && slices.ContainsFunc(required, func(f credential.Field) bool { return out[f].Empty() }) {
		wipe(out)
		return nil, fault.New(fault.Invalid, "values: a credential of kind %s needs %s", kind, credential.FieldNames(required)).WithHint("give each under its name")
	}
	return out, nil
}

func wipe(m credential.Material) {
	for _, v := range m {
		v.Wipe()
	}
}

// RotateCredential replaces its values; running sandboxes use them with the next request.
func (s *Service) RotateCredential(ctx context.Context, a Actor, name string, in api.RotateCredential) (api.Credential, error) {
	if err := may(a, WriteCredentials); err != nil {
		return api.Credential{}, err
	}
	v, m, err := s.credential(ctx, a.Tenant, name)
	if err != nil {
		return api.Credential{}, err
	}
	secrets, err := material(m.Kind, in.Values, false)
	if err != nil {
		return api.Credential{}, err
	}
	defer wipe(secrets)
	event := audit.Event{Kind: audit.CredentialChanged, Credential: string(m.Name), Detail: "rotate"}
	err = s.changeCredential(ctx, a, event, "changed", func() error {
		return v.vault.Use(ctx, func(ring *seal.Keyring) error { return v.store.Rotate(ctx, ring, m.Name, secrets) })
	})
	if err != nil {
		return api.Credential{}, err
	}
	return s.showCredentialNow(ctx, a.Tenant, v, m.Name)
}

// DeleteCredential erases a credential; connections that use it are cut. Also one that is damaged can be erased.
func (s *Service) DeleteCredential(ctx context.Context, a Actor, name string) error {
	if err := may(a, WriteCredentials); err != nil {
		return err
	}
	v, err := s.safe(a.Tenant)
	if err != nil {
		return err
	}
	parsed, err := credential.ParseName(name)
	if err != nil {
		return absent("credential")
	}
	if _, err := v.store.Get(ctx, parsed); fault.KindOf(err) == fault.NotFound {
		return absent("credential")
	}
	event := audit.Event{Kind: audit.CredentialChanged, Credential: string(parsed), Detail: "remove"}
	return s.changeCredential(ctx, a, event, "deleted", func() error {
		if err := v.store.Remove(ctx, parsed); err != nil {
			return fmt.Errorf("remove a credential: %w", err)
		}
		return nil
	})
}
