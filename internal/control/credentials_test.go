package control

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/credential"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/seal"
)

// TestCredentialLife: a value goes in once, is sealed under the tenant's own key, and comes out nowhere.
func TestCredentialLife(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	const value, next, password = "canary-0123456789abcdef", "canary-second-value", "canary with spaces"
	if list := must[[]api.Credential](t)(s.Credentials(ctx, s.admin())); list == nil || len(list) > 0 {
		t.Errorf("at first: %v", list)
	}
	made := must[api.Credential](t)(s.CreateCredential(ctx, s.admin(), api.NewCredential{Name: "github", Hosts: []string{"api.github.com"}, Methods: []string{"GET"}, Values: map[string]string{"value": value + "\n"}}))
	if made.Masked != "••••" || made.Kind != "static" || made.Header != "Authorization" || !slices.Equal(made.Ports, []uint16{443}) || made.Created.IsZero() || !made.Rotated.IsZero() {
		t.Errorf("%+v", made)
	}
	must[api.Credential](t)(s.CreateCredential(ctx, s.admin(), api.NewCredential{Name: "registry", Kind: "basic", User: "ci", Hosts: []string{"registry.example.com"}, Values: map[string]string{"password": password}}))
	_, err := s.CreateCredential(ctx, s.admin(), api.NewCredential{Name: "github", Hosts: []string{"a.example"}, Values: map[string]string{"value": value}})
	says(t, err, fault.Conflict, "of that name")
	lends := "version: 1\negress:\n  rules:\n    - {name: api, hosts: [api.github.com], ports: [443]}\ncredentials:\n  - {use: github, hosts: [api.github.com], env: TOKEN}\n"
	must[api.Policy](t)(s.CreatePolicy(ctx, s.admin(), api.NewPolicy{Name: "ci", Text: lends}))
	if got := must[api.Credential](t)(s.Credential(ctx, s.a[api.Viewer], "github")); !slices.Equal(got.UsedBy, []string{"ci"}) {
		t.Errorf("used by %q", got.UsedBy)
	}
	rotated := must[api.Credential](t)(s.RotateCredential(ctx, s.admin(), "github", api.RotateCredential{Values: map[string]string{"value": next}}))
	if rotated.Rotated.IsZero() {
		t.Errorf("%+v", rotated)
	}
	// It opens as the gateway opens it.
	dir := filepath.Join(s.dir, "tenants", s.admin().Tenant)
	opened := must[*credential.Store](t)(credential.OpenStore(filepath.Join(dir, "credentials")))
	done(t, seal.OpenVault(filepath.Join(dir, "seal"), os.Getenv).Use(ctx, func(ring *seal.Keyring) error {
		masks, err := opened.Masks(ctx, ring, "github")
		if err == nil && masks["value"] != "••••"+next[len(next)-4:] {
			err = fmt.Errorf("the value is %v", masks)
		}
		return err
	}))
	if list := must[[]api.Credential](t)(s.Credentials(ctx, s.admin())); len(list) != 2 {
		t.Errorf("%+v", list)
	}
	done(t, s.DeleteCredential(ctx, s.admin(), "github"))
	_, err = s.Credential(ctx, s.admin(), "github")
	says(t, err, fault.NotFound, "no such credential")
	says(t, s.DeleteCredential(ctx, s.admin(), "github"), fault.NotFound, "no such credential")

	var details []string
	for _, e := range s.records(audit.CredentialChanged) {
		details = append(details, e.Credential+": "+e.Detail)
	}
	want := []string{"github: add static for api.github.com GET", "registry: add basic for registry.example.com", "github: rotate", "github: remove"}
	if !slices.Equal(details, want) {
		t.Errorf("on record: %q", details)
	}
	for _, canary := range []string{value, next, password, "canary"} {
		if found := s.find(canary); found != "" {
			t.Errorf("%q stands in %s", canary, found)
		}
	}
}

// find returns the file below the state directory in which a text stands, "" if there is none.
func (s *stage) find(text string) string {
	s.t.Helper()
	found := ""
	done(s.t, filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte(text)) {
			found = path
		}
		return err
	}))
	return found
}

