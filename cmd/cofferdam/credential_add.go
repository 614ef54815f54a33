package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/internal/credential"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/netname"
	"github.com/cofferdam/cofferdam/internal/seal"
)

// addFlags are the flags of "credential add" as typed.
type addFlags struct {
	kind                                                string
	hosts, ports, paths, methods                        []string
	header, prefix, user, shape                         string
	files                                               []string
	api, appID, installationID                          string
	repositories                                        []string
	permissions                                         map[string]string
	tokenURL, clientID, clientAuth                      string
	scopes                                              []string
	audience, resource, subjectTokenType, requestedType string
	accessKeyID, region, service                        string
	json                                                bool
}

func newCredentialAddCommand(a *app) *cobra.Command {
	var f addFlags
	cmd := &cobra.Command{
		Use:   "add NAME --host HOST",
		Short: "Add a credential; its value is read from a prompt, standard input or a file",
		Long: `Add a credential. Its value is read from standard input, from a hidden prompt if that is a terminal, or from a file. It is never an argument.
The flags say where it may be used; a policy can narrow that, and nothing can widen it.

Kinds: static (a token in a header), basic (user and password), github-app (installation tokens, minted with the app's key), oauth2-client,
oauth2-refresh, token-exchange (access tokens from a token endpoint), aws (requests signed with Signature Version 4).`,
		Example: `  cofferdam credential add github --host api.github.com < token
  cofferdam credential add registry --kind basic --user ci --host registry.example.com --path /acme/ --method GET --method HEAD
  cofferdam credential add bot --kind github-app --app-id 1234 --installation-id 5678 --repository site --host api.github.com --from-file app.pem
  cofferdam credential add api --kind oauth2-client --token-url https://login.example.com/token --client-id agent --host api.example.com
  cofferdam credential add bucket --kind aws --access-key-id AKIA... --region eu-central-1 --service s3 --host '*.s3.eu-central-1.amazonaws.com'`,
		Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := f.meta(args[0], cmd.Flags().Changed)
			if err != nil {
				return err
			}
			return a.addCredential(cmd, m, f)
		},
	}
	f.register(cmd)
	return cmd
}

func (f *addFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.kind, "kind", "static", "static, basic, github-app, oauth2-client, oauth2-refresh, token-exchange or aws")
	flags.StringArrayVar(&f.files, "from-file", nil, "read a secret from `[FIELD=]FILE`; may be repeated")
	_ = cmd.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions(kindNames(), cobra.ShellCompDirectiveNoFileComp)) // the flag exists
	f.registerConditions(cmd)
}

// conditions names the flags of registerConditions that say something about a credential.
func (f *addFlags) conditions() []string {
	return []string{"host", "port", "path", "method", "header", "prefix", "user", "shape", "app-id", "installation-id", "api", "repository", "permission", "token-url", "client-id",
		"client-auth", "scope", "audience", "resource", "subject-token-type", "requested-token-type", "access-key-id", "region", "service"}
}

// registerConditions registers all that can be said about a credential but its kind and its value.
func (f *addFlags) registerConditions(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringArrayVar(&f.hosts, "host", nil, "a host that it may be sent to, exact or as *.example.com; may be repeated")
	flags.StringArrayVar(&f.ports, "port", nil, "a port there (443)")
	flags.StringArrayVar(&f.paths, "path", nil, "a path there, with a slash at its end for all below it (all)")
	flags.StringArrayVar(&f.methods, "method", nil, "a method, such as GET (all)")
	flags.StringVar(&f.header, "header", "", "the header that it is sent in (Authorization)")
	flags.StringVar(&f.prefix, "prefix", "", "what stands before it there (\"Bearer \"; nothing if --header is given)")
	flags.StringVar(&f.user, "user", "", "send it as the password of this user; x-access-token for Git at GitHub")
	flags.StringVar(&f.shape, "shape", "", "what its placeholder looks like (as the value begins)")
	flags.StringVar(&f.appID, "app-id", "", "github-app: the app's id or client id")
	flags.StringVar(&f.installationID, "installation-id", "", "github-app: the installation's id")
	flags.StringVar(&f.api, "api", "", "github-app: the API's address (https://api.github.com)")
	flags.StringArrayVar(&f.repositories, "repository", nil, "github-app: limit tokens to this repository")
	flags.StringToStringVar(&f.permissions, "permission", nil, "github-app: limit tokens to this permission, such as contents=read")
	flags.StringVar(&f.tokenURL, "token-url", "", "oauth2, token-exchange: the token endpoint")
	flags.StringVar(&f.clientID, "client-id", "", "oauth2, token-exchange: the client's id")
	flags.StringVar(&f.clientAuth, "client-auth", "header", "oauth2, token-exchange: send the client's secret in the header or in the body")
	flags.StringArrayVar(&f.scopes, "scope", nil, "oauth2, token-exchange: a scope to ask for")
	flags.StringVar(&f.audience, "audience", "", "oauth2, token-exchange: the audience to ask for")
	flags.StringVar(&f.resource, "resource", "", "oauth2, token-exchange: the resource to ask for")
	flags.StringVar(&f.subjectTokenType, "subject-token-type", "", "token-exchange: type of the token that is exchanged (urn:ietf:params:oauth:token-type:jwt)")
	flags.StringVar(&f.requestedType, "requested-token-type", "", "token-exchange: type of the token that is asked for")
	flags.StringVar(&f.accessKeyID, "access-key-id", "", "aws: the access key's id")
	flags.StringVar(&f.region, "region", "", "aws: the region (what the request says)")
	flags.StringVar(&f.service, "service", "", "aws: the service, such as s3 (what the request says)")
	flags.BoolVar(&f.json, "json", false, "print what is stored then, without secrets, as JSON")
	for flag, choices := range map[string][]cobra.Completion{
		"shape": shapeChoices(), "client-auth": {"header", "body"}, "method": {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"},
	} {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(choices, cobra.ShellCompDirectiveNoFileComp)) // the flag exists
	}
}

