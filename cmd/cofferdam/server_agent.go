package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/client"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// newAgentCommand is "cofferdam agent".
func (a *app) newAgentCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Manage agents at a server: programs that are not trusted, each under a policy of its own",
		Long: `An agent is an AI program, or any other that is not trusted, under a policy of its own. Its sandboxes may do what that policy says, and nothing else.

  cofferdam agent create builder              with a policy that allows nothing yet
  cofferdam run --agent builder -- make       what it is denied lands in the inbox: cofferdam review
  cofferdam agent suspend builder             ends its sandboxes, and it gets no more`,
	}
	cmd.AddCommand(a.newAgentListCommand(), a.newAgentCreateCommand(), a.newAgentShowCommand(), a.newAgentSetCommand(), a.newAgentDeleteCommand(),
		a.newAgentSuspendCommand("suspend", "End the agent's sandboxes, and let it have no more", true),
		a.newAgentSuspendCommand("resume", "Let a suspended agent have sandboxes again", false))
	return cmd
}

func (a *app) newAgentListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List agents", Args: cobra.NoArgs,
		RunE: a.there(func(ctx context.Context, r *remote, cmd *cobra.Command, _ []string) error {
			list, err := gather(client.All(ctx, r.Agents))
			return show(a, cmd, list, err, a.printAgents)
		}),
	}
	jsonFlag(cmd)
	return cmd
}

func (a *app) printAgents(list []api.Agent) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(a.stderr, "cofferdam: there are no agents; make one with: cofferdam agent create NAME")
		return err
	}
	var rows [][]string
	for _, one := range list {
		state := "ready"
		if one.Suspended {
			state = "suspended"
		}
		rows = append(rows, []string{inert(one.Name, 63), state, strconv.Itoa(one.Running), strconv.Itoa(one.Denials), inert(one.PolicyName, 63), one.Isolation, inert(one.Description, 60)})
	}
	return a.table([]string{"NAME", "STATE", "RUNNING", "DENIALS", "POLICY", "ISOLATION", "DESCRIPTION"}, rows)
}

// agentFlags say what an agent is like.
type agentFlags struct {
	description, policy, policyFile, isolation string
	profiles, env                              []string
}

func (f *agentFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.description, "description", "", "what it is for")
	flags.StringVar(&f.policy, "policy", "", "the policy that is in force for it, a `NAME`")
	flags.StringVar(&f.isolation, "isolation", "", "how strong the wall is at least, a `LEVEL`: container, vm-emulated, gvisor or vm")
	flags.StringArrayVar(&f.profiles, "profile", nil, "an access profile for Git, by identifier; may be repeated")
	flags.StringArrayVar(&f.env, "env", nil, "set `NAME=VALUE` in its sandboxes; may be repeated")
	jsonFlag(cmd)
	_ = cmd.RegisterFlagCompletionFunc("isolation", completeLevels) // the flag exists
}

// environment parses --env. Nothing is copied from here: the agent is not only this person's.
func (f *agentFlags) environment() (map[string]string, error) {
	env := map[string]string{}
	for _, text := range f.env {
		name, value, err := policy.ParseVariable(text)
		if err != nil {
			return nil, flagError("env", err)
		}
		env[name] = value
	}
	return env, nil
}

func (a *app) newAgentCreateCommand() *cobra.Command {
	var f agentFlags
	cmd := &cobra.Command{
		Use:   "create NAME [-- COMMAND [ARG…]]",
		Short: "Make an agent; without a policy it gets one of its own that allows nothing",
		Example: `  cofferdam agent create builder
  cofferdam agent create reviewer --policy read-only -- my-agent --task review`,
		Args: cobra.MinimumNArgs(1),
		RunE: a.there(func(ctx context.Context, r *remote, cmd *cobra.Command, args []string) error {
			in := api.NewAgent{Name: args[0], Description: f.description, Policy: f.policy, Profiles: f.profiles, Isolation: f.isolation, Command: args[1:]}
			var err error
			if in.Environment, err = f.environment(); err != nil {
				return err
			}
			if f.policyFile != "" {
				if in.PolicyText, err = a.policyText(f.policyFile); err != nil {
					return err
				}
			}
			made, err := r.CreateAgent(ctx, in)
			return show(a, cmd, made, err, func(one api.Agent) error {
				_, err := fmt.Fprintf(a.stderr, "cofferdam: made the agent %s under the policy %s; try it with: cofferdam run --agent %s -- COMMAND\n", inert(one.Name, 63), inert(one.PolicyName, 63), inert(one.Name, 63))
				return err
			})
		}),
	}
	f.register(cmd)
	cmd.Flags().StringVar(&f.policyFile, "policy-file", "", "make a policy for it from `FILE`; - is standard input")
	cmd.MarkFlagsMutuallyExclusive("policy", "policy-file")
	return cmd
}

