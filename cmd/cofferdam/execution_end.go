package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/sandbox"
)

// conclude writes how the run ended, tells the person, and returns the exit code.
func (e *execution) conclude(ctx context.Context, exit frame.Exit, err error) (int, error) {
	code, how := e.outcome(exit, err)
	code, kept := e.keepsakeEnd(code)
	limits := e.met()
	end := sandbox.End{
		Finished: time.Now(), How: how, ExitCode: code, Weaker: e.created.Weaker, Erased: e.ended.Erased, Problems: e.ended.Problems, Changed: e.ended.Changed,
		Collected: e.confirmed && e.ended.CollectError == "", Unclean: !e.confirmed, Usage: e.usage(),
	}
	for _, l := range limits {
		end.Limits = append(end.Limits, l.sentence())
	}
	var events []audit.Event
	if e.confirmed { // else nobody knows, and whoever cleans up after this run says what he found
		end.Receipt = e.receipt()
		events = append(events, audit.Event{Kind: audit.SandboxErased, Run: e.id, Principal: cmp.Or(e.principal, "system"), Detail: how, Erased: end.Receipt})
	}
	events = append(events, audit.Event{
		Kind: audit.RunEnded, Run: e.id, Principal: cmp.Or(e.principal, "system"), Isolation: e.settled.policy.Isolation().String(), Weaker: end.Weaker, Status: code,
		Millis: time.Since(e.began).Milliseconds(), Detail: how + flagsOf(limits) + e.warmth() + kept + e.continues() + e.platformUsed() + "; erased: " + strings.Join(end.Erased, ", "), Error: strings.Join(end.Problems, "; "),
	})
	// The end is recorded even if the person has interrupted us meanwhile.
	recordErr := errors.Join(e.live.Finish(end), e.log.Append(context.WithoutCancel(ctx), events...), e.log.Sync())
	e.say.summary(e.summarise(end))
	if err != nil && exit == (frame.Exit{}) && e.why() == "" && e.ended.OutOfMemory == 0 {
		return 0, errors.Join(err, recordErr)
	}
	if exit.Error != "" {
		e.say.trouble(errors.New(exit.Error), e.missingHint(exit))
	}
	return code, recordErr
}

// usage is how much went through the gateway.
func (e *execution) usage() sandbox.Usage {
	if e.gateway == nil {
		return sandbox.Usage{}
	}
	stats := e.gateway.Stats()
	return sandbox.Usage{Connections: stats.Connections, Allowed: stats.Allowed, Denied: stats.Denied, In: stats.In, Out: stats.Out}
}

// outcome turns what the runner and the supervisor said into an exit code and words.
func (e *execution) outcome(exit frame.Exit, err error) (int, string) {
	switch {
	case strings.HasPrefix(e.why(), "timeout"):
		return exitTimeout, e.why()
	case exit.Error != "" && exit.NotFound:
		return exitNotFound, "command not found"
	case exit.Error != "":
		return exitNotExec, "command cannot be executed"
	case e.signals.stopped != 0:
		return 128 + int(e.signals.stopped), "interrupted"
	case e.ended.OutOfMemory > 0 && (exit.Signal != 0 || err != nil):
		return 128 + int(syscall.SIGKILL), "memory limit reached"
	case e.why() != "":
		return exitOurs, e.why()
	case e.ended.How != "":
		return exitOurs, e.ended.How
	case err != nil:
		return exitOurs, "killed: " + fault.Public(err)
	case exit.Signal != 0:
		return 128 + exit.Signal, fmt.Sprintf("signal %d", exit.Signal)
	}
	return exit.Code, fmt.Sprintf("exit %d", exit.Code)
}

// abandon records a sandbox that could not be made. The error itself is told by the caller.
func (e *execution) abandon(err error) {
	how := "not started: " + fault.Public(err)
	if e.live != nil {
		_ = e.live.Finish(sandbox.End{Finished: time.Now(), How: how, ExitCode: exitOurs, Unclean: e.asked && !e.confirmed}) // without it the next run buries this one
	}
	if e.log != nil {
		event := audit.Event{Kind: audit.RunEnded, Run: e.id, Principal: cmp.Or(e.principal, "system"), Status: exitOurs, Detail: how, Error: err.Error()}
		_ = e.log.Append(context.Background(), event) // a log that cannot be written may be the very reason
	}
}

// close hangs up and waits for the supervisor; what is still there ends with it.
func (e *execution) close() {
	ctx, cancel := context.WithTimeout(context.Background(), closePatience)
	defer cancel()
	if e.client != nil {
		if err := e.client.Close(ctx); err != nil {
			e.say.trouble(err, "")
		}
	}
	if e.session != nil {
		e.session.Restore()
	}
	if e.lending.lender != nil {
		if err := e.lending.lender.Close(); err != nil {
			e.say.trouble(err, "")
		}
	}
	if e.git.close != nil {
		e.git.close()
	}
	// Everything was written and, at the end of the run, synchronised.
	if e.live != nil {
		_ = e.live.Close()
	}
	if e.log != nil {
		_ = e.log.Close()
	}
}

// closePatience is how long the supervisor may take to clean up after the end of a run.
const closePatience = 30 * time.Second

// summary is what a run came to.
type summary struct {
	Run          string   `json:"run"`
	How          string   `json:"how"`
	ExitCode     int      `json:"exit_code"`
	Seconds      float64  `json:"seconds"`
	Allowed      int64    `json:"allowed"`
	Denied       uint64   `json:"denied"`
	Destinations int      `json:"destinations_denied"`
	BytesIn      int64    `json:"bytes_in"`
	BytesOut     int64    `json:"bytes_out"`
	Changed      int      `json:"changed"`
	Skipped      int      `json:"skipped,omitempty"`
	OutOfMem     int      `json:"out_of_memory,omitempty"`
	Limits       []string `json:"limits,omitempty"` // met, in words
	Weaker       []string `json:"weaker,omitempty"`
	Problems     []string `json:"problems,omitempty"`
	Snapshot     string   `json:"snapshot,omitempty"` // that was made
	Workspace    string   `json:"workspace,omitempty"`
	Mode         string   `json:"workspace_mode,omitempty"`
}

func (e *execution) summarise(end sandbox.End) summary {
	s := summary{
		Run: e.id.String(), How: end.How, ExitCode: end.ExitCode, Seconds: time.Since(e.began).Seconds(), Changed: e.ended.Changed, Skipped: e.ended.Skipped,
		OutOfMem: e.ended.OutOfMemory, Limits: end.Limits, Weaker: end.Weaker, Problems: end.Problems, Workspace: e.settled.workspace.dir, Mode: e.settled.mode.String(),
	}
	if e.keptAt() != "" {
		s.Snapshot = string(e.keepsake.name)
	}
	if e.ended.CollectError != "" {
		s.Problems = append(s.Problems, "the changes could not be collected: "+e.ended.CollectError)
	}
	if e.gateway != nil {
		stats := e.gateway.Stats()
		s.Destinations = len(e.gateway.Denials())
		s.Allowed, s.Denied, s.BytesIn, s.BytesOut = stats.Allowed, stats.Denied, stats.In, stats.Out
	}
	return s
}