func kindNames() (list []cobra.Completion) {
	for _, k := range credential.Kinds() {
		list = append(list, string(k))
	}
	return list
}

func shapeChoices() (list []cobra.Completion) {
	for _, s := range credential.Shapes() {
		list = append(list, string(s))
	}
	return list
}

// meta turns flags into a description. The secrets are no part of it.
func (f *addFlags) meta(name string, given func(string) bool) (credential.Meta, error) {
	var m credential.Meta
	var err error
	if m.Name, err = credential.ParseName(name); err != nil {
		return m, err
	}
	if m.Kind, err = credential.ParseKind(f.kind); err != nil {
		return m, flagError("kind", err)
	}
	if m.Scope, err = f.scope(); err != nil {
		return m, err
	}
	m.Header, m.Prefix, m.User, m.Shape = f.header, spaced(f.prefix), f.user, credential.Shape(f.shape)
	if err := f.foreign(m.Kind, given); err != nil {
		return m, err
	}
	f.settings(&m)
	return credential.Normalised(m)
}

// scope reads the conditions.
func (f *addFlags) scope() (credential.Scope, error) {
	s := credential.Scope{Hosts: f.hosts, Paths: f.paths, Methods: f.methods}
	for _, text := range f.ports {
		port, err := netname.ParsePort(text)
		if err != nil {
			return s, flagError("port", err)
		}
		s.Ports = append(s.Ports, port)
	}
	return s, nil
}

// authentication is how the client proves itself. What is neither is refused where the description is checked.
func (f *addFlags) authentication() credential.ClientAuth {
	if f.clientAuth == "header" {
		return credential.ClientAuthHeader
	}
	return credential.ClientAuth(f.clientAuth)
}

// spaced adds the space that belongs after a scheme's name.
func spaced(prefix string) string {
	if prefix != "" && strings.Trim(prefix, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") == "" {
		return prefix + " "
	}
	return prefix
}

func (f *addFlags) settings(m *credential.Meta) {
	switch m.Kind {
	case credential.GitHubApp:
		m.GitHub = &credential.GitHubSettings{API: f.api, AppID: f.appID, InstallationID: f.installationID, Repositories: f.repositories, Permissions: f.permissions}
	case credential.OAuth2Client, credential.OAuth2Refresh, credential.TokenExchange:
		m.OAuth = &credential.OAuthSettings{TokenURL: f.tokenURL, ClientID: f.clientID, ClientAuth: f.authentication(), Scopes: f.scopes,
			Audience: f.audience, Resource: f.resource, SubjectTokenType: f.subjectTokenType, RequestedType: f.requestedType}
	case credential.AWS:
		m.AWS = &credential.AWSSettings{AccessKeyID: f.accessKeyID, Region: f.region, Service: f.service}
	}
}

// foreign refuses flags of other kinds: ignored, they would promise something.
func (f *addFlags) foreign(k credential.Kind, given func(string) bool) error {
	oauth := []credential.Kind{credential.OAuth2Client, credential.OAuth2Refresh, credential.TokenExchange}
	belongs := []struct {
		kinds []credential.Kind
		flags []string
	}{
		{[]credential.Kind{credential.GitHubApp}, []string{"app-id", "installation-id", "api", "repository", "permission"}},
		{oauth, []string{"token-url", "client-id", "client-auth", "scope", "audience", "resource"}},
		{[]credential.Kind{credential.TokenExchange}, []string{"subject-token-type", "requested-token-type"}},
		{[]credential.Kind{credential.AWS}, []string{"access-key-id", "region", "service"}},
	}
	for _, b := range belongs {
		for _, flag := range b.flags {
			fits := false
			for _, one := range b.kinds {
				fits = fits || one == k
			}
			if given(flag) && !fits {
				return fault.New(fault.Invalid, "--%s says nothing about a credential of kind %s", flag, k).WithHint("leave it out, or choose another --kind")
			}
		}
	}
	return nil
}

func (a *app) addCredential(cmd *cobra.Command, m credential.Meta, f addFlags) error {
	store, err := a.credentials()
	if err != nil {
		return err
	}
	if _, err := store.Get(cmd.Context(), m.Name); err == nil {
		return fault.New(fault.Conflict, "there is a credential %s", m.Name).WithHint("give it a new value with: cofferdam credential rotate %s; or choose another name", m.Name)
	}
	secrets, err := a.readSecrets(cmd.Context(), m, f.files, false)
	if err != nil {
		return err
	}
	if err := a.recordCredential(cmd.Context(), string(m.Name), "add "+string(m.Kind)+" for "+m.Scope.Words()); err != nil {
		return err
	}
	if err := a.withKeys(cmd.Context(), store, func(ring *seal.Keyring) error { return store.Add(ring, m, secrets) }); err != nil {
		return err
	}
	if m, err = store.Get(cmd.Context(), m.Name); err != nil {
		return err
	}
	if f.json {
		return a.writeJSON(m)
	}
	_, err = fmt.Fprintf(a.stderr, "cofferdam: added %s (%s) for %s; try it with: cofferdam credential test %s\n", m.Name, m.Kind, m.Scope.Words(), m.Name)
	return err
}
