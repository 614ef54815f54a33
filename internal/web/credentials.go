package web

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/control"
	"github.com/cofferdam/cofferdam/internal/credential"
)

type credentialOperations interface {
	Credentials(ctx context.Context, a control.Actor) ([]api.Credential, error)
	Credential(ctx context.Context, a control.Actor, name string) (api.Credential, error)
	CreateCredential(ctx context.Context, a control.Actor, in api.NewCredential) (api.Credential, error)
	RotateCredential(ctx context.Context, a control.Actor, name string, in api.RotateCredential) (api.Credential, error)
	DeleteCredential(ctx context.Context, a control.Actor, name string) error
}

func (p *Pages) credentials(v *visit) error {
	list, err := v.ops.Credentials(v.r.Context(), v.actor)
	if err != nil {
		return err
	}
	return v.show("credentials", "Credentials", "credentials", list)
}

// secretField is one secret that a kind of credential consists of.
type secretField struct {
	Name     string
	Label    string
	Required bool
	Long     bool // several lines
	Error    string
}

func secretFields(kind string, f *form) []secretField {
	required, optional := credential.Kind(kind).Fields()
	var out []secretField
	for i, field := range append(required, optional...) {
		name := "secret." + string(field)
		out = append(out, secretField{Name: name, Label: strings.ToUpper(string(field[:1])) + strings.ReplaceAll(string(field[1:]), "-", " "), Required: i < len(required),
			Long: field == credential.PrivateKey, Error: f.Error(name)})
	}
	return out
}

// secrets reads the secrets of a form. They go to the operation and are not shown again.
func (f *form) secrets(kind string) map[string]string {
	values := map[string]string{}
	for _, s := range secretFields(kind, f) {
		value := strings.TrimSuffix(f.block(s.Name), "\n")
		if value == "" && s.Required {
			f.wrong(s.Name, "This is needed.")
		}
		if value != "" {
			values[strings.TrimPrefix(s.Name, "secret.")] = value
		}
	}
	return values
}

type credentialForm struct {
	Form    *form
	Kind    string
	Kinds   []kindChoice
	Secrets []secretField
}

type kindChoice struct{ Name, Text string }

func kindChoices() []kindChoice {
	return []kindChoice{
		{"static", "Token, sent in a header"}, {"basic", "User and password"}, {"github-app", "GitHub App"}, {"oauth2-client", "OAuth client credentials"},
		{"oauth2-refresh", "OAuth refresh token"}, {"token-exchange", "Token exchange"}, {"aws", "AWS access key"},
	}
}

func (p *Pages) newCredentialPage(v *visit) error {
	kind := v.r.URL.Query().Get("kind")
	if _, err := credential.ParseKind(kind); err != nil {
		kind = string(credential.Static)
	}
	return v.showCredentialForm(prefilled("kind", kind), kind)
}

func (v *visit) showCredentialForm(f *form, kind string) error {
	return v.showForm("credential-form", "New credential", "credentials", f, credentialForm{Form: f, Kind: kind, Kinds: kindChoices(), Secrets: secretFields(kind, f)})
}

func (p *Pages) newCredential(v *visit) error {
	f := newForm(v.r.PostForm)
	kind := f.text("kind")
	if _, err := credential.ParseKind(kind); err != nil {
		return err
	}
	f.need("name", "hosts")
	in := api.NewCredential{Name: f.text("name"), Kind: kind, Hosts: f.list("hosts"), Paths: f.list("paths"), Methods: f.list("methods"), Header: f.text("header"), User: f.text("user")}
	if f.text("header") != "" {
		prefix := f.Value("prefix")
		in.Prefix = &prefix
	}
	for _, s := range f.list("ports") {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil || n == 0 {
			f.wrong("ports", "Ports are numbers from 1 to 65535.")
			break
		}
		in.Ports = append(in.Ports, uint16(n))
	}
	if kind == string(credential.Basic) {
		f.need("user")
	}
	settings, err := readSettings(f, kind)
	if err != nil {
		return err
	}
	in.Settings, in.Values = settings, f.secrets(kind)
	if f.Bad() {
		return v.showCredentialForm(f, kind)
	}
	if _, err := v.ops.CreateCredential(v.r.Context(), v.actor, in); err != nil {
		if err := f.take(err); err != nil {
			return err
		}
		return v.showCredentialForm(f, kind)
	}
	return v.to(localURL("credentials", in.Name), "credential-made")
}

// readSettings reads what kinds that mint or sign have beyond conditions.
func readSettings(f *form, kind string) (json.RawMessage, error) {
	var settings any
	switch credential.Kind(kind) {
	case credential.GitHubApp:
		f.need("app_id", "installation_id")
		permissions, err := readVariables(f.block("permissions"))
		if err != nil {
			f.wrong("permissions", "Each line is NAME=read or NAME=write.")
		}
		settings = credential.GitHubSettings{API: f.text("api"), AppID: f.text("app_id"), InstallationID: f.text("installation_id"), Repositories: f.list("repositories"), Permissions: permissions}
	case credential.OAuth2Client, credential.OAuth2Refresh, credential.TokenExchange:
		f.need("token_url")
		settings = credential.OAuthSettings{TokenURL: f.text("token_url"), ClientID: f.text("client_id"), ClientAuth: credential.ClientAuth(f.text("client_auth")), Scopes: f.list("scopes"),
			Audience: f.text("audience"), Resource: f.text("resource"), SubjectTokenType: f.text("subject_token_type"), RequestedType: f.text("requested_token_type")}
	case credential.AWS:
		f.need("access_key_id")
		settings = credential.AWSSettings{AccessKeyID: f.text("access_key_id"), Region: f.text("region"), Service: f.text("service")}
	default:
		return nil, nil
	}
	return json.Marshal(settings)
}

type credentialData struct {
	Credential api.Credential
	Form       *form
	Secrets    []secretField
}

func (p *Pages) credential(v *visit) error { return p.showCredential(v, prefilled()) }

func (p *Pages) showCredential(v *visit, f *form) error {
	c, err := v.ops.Credential(v.r.Context(), v.actor, v.r.PathValue("name"))
	if err != nil {
		return err
	}
	return v.showForm("credential", c.Name, "credentials", f, credentialData{Credential: c, Form: f, Secrets: secretFields(c.Kind, f)})
}

func (p *Pages) rotateCredential(v *visit) error {
	ctx, name := v.r.Context(), v.r.PathValue("name")
	f := newForm(v.r.PostForm)
	c, err := v.ops.Credential(ctx, v.actor, name)
	if err != nil {
		return err
	}
	values := f.secrets(c.Kind)
	if !f.Bad() {
		if _, err = v.ops.RotateCredential(ctx, v.actor, name, api.RotateCredential{Values: values}); err == nil {
			return v.to(localURL("credentials", name), "credential-rotated")
		}
		if err := f.take(err); err != nil {
			return err
		}
	}
	return p.showCredential(v, f)
}

func (p *Pages) deleteCredential(v *visit) error {
	if err := v.ops.DeleteCredential(v.r.Context(), v.actor, v.r.PathValue("name")); err != nil {
		return err
	}
	return v.to("/credentials", "credential-deleted")
}
