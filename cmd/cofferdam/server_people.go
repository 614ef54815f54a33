package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/client"
	"github.com/cofferdam/cofferdam/internal/fault"
)

// gather takes all of a list, never nil.
func gather[T any](all iter.Seq2[T, error]) ([]T, error) {
	list := []T{}
	for one, err := range all {
		if err != nil {
			return nil, err
		}
		list = append(list, one)
	}
	return list, nil
}

// newUserCommand is "cofferdam user".
func (a *app) newUserCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "user", Short: "List and invite the people of the tenant"}
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List users", Args: cobra.NoArgs,
		RunE: a.there(func(ctx context.Context, r *remote, cmd *cobra.Command, _ []string) error {
			users, err := gather(client.All(ctx, r.Users))
			return show(a, cmd, users, err, a.printUsers)
		}),
	}
	jsonFlag(list)
	cmd.AddCommand(list, a.newUserInviteCommand())
	return cmd
}

func (a *app) printUsers(list []api.User) error {
	var rows [][]string
	for _, u := range list {
		seen := ""
		if !u.LastSeen.IsZero() {
			seen = since(u.LastSeen)
		}
		state := "active"
		if u.Disabled {
			state = "disabled"
		}
		rows = append(rows, []string{inert(u.Email, 100), inert(u.Name, 60), string(u.Role), state, seen})
	}
	return a.table([]string{"EMAIL", "NAME", "ROLE", "STATE", "SEEN"}, rows)
}

func (a *app) newUserInviteCommand() *cobra.Command {
	var role, name string
	var roles []cobra.Completion
	for _, r := range api.Roles() {
		roles = append(roles, string(r))
	}
	cmd := &cobra.Command{
		Use:     "invite EMAIL --role ROLE",
		Short:   "Invite a person, who sets a password by the link that is printed",
		Long:    "Invite a person, who sets a password by the link that is printed. A token cannot do that, so that a stolen one makes nobody: you are asked for your password.",
		Example: "  cofferdam user invite ada@example.com --role developer",
		Args:    cobra.ExactArgs(1),
		PreRunE: func(*cobra.Command, []string) error {
			if !slices.Contains(roles, role) {
				return fault.New(fault.Invalid, "--role %.40q is none", role).WithHint("write one of: %s", strings.Join(roles, ", "))
			}
			return nil
		},
		RunE: a.inPerson(func(ctx context.Context, v *visit, cmd *cobra.Command, args []string) error {
			made, err := v.CreateUser(ctx, api.NewUser{Email: args[0], Name: name, Role: api.Role(role)})
			return show(a, cmd, made, err, a.printInvitation)
		}),
	}
	cmd.Flags().StringVar(&role, "role", string(api.Developer), "what the person may do: viewer, developer, reviewer or administrator")
	cmd.Flags().StringVar(&name, "name", "", "the person's name")
	jsonFlag(cmd)
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions(roles, cobra.ShellCompDirectiveNoFileComp)) // the flag exists
	return cmd
}

func (a *app) printInvitation(made api.Invitation) error {
	_, err := fmt.Fprintf(a.stdout, "%s\n", inert(made.Link, 2000))
	fmt.Fprintf(a.stderr, "cofferdam: hand this link to %s, by a way that nobody else reads; it is good once, until %s\n", inert(made.User.Email, 100), made.Expires.Local().Format("2006-01-02 15:04"))
	return err
}

// newTokenCommand is "cofferdam token". A token cannot make others, so that a stolen one does not multiply: this asks for the password.
func (a *app) newTokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "List, make and revoke your API tokens",
		Long:  "List, make and revoke your API tokens. A token cannot do that, so that a stolen one does not multiply: you are asked for your password.",
	}
	cmd.AddCommand(a.newTokenListCommand(), a.newTokenCreateCommand(), a.newTokenRevokeCommand())
	return cmd
}

