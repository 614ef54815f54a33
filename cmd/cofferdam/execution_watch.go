package main

import (
	"context"
	"time"

	"github.com/cofferdam/cofferdam/internal/policy"
)

// A kernel of the sandbox's own can freeze, or be stopped, without a word: its connections stay open. The runner answers within a millisecond, and under
// a hard processor limit within a second.
const (
	pingEvery   = 5 * time.Second
	pingTimeout = 5 * time.Second
)

// watch asks the runner for a sign of life until ctx ends, and ends the sandbox when three questions in a row got no answer: one alone could be this process's
// own pause, or the machine's. A sandbox that is paused is not asked: it would answer when it goes on.
func (e *execution) watch(ctx context.Context, s interface{ Ping(context.Context) error }) {
	if e.settled.policy.Isolation() == policy.Container {
		return // the supervisor sees the end of its process 1, which cannot be stopped from inside
	}
	paused := false
	for missed := 0; missed < 3; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pingEvery):
		}
		if paused {
			if paused = e.isPaused(ctx); paused {
				continue
			}
		}
		asking, cancel := context.WithTimeout(ctx, pingTimeout)
		if missed++; s.Ping(asking) == nil {
			missed = 0
		} else if paused = e.isPaused(ctx); paused {
			missed = 0
		}
		cancel()
	}
	if ctx.Err() == nil {
		e.kill("killed: the runner gave no sign of life")
	}
}
