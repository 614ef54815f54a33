package main

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/internal/credential"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/seal"
)

func newCredentialEditCommand(a *app) *cobra.Command {
	var f editFlags
	cmd := &cobra.Command{
		Use:   "edit NAME",
		Short: "Change what a credential is for, without giving its value again",
		Long: `Change the conditions of a credential, or how it is sent. The flags are those of "credential add": what is not named stays, and a list that is named is replaced whole.
--reset takes a flag's name, and makes it what it is if the flag is left out: --reset path allows all paths. The value and the kind stay.

Sandboxes that run hold their next request to the new conditions. Requests that are under way outside of them are cut.`,
		Example: `  cofferdam credential edit github --path /repos/acme/site/ --method GET --method HEAD
  cofferdam credential edit github --reset path --reset method     every request to its hosts`,
		Args: oneName, ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			store, name, err := a.named(args[0])
			if err != nil {
				return err
			}
			return a.editCredential(cmd, store, name, f)
		},
	}
	f.registerConditions(cmd)
	cmd.Flags().StringArrayVar(&f.reset, "reset", nil, "make this flag what it is if it is left out, such as path; may be repeated")
	_ = cmd.RegisterFlagCompletionFunc("reset", cobra.FixedCompletions(f.conditions(), cobra.ShellCompDirectiveNoFileComp)) // the flag exists
	return cmd
}

// editFlags are the flags of "credential edit" as typed.
type editFlags struct {
	addFlags
	reset []string
}

func (a *app) editCredential(cmd *cobra.Command, store *credential.Store, name credential.Name, f editFlags) error {
	ctx := cmd.Context()
	given, err := f.named(cmd)
	if err != nil {
		return err
	}
	before, err := store.Get(ctx, name)
	if err != nil {
		return err
	}
	after, err := f.edit(before, given)
	if err != nil {
		return err
	}
	if after, err = credential.Normalised(after); err != nil { // before anything is recorded
		return err
	}
	if err := a.recordCredential(ctx, string(name), "edit, now for "+after.Scope.Words()); err != nil {
		return err
	}
	err = a.vault().Use(ctx, func(ring *seal.Keyring) error {
		return store.Edit(ctx, ring, name, func(m credential.Meta) (credential.Meta, error) { return f.edit(m, given) })
	})
	if err != nil {
		return err
	}
	if after, err = store.Get(ctx, name); err != nil {
		return err
	}
	if f.json {
		return a.writeJSON(after)
	}
	_, err = fmt.Fprintf(a.stderr, "cofferdam: %s is for %s now\n", name, after.Scope.Words())
	return err
}

// named reports which conditions are to be changed. An empty value is none: what an unset variable of a script leaves behind must not widen anything.
func (f *editFlags) named(cmd *cobra.Command) (func(string) bool, error) {
	given := func(flag string) bool { return cmd.Flags().Changed(flag) || slices.Contains(f.reset, flag) }
	for _, flag := range f.reset {
		if !slices.Contains(f.conditions(), flag) {
			return nil, fault.New(fault.Invalid, "--reset %.40q is no flag of a condition", flag).WithHint("write its name without hyphens before it, such as --reset path")
		}
		if cmd.Flags().Changed(flag) {
			return nil, fault.New(fault.Invalid, "--%s is given, and reset as well", flag).WithHint("leave out one of the two")
		}
	}
	for _, flag := range f.conditions() {
		if v := cmd.Flags().Lookup(flag).Value.String(); cmd.Flags().Changed(flag) && (v == "" || v == "[]" || v == "[\"\"]") {
			return nil, fault.New(fault.Invalid, "--%s is empty", flag).WithHint("if it is to be what it is without the flag: --reset %s", flag)
		}
	}
	if !slices.ContainsFunc(f.conditions(), given) {
		return nil, fault.New(fault.Invalid, "there is nothing to change").WithHint("name what is to be another, such as --host or --path; see: cofferdam credential edit --help")
	}
	return given, nil
}

// edit returns a description with what was given in the place of what stood there.
func (f *editFlags) edit(m credential.Meta, given func(string) bool) (credential.Meta, error) {
	if err := f.foreign(m.Kind, given); err != nil {
		return m, err
	}
	typed, err := f.scope()
	if err != nil {
		return m, err
	}
	list := func(flag string, now *[]string, typed []string) {
		if given(flag) {
			*now = typed
		}
	}
	text := func(flag string, now *string, typed string) {
		if given(flag) {
			*now = typed
		}
	}
	list("host", &m.Scope.Hosts, typed.Hosts)
	list("path", &m.Scope.Paths, typed.Paths)
	list("method", &m.Scope.Methods, typed.Methods)
	if given("port") {
		m.Scope.Ports = typed.Ports
	}
	text("shape", (*string)(&m.Shape), f.shape)
	if given("header") || given("user") { // the old prefix belonged to the old way
		m.Prefix = ""
	}
	if given("user") && m.Header == "Authorization" {
		m.Header = "" // with the prefix that goes with it, if any
	}
	text("header", &m.Header, f.header)
	text("prefix", &m.Prefix, spaced(f.prefix))
	text("user", &m.User, f.user)
	f.editSettings(&m, list, text, given)
	return m, nil
}

// editSettings changes what one kind has. Settings are copied, since other descriptions share them.
func (f *editFlags) editSettings(m *credential.Meta, list func(string, *[]string, []string), text func(string, *string, string), given func(string) bool) {
	if m.GitHub != nil {
		g := *m.GitHub
		text("app-id", &g.AppID, f.appID)
		text("installation-id", &g.InstallationID, f.installationID)
		text("api", &g.API, f.api)
		list("repository", &g.Repositories, f.repositories)
		if given("permission") {
			g.Permissions = f.permissions
		}
		m.GitHub = &g
	}
	if m.OAuth != nil {
		o := *m.OAuth
		text("token-url", &o.TokenURL, f.tokenURL)
		text("client-id", &o.ClientID, f.clientID)
		text("client-auth", (*string)(&o.ClientAuth), string(f.authentication()))
		list("scope", &o.Scopes, f.scopes)
		text("audience", &o.Audience, f.audience)
		text("resource", &o.Resource, f.resource)
		text("subject-token-type", &o.SubjectTokenType, f.subjectTokenType)
		text("requested-token-type", &o.RequestedType, f.requestedType)
		m.OAuth = &o
	}
	if m.AWS != nil {
		s := *m.AWS
		text("access-key-id", &s.AccessKeyID, f.accessKeyID)
		text("region", &s.Region, f.region)
		text("service", &s.Service, f.service)
		m.AWS = &s
	}
}
