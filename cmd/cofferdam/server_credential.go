package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/credential"
	"github.com/cofferdam/cofferdam/internal/fault"
)

// credentialEitherWay is "cofferdam credential", of this machine or a server. What only this machine can do says so.
func (a *app) credentialEitherWay() *cobra.Command {
	cmd := newCredentialCommand(a)
	for _, sub := range cmd.Commands() {
		if sub.ValidArgsFunction != nil {
			sub.ValidArgsFunction = a.completeCredentials
		}
		switch sub.Name() {
		case "list":
			a.eitherWay(sub, a.listCredentialsThere)
		case "show":
			a.eitherWay(sub, a.showCredentialThere)
		case "add":
			a.eitherWay(sub, a.addCredentialThere)
		case "rotate":
			a.eitherWay(sub, a.rotateCredentialThere)
		case "remove":
			a.eitherWay(sub, a.removeCredentialThere)
		default:
			a.onlyHere(sub)
		}
	}
	return cmd
}

// completeCredentials completes names of credentials, where the command would look for them.
func (a *app) completeCredentials(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if r, err := a.server(boolFlag(cmd, "local")); err != nil || r == nil {
		return a.completeNames(cmd, args, typed)
	}
	return a.completeAt(func(ctx context.Context, r *remote) ([]cobra.Completion, error) {
		list, err := r.Credentials(ctx)
		var names []cobra.Completion
		for _, c := range list {
			names = append(names, c.Name)
		}
		return names, err
	})(cmd, args, typed)
}

func (a *app) listCredentialsThere(ctx context.Context, r *remote, cmd *cobra.Command, _ []string) error {
	list, err := r.Credentials(ctx)
	return show(a, cmd, append([]api.Credential{}, list...), err, a.printCredentialsThere)
}

func (a *app) printCredentialsThere(list []api.Credential) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(a.stderr, "cofferdam: there are no credentials; add one with: cofferdam credential add NAME --host HOST")
		return err
	}
	var rows [][]string
	for _, c := range list {
		changed := c.Created
		if !c.Rotated.IsZero() {
			changed = c.Rotated
		}
		rows = append(rows, []string{inert(c.Name, 63), inert(c.Kind, 30), inert(c.Header, 60), inert(conditionsThere(c), 80), since(changed), inert(strings.Join(c.UsedBy, " "), 80)})
	}
	return a.table([]string{"NAME", "KIND", "HEADER", "FOR", "CHANGED", "LENT BY"}, rows)
}

func conditionsThere(c api.Credential) string {
	return credential.Scope{Hosts: c.Hosts, Ports: c.Ports, Paths: c.Paths, Methods: c.Methods}.Words()
}

func (a *app) showCredentialThere(ctx context.Context, r *remote, cmd *cobra.Command, args []string) error {
	c, err := r.Credential(ctx, args[0])
	return show(a, cmd, c, err, a.printCredentialThere)
}

func (a *app) printCredentialThere(c api.Credential) error {
	rotated := ""
	if !c.Rotated.IsZero() {
		rotated = c.Rotated.Local().Format("2006-01-02 15:04")
	}
	return a.pairs([][2]string{
		{"name", c.Name}, {"kind", c.Kind}, {"for", conditionsThere(c)}, {"header", c.Header}, {"user", c.User}, {"value", c.Masked},
		{"lent by", strings.Join(c.UsedBy, " ")}, {"added", c.Created.Local().Format("2006-01-02 15:04")}, {"rotated", rotated},
	})
}

// addCredentialThere reads the same flags and the same secrets as for this machine; the server seals them.
func (a *app) addCredentialThere(ctx context.Context, r *remote, cmd *cobra.Command, args []string) error {
	f := addFlagsOf(cmd)
	m, err := f.meta(args[0], cmd.Flags().Changed)
	if err != nil {
		return err
	}
	if cmd.Flags().Changed("shape") {
		return fault.New(fault.Invalid, "--shape says nothing at a server").WithHint("leave it out: a placeholder there looks as the value begins")
	}
	in := api.NewCredential{
		Name: string(m.Name), Kind: string(m.Kind), Hosts: m.Scope.Hosts, Ports: m.Scope.Ports, Paths: m.Scope.Paths, Methods: m.Scope.Methods, Header: m.Header, User: m.User,
	}
	if cmd.Flags().Changed("prefix") {
		in.Prefix = &f.prefix
	}
	if in.Settings, err = settingsOf(m); err != nil {
		return err
	}
	if in.Values, err = a.valuesOf(ctx, m, f.files, false); err != nil {
		return err
	}
	c, err := r.CreateCredential(ctx, in)
	if err != nil {
		return err
	}
	if f.json {
		return a.writeJSON(c)
	}
	_, err = fmt.Fprintf(a.stderr, "cofferdam: added %s (%s) for %s; a policy lends it by its name\n", inert(c.Name, 63), inert(c.Kind, 30), inert(conditionsThere(c), 200))
	return err
}

