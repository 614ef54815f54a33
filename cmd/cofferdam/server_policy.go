package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/client"
	"github.com/cofferdam/cofferdam/internal/fault"
)

// pageOf asks for the first entries of a list.
func pageOf(n int) client.Page { return client.Page{Limit: n} }

// policyEitherWay is "cofferdam policy": files are of this machine, names are of a server's policies.
func (a *app) policyEitherWay() *cobra.Command {
	cmd := newPolicyCommand(a)
	cmd.Short = "Write, check and explain policies: files here, and those of a server by name"
	cmd.Long += `

At a server (cofferdam login), policies have names; agent:NAME is all that is in force for an agent:

  cofferdam policy list | show NAME | edit NAME
  cofferdam policy set NAME FILE               a new version, in force within a second
  cofferdam policy replay NAME FILE            what FILE would have decided about what is on record
  cofferdam policy explain agent:NAME HOST:PORT`
	for _, sub := range cmd.Commands() {
		switch sub.Name() {
		case "check":
			sub.Use = "check FILE|NAME..."
			a.namedPolicy(sub, func(args []string) []string { return args }, a.checkThere)
		case "explain":
			sub.Use = strings.Replace(sub.Use, "FILE ", "FILE|NAME|agent:NAME ", 1)
			sub.Flags().String("method", "", "at a server: the `METHOD` of a request to a URL")
			a.namedPolicy(sub, func(args []string) []string { return args[:min(1, len(args))] }, a.explainThere)
		}
	}
	cmd.AddCommand(a.newPolicyListCommand(), a.newPolicyShowCommand(), a.newPolicyEditCommand(), a.newPolicySetCommand(), a.newPolicyReplayCommand())
	return cmd
}

// isPolicyName says whether an argument means a policy of a server: it is no file of this machine, and could not be the path of one.
func isPolicyName(text string) bool {
	if strings.HasPrefix(text, agentPrefix) {
		return true
	}
	if strings.ContainsAny(text, "/\\") || strings.HasSuffix(text, ".yaml") || strings.HasSuffix(text, ".yml") || text == "-" {
		return false
	}
	_, err := os.Lstat(text)
	return err != nil
}

const agentPrefix = "agent:"

// namedPolicy lets a command take names of policies of a server in the place of files.
func (a *app) namedPolicy(cmd *cobra.Command, named func(args []string) []string, there thereFunc) {
	here := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		names := 0
		for _, arg := range named(args) {
			if isPolicyName(arg) {
				names++
			}
		}
		if names == 0 {
			if cmd.Flags().Changed("method") {
				return fault.New(fault.Invalid, "--method asks a server").WithHint("leave it out: a URL says GET, and the steps show which methods a rule allows")
			}
			return here(cmd, args)
		}
		r, err := a.server(false)
		if err != nil {
			return err
		}
		switch {
		case r == nil:
			return here(cmd, args) // which says that there is no such file
		case names < len(named(args)):
			return fault.New(fault.Invalid, "some of these are files of this machine, others policies of %s", r.URL).WithHint("check one kind at a time")
		}
		a.dim(r)
		return explain(r.URL, there(cmd.Context(), r, cmd, args))
	}
}

func (a *app) checkThere(ctx context.Context, r *remote, cmd *cobra.Command, names []string) error {
	type checked struct {
		Policy string `json:"policy"`
		api.PolicyCheck
	}
	list := []checked{}
	var outcome error
	for _, name := range names {
		text, err := storedPolicy(ctx, r, name)
		if err != nil {
			return err
		}
		result, err := r.CheckPolicy(ctx, text)
		if err != nil {
			return err
		}
		if list = append(list, checked{name, result}); !result.OK {
			outcome = status(exitUsage)
		}
	}
	if boolFlag(cmd, "json") {
		return errors.Join(a.writeJSON(list), outcome)
	}
	for _, one := range list {
		a.printCheck(one.Policy, one.PolicyCheck)
	}
	return outcome
}

