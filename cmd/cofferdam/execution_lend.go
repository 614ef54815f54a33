package main

import (
	"context"
	"errors"

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
}

// openCredentials opens what policy lends, while this process can still open files. It keeps the credentials' own data keys, never the key that seals them.
func (e *execution) openCredentials(ctx context.Context) error {
	entries := e.settled.policy.Credentials()
	if len(entries) == 0 {
		return nil
	}
	store, err := e.app.credentials()
	if err != nil {
		return err
	}
	issued := credential.NewPlaceholders(e.id)
	var names []credential.Name
	for _, entry := range entries {
		name, err := e.placehold(ctx, store, issued, entry)
		if err != nil {
			return err
		}
		names = append(names, name)
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
	meta, err := store.Get(ctx, name)
	if err != nil {
		if fault.KindOf(err) == fault.NotFound {
			return "", fault.New(fault.Invalid, "the policy lends the credential %s, which is not in the store", name).WithHint("add it with: cofferdam credential add %s --host HOST < FILE", name)
		}
		return "", err
	}
	narrower := credential.Scope{Ports: entry.Ports, Methods: entry.Methods}
	for _, host := range entry.Hosts {
		narrower.Hosts = append(narrower.Hosts, host.String())
	}
	for _, path := range entry.Paths {
		narrower.Paths = append(narrower.Paths, path.String())
	}
	if err := meta.Fits(entry.Header, narrower); err != nil {
		return "", err
	}
	if entry.Env == "" {
		return name, nil
	}
	made, err := issued.Issue(meta)
	if err != nil {
		return "", err
	}
	e.lending.stand(entry.Env, string(name), made.Value)
	if made.Secret != "" { // AWS: a pair, of which programs want both
		if entry.Env != "AWS_ACCESS_KEY_ID" {
			return "", fault.New(fault.Invalid, "the credential %s stands in %s, but an AWS key is a pair", name, entry.Env).WithHint("write env: AWS_ACCESS_KEY_ID; AWS_SECRET_ACCESS_KEY is set with it")
		}
		e.lending.stand("AWS_SECRET_ACCESS_KEY", string(name), made.Secret)
	}
	return name, nil
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