// addFlagsOf reads the flags of "credential add" as they were typed.
func addFlagsOf(cmd *cobra.Command) addFlags {
	list := func(name string) []string {
		v, _ := cmd.Flags().GetStringArray(name) // a flag that is not there has no value
		return v
	}
	f := addFlags{
		kind: textFlag(cmd, "kind"), hosts: list("host"), ports: list("port"), paths: list("path"), methods: list("method"), files: list("from-file"),
		header: textFlag(cmd, "header"), prefix: textFlag(cmd, "prefix"), user: textFlag(cmd, "user"), shape: textFlag(cmd, "shape"),
		api: textFlag(cmd, "api"), appID: textFlag(cmd, "app-id"), installationID: textFlag(cmd, "installation-id"), repositories: list("repository"),
		tokenURL: textFlag(cmd, "token-url"), clientID: textFlag(cmd, "client-id"), clientAuth: textFlag(cmd, "client-auth"), scopes: list("scope"),
		audience: textFlag(cmd, "audience"), resource: textFlag(cmd, "resource"), subjectTokenType: textFlag(cmd, "subject-token-type"), requestedType: textFlag(cmd, "requested-token-type"),
		accessKeyID: textFlag(cmd, "access-key-id"), region: textFlag(cmd, "region"), service: textFlag(cmd, "service"), json: boolFlag(cmd, "json"),
	}
	f.permissions, _ = cmd.Flags().GetStringToString("permission") // likewise
	return f
}

// settingsOf is what a kind needs beyond its conditions; nil for kinds that need nothing.
func settingsOf(m credential.Meta) (json.RawMessage, error) {
	switch {
	case m.GitHub != nil:
		return json.Marshal(m.GitHub)
	case m.OAuth != nil:
		return json.Marshal(m.OAuth)
	case m.AWS != nil:
		return json.Marshal(m.AWS)
	}
	return nil, nil
}

// valuesOf reads the secrets of a credential, to be sent.
func (a *app) valuesOf(ctx context.Context, m credential.Meta, files []string, filesOnly bool) (map[string]string, error) {
	secrets, err := a.readSecrets(ctx, m, files, filesOnly)
	if err != nil {
		return nil, err
	}
	values := map[string]string{}
	for field, v := range secrets {
		values[string(field)] = string(v.Reveal())
		v.Wipe()
	}
	return values, nil
}

func (a *app) rotateCredentialThere(ctx context.Context, r *remote, cmd *cobra.Command, args []string) error {
	c, err := r.Credential(ctx, args[0])
	if err != nil {
		return err
	}
	m := credential.Meta{Name: credential.Name(c.Name)}
	if m.Kind, err = credential.ParseKind(c.Kind); err != nil {
		return fault.New(fault.Unsupported, "this program does not know credentials of the kind %.40q", c.Kind).WithHint("install the server's version of it")
	}
	files, _ := cmd.Flags().GetStringArray("from-file") // the flag exists
	values, err := a.valuesOf(ctx, m, files, len(files) > 0)
	if err != nil {
		return err
	}
	if _, err := r.RotateCredential(ctx, c.Name, api.RotateCredential{Values: values}); err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.stderr, "cofferdam: rotated %s\n", inert(c.Name, 63))
	return err
}

func (a *app) removeCredentialThere(ctx context.Context, r *remote, _ *cobra.Command, args []string) error {
	if err := r.DeleteCredential(ctx, args[0]); err != nil {
		return err
	}
	_, err := fmt.Fprintf(a.stderr, "cofferdam: removed %s; revoke it also where it came from\n", inert(args[0], 63))
	return err
}
