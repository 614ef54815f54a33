package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/client"
	"github.com/cofferdam/cofferdam/internal/fault"
)

// newReviewCommand is "cofferdam review".
func (a *app) newReviewCommand() *cobra.Command {
	var agent string
	var all bool
	cmd := &cobra.Command{
		Use:   "review",
		Short: "Decide what agents were denied, and what waits for a person",
		Long: `List what agents were denied, grouped, and crossings that wait for a person's answer. ID is the beginning of an identifier, as listed.

  cofferdam review show ID              the narrowest rule that would allow it, and what it would have let through
  cofferdam review allow ID             in the sandbox where it happened; --once or --agent for less or more
  cofferdam review deny ID              for good: it is not asked about again
  cofferdam review rules                what was decided; revoke takes it back`,
		Args: cobra.NoArgs,
		RunE: a.there(func(ctx context.Context, r *remote, cmd *cobra.Command, _ []string) error {
			in, err := readInbox(ctx, r, agent, all)
			return show(a, cmd, in, err, a.printInbox)
		}),
	}
	cmd.Flags().StringVar(&agent, "agent", "", "only of this agent, a `NAME`")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "decided ones too")
	jsonFlag(cmd)
	_ = cmd.RegisterFlagCompletionFunc("agent", a.completeAgents) // the flag exists
	cmd.AddCommand(a.newReviewShowCommand(), a.newReviewDecideCommand("allow", "Allow it: by the narrowest rule, or the one that --rule names"), a.newReviewDecideCommand("deny", "Deny it for good"),
		a.newReviewDecideCommand("dismiss", "Put a denial away until it happens again"), a.newReviewRulesCommand(),
		a.newReviewRuleCommand("approve RULE", "Agree, as the second person, to a rule that widens", "in force", (*client.Client).ApproveRule),
		a.newReviewRuleCommand("revoke RULE", "End a rule, or reject a proposed one", "revoked", (*client.Client).RevokeRule))
	return cmd
}

// inbox is what waits for a decision.
type inbox struct {
	Approvals []api.Approval `json:"approvals"`
	Denials   []api.Denial   `json:"denials"`
}

func readInbox(ctx context.Context, r *remote, agent string, all bool) (inbox, error) {
	states := []api.DenialState{api.Open}
	if all {
		states = nil
	}
	var in inbox
	var err error
	if in.Denials, err = gather(client.All(ctx, func(ctx context.Context, p client.Page) (api.Page[api.Denial], error) {
		return r.Denials(ctx, agent, states, p)
	})); err != nil {
		return in, err
	}
	list, err := gather(client.All(ctx, func(ctx context.Context, p client.Page) (api.Page[api.Approval], error) {
		return r.Approvals(ctx, !all, p)
	}))
	in.Approvals = []api.Approval{}
	for _, one := range list {
		if agent == "" || one.Agent == agent || one.AgentName == agent {
			in.Approvals = append(in.Approvals, one)
		}
	}
	return in, err
}

func (a *app) printInbox(in inbox) error {
	if len(in.Denials)+len(in.Approvals) == 0 {
		_, err := fmt.Fprintln(a.stderr, "cofferdam: nothing waits for a decision")
		return err
	}
	var rows [][]string
	for _, one := range in.Approvals {
		state := one.State
		if state == "waiting" {
			state = "waits " + until(one.Deadline)
		}
		rows = append(rows, []string{one.ID, inert(state, 20), inert(one.AgentName, 63), inert(one.Operation+" "+one.Destination, 70), "", since(one.Created), inert(one.Rule, 60)})
	}
	for _, one := range in.Denials {
		rows = append(rows, []string{one.ID, string(one.State), inert(one.AgentName, 63), inert(one.Operation+" "+one.Destination, 70), strconv.FormatUint(one.Count, 10), since(one.Last), inert(one.Rule, 60)})
	}
	return a.table([]string{"ID", "STATE", "AGENT", "WHAT", "TIMES", "LAST", "RULE"}, rows)
}