func (a *app) printCheck(name string, c api.PolicyCheck) {
	for _, p := range c.Problems {
		text := fmt.Sprintf("%s:%d:%d: %s", inert(name, 80), p.Line, p.Column, inert(p.Text, 500))
		if p.Hint != "" {
			text += "; " + inert(p.Hint, 500)
		}
		fmt.Fprintln(a.stdout, text)
	}
	for _, w := range c.Warnings {
		fmt.Fprintf(a.stdout, "%s: warning: %s\n", inert(name, 80), inert(w, 500))
	}
	if c.OK {
		fmt.Fprintf(a.stdout, "%s: in order\n", inert(name, 80))
	}
}

// storedPolicy returns the newest text of a policy, or what is in force for an agent.
func storedPolicy(ctx context.Context, r *remote, name string) (string, error) {
	if agent, ok := strings.CutPrefix(name, agentPrefix); ok {
		return r.EffectivePolicy(ctx, agent)
	}
	p, err := r.Policy(ctx, name)
	return p.Text, err
}

func (a *app) explainThere(ctx context.Context, r *remote, cmd *cobra.Command, args []string) error {
	in := api.ExplainRequest{Target: args[1], Ref: strings.Join(args[2:], ""), Method: textFlag(cmd, "method"), Policy: args[0]}
	if protocol := textFlag(cmd, "protocol"); protocol != "" {
		return fault.New(fault.Invalid, "--protocol is for files of this machine").WithHint("write a URL for a request, tcp:HOST:PORT for a connection, HOST:PORT for TLS")
	}
	if agent, ok := strings.CutPrefix(args[0], agentPrefix); ok {
		in.Policy, in.Agent = "", agent
	}
	list, err := r.Explain(ctx, in)
	return show(a, cmd, list, err, a.printExplained)
}

func (a *app) printExplained(list []api.Explanation) error {
	for _, e := range list {
		at := ""
		if e.Line > 0 {
			at = " (line " + strconv.Itoa(e.Line) + ")"
		}
		fmt.Fprintf(a.stdout, "%s: %s by %s%s: %s\n", inert(e.Crossing, 300), inert(e.Verdict, 20), inert(e.Rule, 200), at, inert(e.Reason, 500))
		w := newTable(a.stdout)
		for _, s := range e.Steps {
			mark := " "
			if s.Matched {
				mark = "*"
			}
			fmt.Fprintf(w, "  %s %s\t%s\t%s\n", mark, inert(s.Rule, 120), inert(s.Verdict, 20), inert(s.Why, 300))
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	return nil
}

func policyCompletions(ctx context.Context, r *remote) ([]cobra.Completion, error) {
	page, err := r.Policies(ctx, pageOf(200))
	var list []cobra.Completion
	for _, one := range page.Items {
		list = append(list, cobra.CompletionWithDesc(one.Name, inert(one.Comment, 60)))
	}
	return list, err
}

func (a *app) newPolicyListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List a server's policies", Args: cobra.NoArgs,
		RunE: a.there(func(ctx context.Context, r *remote, cmd *cobra.Command, _ []string) error {
			list, err := gather(client.All(ctx, r.Policies))
			return show(a, cmd, list, err, a.printPolicies)
		}),
	}
	jsonFlag(cmd)
	return cmd
}

func (a *app) printPolicies(list []api.Policy) error {
	var rows [][]string
	for _, p := range list {
		rows = append(rows, []string{inert(p.Name, 63), strconv.Itoa(p.Number), strconv.Itoa(p.Agents), since(p.Updated), inert(p.Author, 60), inert(p.Comment, 60)})
	}
	return a.table([]string{"NAME", "VERSION", "AGENTS", "CHANGED", "BY", "COMMENT"}, rows)
}