// inPerson does something in a sign-in by password.
func (a *app) inPerson(do func(ctx context.Context, v *visit, cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return a.there(func(ctx context.Context, r *remote, cmd *cobra.Command, args []string) error {
		v, err := a.signIn(ctx, r.account, r.account.User)
		if err != nil {
			return err
		}
		defer v.leave(ctx)
		return do(ctx, v, cmd, args)
	})
}

func (a *app) newTokenListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List your tokens", Args: cobra.NoArgs,
		RunE: a.inPerson(func(ctx context.Context, v *visit, cmd *cobra.Command, _ []string) error {
			list, err := v.Tokens(ctx)
			return show(a, cmd, list, err, a.printTokens)
		}),
	}
	jsonFlag(cmd)
	return cmd
}

func (a *app) printTokens(list []api.Token) error {
	var rows [][]string
	for _, t := range list {
		used := "never"
		if !t.Used.IsZero() {
			used = since(t.Used)
		}
		rows = append(rows, []string{t.ID, inert(t.Name, 60), used, t.Expires.Local().Format(time.DateOnly), inert(strings.Join(t.Scopes, " "), 120)})
	}
	return a.table([]string{"ID", "NAME", "USED", "ENDS", "MAY"}, rows)
}

func (a *app) newTokenCreateCommand() *cobra.Command {
	var scopes []string
	var life string
	cmd := &cobra.Command{
		Use:     "create NAME --scope SCOPE",
		Short:   "Make a token and print it, once",
		Example: "  cofferdam token create ci --scope sandboxes:write --scope sandboxes:read --expires 90d > token",
		Args:    cobra.ExactArgs(1),
		RunE: a.inPerson(func(ctx context.Context, v *visit, cmd *cobra.Command, args []string) error {
			in := api.NewToken{Name: args[0], Scopes: scopes}
			if life != "" {
				d, err := parseSpan("--expires", life)
				if err != nil {
					return err
				}
				in.Seconds = int64(d / time.Second)
			}
			if len(scopes) == 0 {
				me, err := v.Me(ctx)
				return errors.Join(fault.New(fault.Invalid, "a token needs at least one scope").WithHint("write --scope for each of what it is to do; yours are %s", strings.Join(me.Scopes, " ")), err)
			}
			made, err := v.CreateToken(ctx, in)
			return show(a, cmd, made, err, a.printMadeToken)
		}),
	}
	cmd.Flags().StringArrayVar(&scopes, "scope", nil, "one thing that it may do, such as sandboxes:write; may be repeated")
	cmd.Flags().StringVar(&life, "expires", "", "how long it is good for, such as 12h or 90d (30d)")
	jsonFlag(cmd)
	return cmd
}

func (a *app) printMadeToken(made api.Token) error {
	if _, err := io.WriteString(a.stdout, made.Secret+"\n"); err != nil {
		return err
	}
	_, err := fmt.Fprintf(a.stderr, "cofferdam: made the token %s; it is not shown again, and good until %s\n", made.ID, made.Expires.Local().Format(time.DateOnly))
	return err
}

func (a *app) newTokenRevokeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "revoke ID", Short: "Revoke a token; whoever has it is out at once", Args: cobra.ExactArgs(1),
		RunE: a.inPerson(func(ctx context.Context, v *visit, _ *cobra.Command, args []string) error {
			if err := v.RevokeToken(ctx, args[0]); err != nil {
				return err
			}
			_, err := fmt.Fprintf(a.stderr, "cofferdam: revoked the token %s\n", inert(args[0], 80))
			return err
		}),
	}
}

// parseSpan reads a positive duration, with d for days.
func parseSpan(flag, text string) (time.Duration, error) {
	var d time.Duration
	var err error
	if days, ok := strings.CutSuffix(text, "d"); ok {
		var n int
		if n, err = strconv.Atoi(days); err == nil && n > 36500 {
			err = errors.New("too long")
		}
		d = time.Duration(n) * 24 * time.Hour
	} else {
		d, err = time.ParseDuration(text)
	}
	if err != nil || d < time.Second {
		return 0, fault.New(fault.Invalid, "%s %.20q is no length of time", flag, text).WithHint("write something like 90m, 12h or 30d")
	}
	return d, nil
}