// until says how long something still takes.
func until(t time.Time) string {
	d := time.Until(t).Round(time.Second)
	if d <= 0 {
		return "0s"
	}
	return d.String()
}

// found is the denial or approval that an identifier names.
type found struct {
	denial   *api.Denial
	approval *api.Approval
}

// findReview finds what a person means by an identifier or the beginning of one.
func findReview(ctx context.Context, r *remote, text string) (found, error) {
	if d, err := r.Denial(ctx, text); err == nil || fault.KindOf(err) != fault.NotFound {
		return found{denial: &d}, err
	}
	if one, err := r.Approval(ctx, text); err == nil || fault.KindOf(err) != fault.NotFound {
		return found{approval: &one}, err
	}
	in, err := readInbox(ctx, r, "", true)
	if err != nil {
		return found{}, err
	}
	var hits []found
	for i := range in.Denials {
		if strings.HasPrefix(in.Denials[i].ID, text) {
			hits = append(hits, found{denial: &in.Denials[i]})
		}
	}
	for i := range in.Approvals {
		if strings.HasPrefix(in.Approvals[i].ID, text) {
			hits = append(hits, found{approval: &in.Approvals[i]})
		}
	}
	switch {
	case text == "" || len(hits) == 0:
		return found{}, fault.New(fault.NotFound, "nothing to review is called %.80q", text).WithHint("list what there is with: cofferdam review --all")
	case len(hits) > 1:
		return found{}, fault.New(fault.Invalid, "%d things to review begin with %.80q", len(hits), text).WithHint("type more of the identifier")
	}
	one := hits[0]
	if one.denial != nil {
		full, err := r.Denial(ctx, one.denial.ID)
		return found{denial: &full}, err
	}
	full, err := r.Approval(ctx, one.approval.ID)
	return found{approval: &full}, err
}