func (a *app) newAgentShowCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "show NAME", Short: "Show an agent", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeAt(agentCompletions),
		RunE: a.there(func(ctx context.Context, r *remote, cmd *cobra.Command, args []string) error {
			one, err := r.Agent(ctx, args[0])
			return show(a, cmd, one, err, a.printAgent)
		}),
	}
	jsonFlag(cmd)
	return cmd
}

func (a *app) printAgent(one api.Agent) error {
	state := "ready"
	if one.Suspended {
		state = "suspended: it gets no sandboxes"
	}
	var env []string
	for _, name := range slices.Sorted(maps.Keys(one.Environment)) {
		env = append(env, name+"="+one.Environment[name])
	}
	return a.pairs([][2]string{
		{"name", one.Name}, {"id", one.ID}, {"description", one.Description}, {"state", state}, {"policy", one.PolicyName}, {"profiles", strings.Join(one.Profiles, " ")},
		{"isolation", one.Isolation}, {"command", strings.Join(one.Command, " ")}, {"environment", strings.Join(env, " ")},
		{"running", plural(one.Running, "sandbox", "sandboxes")}, {"denials", plural(one.Denials, "group open", "groups open")},
		{"made", one.Created.Local().Format("2006-01-02 15:04")},
	})
}

func (a *app) newAgentSetCommand() *cobra.Command {
	var f agentFlags
	var name string
	cmd := &cobra.Command{
		Use:   "set NAME [-- COMMAND [ARG…]]",
		Short: "Change an agent; what is not named stays",
		Long: `Change an agent. What no flag names stays as it is; --env and --profile replace all of theirs, and one that is empty leaves none.
Another policy is in force in running sandboxes at once.`,
		Args: cobra.MinimumNArgs(1), ValidArgsFunction: a.completeAt(agentCompletions),
		RunE: a.there(func(ctx context.Context, r *remote, cmd *cobra.Command, args []string) error {
			change, err := f.change(cmd, name, args[1:])
			if err != nil {
				return err
			}
			one, err := r.Agent(ctx, args[0])
			if err != nil {
				return err
			}
			one, err = r.ChangeAgent(ctx, one.ID, one.Version, change)
			return show(a, cmd, one, err, a.printAgent)
		}),
	}
	f.register(cmd)
	cmd.Flags().StringVar(&name, "name", "", "another `NAME` for it")
	return cmd
}

// change is what the flags that were given change.
func (f *agentFlags) change(cmd *cobra.Command, name string, command []string) (api.AgentChange, error) {
	var c api.AgentChange
	given := cmd.Flags().Changed
	for flag, to := range map[string]struct {
		text string
		into **string
	}{"name": {name, &c.Name}, "description": {f.description, &c.Description}, "policy": {f.policy, &c.Policy}, "isolation": {f.isolation, &c.Isolation}} {
		if given(flag) {
			*to.into = &to.text
		}
	}
	if given("profile") {
		profiles := slices.DeleteFunc(slices.Clone(f.profiles), func(s string) bool { return s == "" })
		c.Profiles = &profiles
	}
	if given("env") {
		f.env = slices.DeleteFunc(f.env, func(s string) bool { return s == "" })
		env, err := f.environment()
		if err != nil {
			return c, err
		}
		c.Environment = &env
	}
	if len(command) > 0 {
		c.Command = &command
	}
	if c == (api.AgentChange{}) {
		return c, fault.New(fault.Invalid, "nothing is to be changed").WithHint("see: cofferdam agent set --help")
	}
	return c, nil
}

func (a *app) newAgentSuspendCommand(verb, short string, suspended bool) *cobra.Command {
	return &cobra.Command{
		Use: verb + " NAME", Short: short, Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeAt(agentCompletions),
		RunE: a.there(func(ctx context.Context, r *remote, _ *cobra.Command, args []string) error {
			one, err := r.Agent(ctx, args[0])
			if err != nil {
				return err
			}
			if _, err := r.ChangeAgent(ctx, one.ID, 0, api.AgentChange{Suspended: &suspended}); err != nil {
				return err
			}
			text := "may have sandboxes again"
			if suspended {
				text = "is suspended; its sandboxes end"
			}
			_, err = fmt.Fprintf(a.stderr, "cofferdam: the agent %s %s\n", inert(one.Name, 63), text)
			return err
		}),
	}
}

func (a *app) newAgentDeleteCommand() *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME", Aliases: []string{"rm"}, Short: "Remove an agent that has no sandbox; its record stays", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeAt(agentCompletions),
		RunE: a.there(func(ctx context.Context, r *remote, _ *cobra.Command, args []string) error {
			one, err := r.Agent(ctx, args[0])
			if err != nil {
				return err
			}
			if err := r.DeleteAgent(ctx, one.ID); err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.stderr, "cofferdam: removed the agent %s\n", inert(one.Name, 63))
			return err
		}),
	}
}