func (a *app) newPolicyShowCommand() *cobra.Command {
	var number int
	var asJSON bool
	cmd := &cobra.Command{
		Use: "show NAME|agent:NAME", Short: "Print a server's policy, or all that is in force for an agent", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeAt(policyCompletions),
		RunE: a.there(func(ctx context.Context, r *remote, _ *cobra.Command, args []string) error {
			agent, isAgent := strings.CutPrefix(args[0], agentPrefix)
			if isAgent && (number != 0 || asJSON) {
				return fault.New(fault.Invalid, "what is in force for an agent has neither versions nor more than its text").WithHint("leave --number and --json out")
			}
			var text string
			switch {
			case isAgent:
				var err error
				if text, err = r.EffectivePolicy(ctx, agent); err != nil {
					return err
				}
			case number != 0:
				v, err := r.PolicyVersion(ctx, args[0], number)
				if err != nil {
					return err
				}
				if asJSON {
					return a.writeJSON(v)
				}
				text = v.Text
			default:
				p, err := r.Policy(ctx, args[0])
				if err != nil {
					return err
				}
				if asJSON {
					return a.writeJSON(p)
				}
				text = p.Text
			}
			_, err := io.WriteString(a.inertOutput(), strings.TrimSuffix(text, "\n")+"\n")
			return err
		}),
	}
	cmd.Flags().IntVar(&number, "number", 0, "an earlier version, by `N`")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// policyText reads a policy from a file or standard input.
func (a *app) policyText(file string) (string, error) {
	var from io.Reader = a.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", fault.New(fault.Invalid, "cannot read the policy in %s", file).Because(err)
		}
		defer f.Close()
		from = f
	}
	data, err := io.ReadAll(io.LimitReader(from, maxPolicy+1))
	if err != nil || len(data) > maxPolicy {
		return "", fault.New(fault.Invalid, "cannot read the policy in %s", file).WithHint("a policy has at most 1 MiB").Because(err)
	}
	return string(data), nil
}

func (a *app) newPolicySetCommand() *cobra.Command {
	var comment string
	cmd := &cobra.Command{
		Use:   "set NAME FILE",
		Short: "Make FILE the policy of that name at a server: a new one, or a new version",
		Long:  "Make FILE (- is standard input) the policy of that name. A new version is in force in running sandboxes within a second; what it denies is cut.",
		Args:  cobra.ExactArgs(2), ValidArgsFunction: a.completePolicyThenFile,
		RunE: a.there(func(ctx context.Context, r *remote, _ *cobra.Command, args []string) error {
			text, err := a.policyText(args[1])
			if err != nil {
				return err
			}
			p, err := r.Policy(ctx, args[0])
			if fault.KindOf(err) == fault.NotFound {
				p, err = r.CreatePolicy(ctx, api.NewPolicy{Name: args[0], Text: text, Comment: comment})
			} else if err == nil {
				p, err = r.ChangePolicy(ctx, p.ID, p.Version, api.PolicyChange{Text: &text, Comment: comment})
			}
			return a.policySaved(ctx, r, p, text, err)
		}),
	}
	cmd.Flags().StringVar(&comment, "comment", "", "what is new, for the history")
	return cmd
}

func (a *app) completePolicyThenFile(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) == 1 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return a.complete(cmd, policyCompletions)
}

// policySaved tells what came of a change. Where the server refused the text, it is asked for all mistakes in it.
func (a *app) policySaved(ctx context.Context, r *remote, p api.Policy, text string, err error) error {
	if err != nil {
		if check, checkErr := r.CheckPolicy(ctx, text); checkErr == nil && !check.OK {
			a.printCheck("policy", check)
			return fault.New(fault.Invalid, "the policy is not in order; nothing was changed").WithHint("mend it and try again")
		}
		return err
	}
	for _, w := range p.Warnings {
		fmt.Fprintf(a.stderr, "cofferdam: warning: %s\n", inert(w, 500))
	}
	_, err = fmt.Fprintf(a.stderr, "cofferdam: %s is at version %d, in force for %s\n", inert(p.Name, 63), p.Number, plural(p.Agents, "agent", "agents"))
	return err
}

func (a *app) newPolicyEditCommand() *cobra.Command {
	var comment string
	cmd := &cobra.Command{
		Use:   "edit NAME",
		Short: "Change a server's policy in your editor ($VISUAL, $EDITOR, or vi)",
		Args:  cobra.ExactArgs(1), ValidArgsFunction: a.completeAt(policyCompletions),
		RunE: a.there(func(ctx context.Context, r *remote, _ *cobra.Command, args []string) error {
			p, err := r.Policy(ctx, args[0])
			if err != nil {
				return err
			}
			return a.editPolicy(ctx, r, p, comment)
		}),
	}
	cmd.Flags().StringVar(&comment, "comment", "", "what is new, for the history")
	return cmd
}

