package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
)

// auditEitherWay is "cofferdam audit", of this machine or a server. Verifying the chain is for whoever has the file.
func (a *app) auditEitherWay() *cobra.Command {
	var q api.AuditQuery
	cmd := newAuditCommand(a)
	flags := cmd.Flags()
	narrowing := []string{"agent", "access", "credential", "repository", "rule"}
	flags.StringVar(&q.Agent, "agent", "", "at a server: only of this agent, a `NAME`")
	flags.StringVar(&q.Access, "access", "", "at a server: only crossings that read or write, a `KIND`")
	flags.StringVar(&q.Credential, "credential", "", "at a server: only crossings that a credential was lent to, by `NAME`")
	flags.StringVar(&q.Repository, "repository", "", "at a server: only about this Git repository, as `UPSTREAM/REPOSITORY`")
	flags.StringVar(&q.Rule, "rule", "", "at a server: only what this `RULE` decided")
	_ = cmd.RegisterFlagCompletionFunc("agent", a.completeAgents) // the flag exists
	here := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		for _, name := range narrowing {
			if flags.Changed(name) {
				return fault.New(fault.Invalid, "--%s searches at a server, and this is about this machine", name).WithHint("leave it out, or log in with: cofferdam login https://SERVER")
			}
		}
		return here(cmd, args)
	}
	return a.eitherWay(cmd, func(ctx context.Context, r *remote, cmd *cobra.Command, args []string) error {
		f := auditFlags{
			verdict: textFlag(cmd, "verdict"), host: textFlag(cmd, "host"), since: textFlag(cmd, "since"), until: textFlag(cmd, "until"),
			json: boolFlag(cmd, "json"), follow: boolFlag(cmd, "follow"),
		}
		f.kinds, _ = cmd.Flags().GetStringSlice("kind") // the flag exists
		f.limit, _ = cmd.Flags().GetInt("limit")        // likewise
		filter, err := f.filter(time.Now())
		if err != nil {
			return err
		}
		q.Verdict, q.Host, q.Since, q.Until, q.Kinds = filter.Verdict, filter.Host, filter.Since, filter.Until, f.kinds
		if len(args) > 0 {
			if q.Sandbox, err = sandboxNamed(ctx, r, args[0]); err != nil {
				return err
			}
		}
		return a.auditThere(ctx, r, q, f)
	})
}

// sandboxNamed finds the sandbox that is meant: by its identifier, or "last".
func sandboxNamed(ctx context.Context, r *remote, text string) (string, error) {
	if text != "last" {
		return text, nil
	}
	page, err := r.Sandboxes(ctx, "", false, pageOf(1))
	if err == nil && len(page.Items) == 0 {
		err = fault.New(fault.NotFound, "there is no sandbox yet")
	}
	if err != nil {
		return "", err
	}
	return page.Items[0].ID, nil
}

// auditPage is how many events are asked for at once.
const auditPage = 500

// auditThere shows events, the oldest first, as the log of this machine is shown.
func (a *app) auditThere(ctx context.Context, r *remote, q api.AuditQuery, f auditFlags) error {
	show := a.auditShow(f.json)
	most := f.limit
	if most == 0 {
		most = 1 << 30
	}
	events, err := searchAudit(ctx, r, q, most, 0)
	if err != nil {
		return err
	}
	last := int64(0)
	for _, e := range events {
		if err := show(e); err != nil {
			return fmt.Errorf("write audit events: %w", err)
		}
		last = max(last, e.Sequence)
	}
	if !f.follow {
		if len(events) == 0 {
			fmt.Fprintln(a.stderr, "cofferdam: no events")
		}
		return nil
	}
	return a.followAudit(ctx, r, q, last, show)
}

// searchAudit takes at most so many of the newest events after a sequence number, and turns them round.
func searchAudit(ctx context.Context, r *remote, q api.AuditQuery, most int, after int64) ([]api.AuditEvent, error) {
	var all []api.AuditEvent
	for {
		q.Limit = min(auditPage, most-len(all))
		page, err := r.Audit(ctx, q)
		if err != nil {
			return nil, err
		}
		for _, e := range page.Items {
			if e.Sequence <= after {
				page.Next = ""
				break
			}
			all = append(all, e)
		}
		if q.After = page.Next; q.After == "" || len(all) >= most {
			slices.Reverse(all)
			return all, nil
		}
	}
}

// followAudit looks again whenever something happens at the server, and shows what is new.
func (a *app) followAudit(ctx context.Context, r *remote, q api.AuditQuery, last int64, show func(api.AuditEvent) error) error {
	ctx, stop := untilInterrupted(ctx)
	defer stop()
	look := func(api.Event) error {
		events, err := searchAudit(ctx, r, q, 10*auditPage, last)
		for _, e := range events {
			if err := show(e); err != nil {
				return err
			}
			last = max(last, e.Sequence)
		}
		return err
	}
	return endedByPerson(ctx, r.Events(ctx, -1, look))
}

// auditShow prints one event: as its own record in JSON, or as a row of the table of this machine's log. The record was made inert when it was written, and
// is made so again, since it comes from elsewhere.
func (a *app) auditShow(asJSON bool) func(api.AuditEvent) error {
	if asJSON {
		enc := json.NewEncoder(a.stdout)
		return func(e api.AuditEvent) error { return enc.Encode(e) }
	}
	table := newAuditTable(a.stdout, auditColour(a.stdout, os.Getenv))
	return func(e api.AuditEvent) error {
		var record audit.Event
		if err := json.Unmarshal(e.Record, &record); err != nil {
			record = audit.Event{Kind: audit.Kind(e.Kind), Verdict: e.Verdict, Detail: e.Summary}
		}
		record.Time = e.Time
		record.Run = ident.Run(e.Sandbox)
		for _, text := range []*string{
			&record.Verdict, &record.Host, &record.Address, &record.Path, &record.Method, &record.Protocol, &record.Rule, &record.Process, &record.Detail, &record.Error,
			&record.Repository, &record.Access, &record.Credential, &record.Type, &record.Isolation,
		} {
			*text = inert(*text, 500)
		}
		record.Run, record.Kind = ident.Run(inert(string(record.Run), 20)), audit.Kind(inert(string(record.Kind), 60))
		for _, list := range [][]string{record.Command, record.Weaker, record.Refs} {
			for i := range list {
				list[i] = inert(list[i], 200)
			}
		}
		return table.row(&record)
	}
}