func TestCredentialInput(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	plain := map[string]string{"value": "canary-secret"}
	hosts := []string{"api.example.com"}
	empty := ""
	for name, c := range map[string]struct {
		in api.NewCredential
		ok bool
	}{
		"plain":                 {api.NewCredential{Name: "a", Hosts: hosts, Values: plain}, true},
		"bare header":           {api.NewCredential{Name: "b", Hosts: hosts, Prefix: &empty, Values: plain}, true},
		"aws":                   {api.NewCredential{Name: "c", Kind: "aws", Hosts: hosts, Settings: json.RawMessage(`{"access_key_id":"AKIA0123456789ABCDEF"}`), Values: map[string]string{"secret-access-key": "canary"}}, true},
		"oauth":                 {api.NewCredential{Name: "d", Kind: "oauth2-client", Hosts: hosts, Settings: json.RawMessage(`{"token_url":"https://login.example.com/token","client_id":"x"}`), Values: map[string]string{"client-secret": "canary"}}, true},
		"no name":               {api.NewCredential{Hosts: hosts, Values: plain}, false},
		"a path":                {api.NewCredential{Name: "../x", Hosts: hosts, Values: plain}, false},
		"a token as name":       {api.NewCredential{Name: "ghp_0123456789abcdef", Hosts: hosts, Values: plain}, false},
		"no host":               {api.NewCredential{Name: "x", Values: plain}, false},
		"every host":            {api.NewCredential{Name: "x", Hosts: []string{"*"}, Values: plain}, false},
		"no value":              {api.NewCredential{Name: "x", Hosts: hosts}, false},
		"an empty value":        {api.NewCredential{Name: "x", Hosts: hosts, Values: map[string]string{"value": "\n"}}, false},
		"another kind's value":  {api.NewCredential{Name: "x", Hosts: hosts, Values: map[string]string{"password": "canary"}}, false},
		"no kind":               {api.NewCredential{Name: "x", Kind: "magic", Hosts: hosts, Values: plain}, false},
		"settings of none":      {api.NewCredential{Name: "x", Hosts: hosts, Settings: json.RawMessage(`{}`), Values: plain}, false},
		"unknown settings":      {api.NewCredential{Name: "x", Kind: "aws", Hosts: hosts, Settings: json.RawMessage(`{"access_key_id":"AKIA0123456789ABCDEF","secret":"canary"}`), Values: map[string]string{"secret-access-key": "canary"}}, false},
		"no settings":           {api.NewCredential{Name: "x", Kind: "aws", Hosts: hosts, Values: map[string]string{"secret-access-key": "canary"}}, false},
		"a header of the wire":  {api.NewCredential{Name: "x", Hosts: hosts, Header: "Host", Values: plain}, false},
		"a line break inside":   {api.NewCredential{Name: "x", Hosts: hosts, Values: map[string]string{"value": "canary\r\nX: y"}}, false},
		"no private key":        {api.NewCredential{Name: "x", Kind: "github-app", Hosts: hosts, Settings: json.RawMessage(`{"app_id":"1","installation_id":"2"}`), Values: map[string]string{"private-key": "canary"}}, false},
		"a token endpoint http": {api.NewCredential{Name: "x", Kind: "oauth2-client", Hosts: hosts, Settings: json.RawMessage(`{"token_url":"http://login.example.com/token","client_id":"x"}`), Values: map[string]string{"client-secret": "canary"}}, false},
	} {
		_, err := s.CreateCredential(ctx, s.admin(), c.in)
		if (err == nil) != c.ok || err != nil && fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(fmt.Sprint(err, fault.HintOf(err), fault.Public(err)), "canary") {
			t.Errorf("%s: the secret is in the error: %v", name, err)
		}
	}
	_, err := s.RotateCredential(ctx, s.admin(), "a", api.RotateCredential{})
	wants(t, err, fault.Invalid)
	_, err = s.RotateCredential(ctx, s.admin(), "ghp_0123456789abcdef", api.RotateCredential{Values: plain})
	wants(t, err, fault.NotFound)
}

// TestLostKey: where the key is gone no new one hides the loss.
func TestLostKey(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	in := api.NewCredential{Name: "a", Hosts: []string{"api.example.com"}, Values: map[string]string{"value": "canary-secret"}}
	must[api.Credential](t)(s.CreateCredential(ctx, s.admin(), in))
	done(t, os.RemoveAll(filepath.Join(s.dir, "tenants", s.admin().Tenant, "seal")))
	in.Name = "b"
	_, err := s.CreateCredential(ctx, s.admin(), in)
	says(t, err, fault.Unavailable, "key that they are sealed under is gone")
	if e := s.records(audit.CredentialChanged); !strings.Contains(e[len(e)-1].Error, "did not happen") {
		t.Errorf("on record: %+v", e[len(e)-1])
	}
	must[[]api.Credential](t)(s.Credentials(ctx, s.admin()))
	done(t, s.DeleteCredential(ctx, s.admin(), "a"))
}

func TestTenantDir(t *testing.T) {
	s := newStage(t)
	for _, bad := range []string{"", ".", "..", "a/b", "../a", "A", "a\x00", "-a", "*", strings.Repeat("a", 65)} {
		if dir, err := s.tenantDir(bad); err == nil {
			t.Errorf("%q is %s", bad, dir)
		}
	}
	for _, good := range []string{s.admin().Tenant, "t-1"} {
		if dir, err := s.tenantDir(good); err != nil || filepath.Dir(dir) != filepath.Join(s.dir, "tenants") {
			t.Errorf("%q is %s (%v)", good, dir, err)
		}
	}
}