func (a *app) editPolicy(ctx context.Context, r *remote, p api.Policy, comment string) error {
	dir, err := os.MkdirTemp("", "cofferdam-policy-")
	if err != nil {
		return fmt.Errorf("make a place for the policy: %w", err)
	}
	kept := false
	defer func() {
		if !kept {
			_ = os.RemoveAll(dir) // what was in it is at the server
		}
	}()
	file := filepath.Join(dir, "policy.yaml")
	if err := os.WriteFile(file, []byte(p.Text), 0o600); err != nil {
		return err
	}
	words := strings.Fields(firstOf(os.Getenv("VISUAL"), os.Getenv("EDITOR"), "vi"))
	editor := exec.CommandContext(ctx, words[0], append(words[1:], file)...)
	editor.Stdin, editor.Stdout, editor.Stderr = a.stdin, a.stdout, a.stderr
	if err := editor.Run(); err != nil {
		return fault.New(fault.Invalid, "the editor %s did not end well; nothing was changed", words[0]).WithHint("name another in EDITOR, or use: cofferdam policy show NAME > FILE; cofferdam policy set NAME FILE").Because(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if bytes.Equal(data, []byte(p.Text)) {
		fmt.Fprintln(a.stderr, "cofferdam: nothing was changed")
		return nil
	}
	text := string(data)
	changed, err := r.ChangePolicy(ctx, p.ID, p.Version, api.PolicyChange{Text: &text, Comment: comment})
	if err := a.policySaved(ctx, r, changed, text, err); err != nil {
		kept = true
		fmt.Fprintf(a.stderr, "cofferdam: your text is kept in %s\n", file)
		return err
	}
	return nil
}

func firstOf(texts ...string) string {
	for _, t := range texts {
		if strings.TrimSpace(t) != "" {
			return t
		}
	}
	return ""
}

func (a *app) newPolicyReplayCommand() *cobra.Command {
	var agent, since string
	cmd := &cobra.Command{
		Use:     "replay NAME FILE",
		Short:   "Say what another text would have decided about recorded crossings",
		Example: "  cofferdam policy replay builder builder.yaml --since 7d",
		Args:    cobra.ExactArgs(2), ValidArgsFunction: a.completePolicyThenFile,
		RunE: a.there(func(ctx context.Context, r *remote, cmd *cobra.Command, args []string) error {
			in := api.ReplayRequest{Agent: agent}
			var err error
			if in.Text, err = a.policyText(args[1]); err != nil {
				return err
			}
			if in.Since, err = auditMoment("--since", since, time.Now()); err != nil {
				return err
			}
			replayed, err := r.Replay(ctx, args[0], in)
			return show(a, cmd, replayed, err, func(out api.Replay) error {
				fmt.Fprintf(a.stderr, "cofferdam: of %s, %s would be decided otherwise\n", plural(out.Crossings, "crossing", "crossings"), plural(len(out.Changed), "group", "groups"))
				return a.printReplay(out)
			})
		}),
	}
	cmd.Flags().StringVar(&agent, "agent", "", "only the crossings of this agent, a `NAME`")
	cmd.Flags().StringVar(&since, "since", "", "only crossings from then on: how long ago, a day or a time (7d)")
	jsonFlag(cmd)
	_ = cmd.RegisterFlagCompletionFunc("agent", a.completeAgents) // the flag exists
	return cmd
}

func (a *app) printReplay(out api.Replay) error {
	if out.Truncated {
		fmt.Fprintln(a.stderr, "cofferdam: there were more crossings than the server looks at")
	}
	if len(out.Changed) == 0 {
		_, err := fmt.Fprintln(a.stdout, "nothing would change")
		return err
	}
	var rows [][]string
	for _, c := range out.Changed {
		rows = append(rows, []string{inert(strings.TrimSpace(c.Operation+" "+c.Destination), 80), inert(c.Before, 20), inert(c.After, 20), strconv.Itoa(c.Count), inert(c.Rule, 80)})
	}
	return a.table([]string{"WHAT", "BEFORE", "AFTER", "TIMES", "RULE"}, rows)
}