func (a *app) newReviewShowCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "show ID", Short: "Show one, with the narrowest rule that would allow it", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeAt(reviewCompletions),
		RunE: a.there(func(ctx context.Context, r *remote, _ *cobra.Command, args []string) error {
			one, err := findReview(ctx, r, args[0])
			switch {
			case err != nil:
				return err
			case asJSON && one.denial != nil:
				return a.writeJSON(one.denial)
			case asJSON:
				return a.writeJSON(one.approval)
			case one.denial != nil:
				return a.showDenial(*one.denial)
			}
			return a.showApproval(*one.approval)
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func reviewCompletions(ctx context.Context, r *remote) ([]cobra.Completion, error) {
	in, err := readInbox(ctx, r, "", false)
	var list []cobra.Completion
	for _, one := range in.Approvals {
		list = append(list, cobra.CompletionWithDesc(one.ID, inert(one.AgentName+": "+one.Destination, 60)))
	}
	for _, one := range in.Denials {
		list = append(list, cobra.CompletionWithDesc(one.ID, inert(one.AgentName+": "+one.Destination, 60)))
	}
	return list, err
}

func (a *app) showDenial(d api.Denial) error {
	err := a.pairs([][2]string{
		{"id", d.ID}, {"state", string(d.State)}, {"agent", d.AgentName}, {"what", d.Operation + " " + d.Destination}, {"denied by", d.Rule}, {"reason", d.Reason},
		{"credential", d.Credential}, {"process", cmp.Or(d.Process, "unknown") + " (as the sandbox says)"}, {"times", strconv.FormatUint(d.Count, 10)},
		{"first", d.First.Local().Format(time.DateTime)}, {"last", d.Last.Local().Format(time.DateTime) + " in sandbox " + d.Sandbox}, {"decided by", d.DecidedBy},
	})
	if err != nil {
		return err
	}
	return a.showSuggestion(d.Suggestion)
}

func (a *app) showApproval(one api.Approval) error {
	err := a.pairs([][2]string{
		{"id", one.ID}, {"state", one.State}, {"agent", one.AgentName}, {"what", one.Operation + " " + one.Destination}, {"asked by", one.Rule},
		{"process", cmp.Or(one.Process, "unknown") + " (as the sandbox says)"}, {"sandbox", one.Sandbox}, {"denied in", until(one.Deadline)}, {"decided by", one.DecidedBy},
	})
	if err != nil {
		return err
	}
	return a.showSuggestion(one.Suggestion)
}

// showSuggestion prints the rule to consider, and what speaks against it.
func (a *app) showSuggestion(s *api.Suggestion) error {
	if s == nil {
		_, err := fmt.Fprintln(a.stdout, "\nno rule can allow it")
		return err
	}
	fmt.Fprintln(a.stdout, "\nthe narrowest rule that would allow it:")
	for line := range strings.Lines(s.Rule) {
		fmt.Fprintf(a.stdout, "  %s\n", inert(strings.TrimRight(line, "\n"), 500))
	}
	for _, w := range s.Warnings {
		fmt.Fprintf(a.stdout, "warning: %s (allow it only with --widens)\n", inert(w.Text, 500))
	}
	if s.Reach == nil {
		return nil
	}
	fmt.Fprintf(a.stdout, "of %s that are on record it would have changed:\n", plural(s.Reach.Crossings, "crossing", "crossings"))
	return a.printReplay(*s.Reach)
}

// decideFlags are the flags of allow, deny and dismiss.
type decideFlags struct {
	once, run, agent, widens bool
	until, rule, comment     string
}

func (a *app) newReviewDecideCommand(verdict, short string) *cobra.Command {
	var f decideFlags
	cmd := &cobra.Command{
		Use: verdict + " ID", Short: short, Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeAt(reviewCompletions),
		RunE: a.there(func(ctx context.Context, r *remote, cmd *cobra.Command, args []string) error {
			in, err := f.decide(verdict)
			if err != nil {
				return err
			}
			one, err := findReview(ctx, r, args[0])
			if err != nil {
				return err
			}
			out, err := r.decide(ctx, one, in)
			return show(a, cmd, out, err, func(out api.Decision) error { return a.printDecision(verdict, out) })
		}),
	}
	flags := cmd.Flags()
	flags.StringVar(&f.comment, "comment", "", "why, for the record")
	jsonFlag(cmd)
	if verdict == "dismiss" {
		return cmd
	}
	flags.BoolVar(&f.once, "once", false, "this one crossing; of a denial, the next one like it")
	flags.BoolVar(&f.run, "run", false, "in the sandbox where it happened (the default)")
	flags.BoolVar(&f.agent, "agent", false, "in every sandbox of the agent")
	flags.StringVar(&f.until, "until", "", "with --agent: how long, such as 7d; for good if left out")
	flags.StringVar(&f.rule, "rule", "", "another rule instead of the suggested one: `YAML`, as under egress.rules")
	cmd.MarkFlagsMutuallyExclusive("once", "run", "agent")
	if verdict == "allow" {
		flags.BoolVar(&f.widens, "widens", false, "the warnings of \"review show\" were read: what it opens is meant")
	}
	return cmd
}

// decide turns flags into the answer.
func (f *decideFlags) decide(verdict string) (api.Decide, error) {
	in := api.Decide{Verdict: verdict, Rule: f.rule, Comment: f.comment, Widens: f.widens}
	switch {
	case verdict == "dismiss":
		return in, nil
	case f.once:
		in.Scope = api.Once
	case f.agent:
		in.Scope = api.ForAgent
	default:
		in.Scope = api.ForRun
	}
	if f.until == "" {
		return in, nil
	}
	if !f.agent {
		return in, fault.New(fault.Invalid, "--until goes with --agent").WithHint("a decision for one sandbox ends with it")
	}
	d, err := parseSpan("--until", f.until)
	in.Until = time.Now().Add(d).UTC().Truncate(time.Second)
	return in, err
}

// decide sends the answer.
func (r *remote) decide(ctx context.Context, one found, in api.Decide) (out api.Decision, err error) {
	if one.denial != nil {
		out, err = r.DecideDenial(ctx, one.denial.ID, in)
	} else {
		out, err = r.DecideApproval(ctx, one.approval.ID, in)
	}
	if e, ok := errors.AsType[*client.Error](err); ok && e.Field == "widens" {
		err = fault.New(fault.Invalid, "%s", e.Detail).WithHint("read what cofferdam review show says; if that is meant, add --widens").Because(err)
	}
	return out, err
}

func (a *app) printDecision(verdict string, out api.Decision) (err error) {
	switch {
	case out.Rule != nil && out.Rule.State == "proposed":
		_, err = fmt.Fprintf(a.stderr, "cofferdam: the rule widens, so a second person has to agree: cofferdam review approve %s\n", out.Rule.ID)
	case out.Rule != nil:
		text := "cofferdam: " + verdict + ", by the rule " + out.Rule.ID
		if len(out.InForce) > 0 {
			text += ", in force in " + plural(len(out.InForce), "sandbox", "sandboxes") + " already"
		}
		_, err = fmt.Fprintln(a.stderr, text)
	default:
		_, err = fmt.Fprintf(a.stderr, "cofferdam: done: %s\n", verdict)
	}
	return err
}

func (a *app) newReviewRulesCommand() *cobra.Command {
	var agent string
	var all bool
	cmd := &cobra.Command{
		Use: "rules", Short: "List reviewers' rules that are in force or proposed", Args: cobra.NoArgs,
		RunE: a.there(func(ctx context.Context, r *remote, cmd *cobra.Command, _ []string) error {
			states := []string{"proposed", "active"}
			if all {
				states = nil
			}
			list, err := gather(client.All(ctx, func(ctx context.Context, p client.Page) (api.Page[api.Rule], error) {
				return r.Rules(ctx, agent, states, p)
			}))
			return show(a, cmd, list, err, a.printRules)
		}),
	}
	cmd.Flags().StringVar(&agent, "agent", "", "only of this agent, a `NAME`")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "ended ones too")
	jsonFlag(cmd)
	_ = cmd.RegisterFlagCompletionFunc("agent", a.completeAgents) // the flag exists
	return cmd
}

func (a *app) printRules(list []api.Rule) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(a.stderr, "cofferdam: no rule is in force or proposed; ended ones: cofferdam review rules --all")
		return err
	}
	var rows [][]string
	for _, one := range list {
		ends := "-"
		if !one.Until.IsZero() {
			ends = one.Until.Local().Format(time.DateOnly)
		}
		rule := strings.Join(strings.Fields(one.Rule), " ")
		rows = append(rows, []string{one.ID, one.State, inert(one.AgentName, 63), one.Verdict, string(one.Scope), ends, inert(one.ProposedBy, 60), inert(rule, 80)})
	}
	return a.table([]string{"RULE", "STATE", "AGENT", "VERDICT", "SCOPE", "ENDS", "BY", "TEXT"}, rows)
}

func (a *app) newReviewRuleCommand(use, short, done string, do func(*client.Client, context.Context, string) (api.Rule, error)) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.ExactArgs(1),
		RunE: a.there(func(ctx context.Context, r *remote, cmd *cobra.Command, args []string) error {
			rule, err := do(r.Client, ctx, args[0])
			return show(a, cmd, rule, err, func(one api.Rule) error {
				_, err := fmt.Fprintf(a.stderr, "cofferdam: the rule %s of %s is %s\n", one.ID, inert(one.AgentName, 63), done)
				return err
			})
		}),
	}
	jsonFlag(cmd)
	return cmd
}
