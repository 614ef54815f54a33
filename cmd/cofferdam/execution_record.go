package main

import (
	"cmp"
	"context"
	"os"
	"strings"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/sandbox"
)

// recordStart puts on record that there is about to be a sandbox.
func (e *execution) recordStart(ctx context.Context) error {
	r := e.record()
	return e.log.Append(ctx, audit.Event{
		Kind: audit.RunStarted, Run: e.id, Principal: cmp.Or(e.principal, "user"), Tenant: e.tenant, Agent: e.agent, Isolation: r.Isolation, Command: r.Command,
		Detail: strings.TrimSpace(r.Workspace + " " + r.Mode + " " + r.Image + e.keepsake.origin() + platformDetail(r.Platform)),
	})
}

// record is the run's first record.
func (e *execution) record() sandbox.Record {
	r := sandbox.Record{
		Run: e.id, State: sandbox.Running, Command: abridge(e.args), Workspace: e.settled.workspace.dir, Mode: e.settled.mode.String(),
		Isolation: e.settled.policy.Isolation().String(), Platform: e.platform(), Image: e.root.image.Digest, UID: os.Getuid(), Tenant: e.tenant, Agent: e.agent, Started: e.began,
	}
	if r.Workspace == "" {
		r.Mode = "none"
	}
	if e.claimed != nil {
		r.Warm = e.claimed.Name
	}
	if from := e.keepsake.from; from != nil {
		r.From, r.FromRun, r.Image = string(from.Name), from.Run, from.Image
	}
	return r
}

// abridge keeps of a command line what a list can show.
func abridge(args []string) []string {
	const most, longest = 32, 200
	var short []string
	for _, arg := range args[:min(len(args), most)] {
		short = append(short, inert(arg, longest))
	}
	return short
}
