package main

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/cofferdam/cofferdam/internal/credential"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/gateway"
	"github.com/cofferdam/cofferdam/internal/netname"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/seal"
)

// lending is the credentials that this run's policy lends: open, each with a placeholder that stands inside in its place.
type lending struct {
	lender       *credential.Lender
	placeholders []gateway.Placeholder
	env          []string
	metas        map[credential.Name]credential.Meta // of what is open
}

// openCredentials opens what policy lends, while this process can still open files. It keeps the credentials' own data keys, never the key that seals them.
func (e *execution) openCredentials(ctx context.Context) error {
	entries := e.settled.policy.Credentials()
	if len(entries) == 0 && !e.settled.policy.ServesGit() {
		return nil
	}
	store, err := e.app.credentials()
	if err != nil {
		return err
	}
	issued := credential.NewPlaceholders(e.id)
	e.lending.metas = map[credential.Name]credential.Meta{}
	names, err := gitCredentials(e.settled.policy, func(name credential.Name) (credential.Meta, error) {
		return e.lending.stored(ctx, store, name)
	})
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name, err := e.placehold(ctx, store, issued, entry)
		if err != nil {
			return err
		}
		names = append(names, name)
	}
	if len(names) == 0 {
		return nil
	}
	options := credential.Options{Client: credential.NewClient(checkedDial(e.upstream, e.settled.policy.DecideAddress), nil)}
	return e.app.vault().Use(ctx, func(ring *seal.Keyring) error {
		e.lending.lender, err = store.Open(ctx, ring, options, names...)
		return err
	})
}

// placehold checks one entry of the policy against the credential that it names, and makes the placeholder for it.
func (e *execution) placehold(ctx context.Context, store *credential.Store, issued *credential.Placeholders, entry policy.Credential) (credential.Name, error) {
	name, err := credential.ParseName(entry.Use)
	if err != nil {
		return "", err
	}
	meta, err := e.lending.stored(ctx, store, name)
	if err == nil {
		err = meta.Fits(entry.Header, scopeOf(entry))
	}
	if err != nil {
		return "", err
	}
	if entry.Env == "" || e.lending.sets(entry.Env) { // two entries for one credential have one placeholder
		return name, nil
	}
	made, err := issued.Issue(meta)
	if err != nil {
		return "", err
	}
	e.lending.stand(entry.Env, string(name), made.Value)
	if made.Secret != "" { // AWS: a pair, of which programs want both
		partner, err := secretVariable(name, entry.Env)
		if err == nil {
			err = e.free(name, partner)
		}
		if err != nil {
			return "", err
		}
		e.lending.stand(partner, string(name), made.Secret)
	}
	return name, nil
}

// scopeOf is where an entry of the policy lends, in the store's terms.
func scopeOf(entry policy.Credential) credential.Scope {
	s := credential.Scope{Ports: entry.Ports, Methods: entry.Methods}
	for _, host := range entry.Hosts {
		s.Hosts = append(s.Hosts, host.String())
	}
	for _, path := range entry.Paths {
		s.Paths = append(s.Paths, path.String())
	}
	return s
}

// secretVariable is the variable for the second half of an AWS key whose id stands in another: programs that take two keys tell them apart by what stands before.
func secretVariable(name credential.Name, id string) (string, error) {
	for _, pair := range [][2]string{{"ACCESS_KEY_ID", "SECRET_ACCESS_KEY"}, {"ACCESS_KEY", "SECRET_KEY"}, {"access_key_id", "secret_access_key"}, {"access_key", "secret_key"}} {
		prefix, ok := strings.CutSuffix(id, pair[0])
		if ok && (prefix == "" || strings.HasSuffix(prefix, "_")) && !strings.HasSuffix(strings.ToUpper(prefix), "SECRET_") {
			return prefix + pair[1], nil
		}
	}
	return "", fault.New(fault.Invalid, "the credential %s stands in %s, but an AWS key is a pair", name, id).
		WithHint("write env: AWS_ACCESS_KEY_ID, or another name that ends in ACCESS_KEY_ID or ACCESS_KEY: SECRET_ACCESS_KEY or SECRET_KEY is set with it")
}

// free refuses a variable that has a meaning already: one of the two would be lost.
func (e *execution) free(name credential.Name, variable string) error {
	lent := slices.ContainsFunc(e.settled.policy.Credentials(), func(c policy.Credential) bool { return c.Env == variable })
	if lent || e.lending.sets(variable) || sets(e.settled.env, variable) {
		return fault.New(fault.Invalid, "the variable %s belongs to the credential %s, an AWS key, and is set otherwise too", variable, name).WithHint("choose another env for one of them")
	}
	return nil
}

// sets reports whether a variable has a placeholder.
func (l *lending) sets(variable string) bool { return sets(l.env, variable) }

func sets(env []string, variable string) bool {
	return slices.ContainsFunc(env, func(v string) bool { return strings.HasPrefix(v, variable+"=") })
}

// stored returns the description of a credential that a policy names, and remembers it.
func (l *lending) stored(ctx context.Context, store *credential.Store, name credential.Name) (credential.Meta, error) {
	meta, err := store.Get(ctx, name)
	if err == nil {
		l.metas[name] = meta
	}
	if fault.KindOf(err) == fault.NotFound {
		err = fault.New(fault.Invalid, "the policy lends the credential %s, which is not in the store", name).WithHint("add it with: cofferdam credential add %s --host HOST < FILE", name)
	}
	return meta, err
}

// stand puts a placeholder into a variable inside, and among those that the gateway looks for.
func (l *lending) stand(variable, name, value string) {
	l.env = append(l.env, variable+"="+value)
	l.placeholders = append(l.placeholders, gateway.Placeholder{Credential: name, Value: value})
}

// lend opens a credential for one request over verified TLS. The gateway has decided and recorded; the credential's own conditions hold besides.
func (l *lending) lend(ctx context.Context, name string, c policy.Crossing) (gateway.Grant, error) {
	want := credential.Request{Channel: credential.VerifiedTLS, Host: c.Host, Port: c.Port, Method: c.Method}
	if path, err := netname.NormalisePath(c.Path); err == nil {
		want.Path = path // without one, conditions about paths refuse
	}
	grant, err := l.lender.Lend(ctx, credential.Name(name), want)
	if err != nil {
		return nil, err
	}
	if grant == nil {
		return nil, errors.New("no grant")
	}
	return grant, nil
}
