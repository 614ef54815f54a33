package e2e

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/keeper"
)

// TestPoolKilled kills the pool, a supervisor and process 1 of a sandbox that waits, and a run while it takes one: what waits goes or is replaced, what was taken
// lives on or goes with its run, and nothing is left.
func TestPoolKilled(t *testing.T) {
	forEachPool(t, func(t *testing.T, w *warmHouse) {
		for _, part := range []struct {
			name string
			test func(*testing.T, *warmHouse)
		}{
			{"pool", killPool}, {"supervisor", killSupervisor}, {"inside", killInside}, {"steward", killSteward}, {"claimer", killClaimer},
		} {
			t.Run(part.name, func(t *testing.T) { part.test(t, w.in(t)) })
		}
	})
}

func killPool(t *testing.T, w *warmHouse) {
	s := w.full()
	b := w.start("echo running; sleep 1.5; echo over; exit 6")
	b.says("running")
	w.waiting()
	if err := syscall.Kill(s.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code := b.end(20 * time.Second); code != 6 || !strings.Contains(b.out.String(), "over") {
		t.Errorf("the run whose sandbox was taken: exit %d, from %q: %s", code, w.origin(), b.out.String())
	}
	w.gone()
	if r := w.sh("exit 4"); r.code != 4 {
		t.Errorf("with a dead pool: exit %d: %s", r.code, r.stderr)
	}
	w.open("--size", "1")
}

func killSupervisor(t *testing.T, w *warmHouse) { killWaiting(t, w, true) }

func killInside(t *testing.T, w *warmHouse) { killWaiting(t, w, false) }

// killWaiting kills the supervisor or process 1 of a sandbox that waits.
func killWaiting(t *testing.T, w *warmHouse, supervisor bool) {
	w.full()
	ones := w.waiting()
	victim := ones[0]
	if supervisor {
		victim = parentOf(victim)
	}
	if err := syscall.Kill(victim, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); w.status().Failed == 0 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
	}
	w.full()
	if again := w.waiting(); slices.Contains(again, ones[0]) || len(again) != 1 {
		t.Errorf("waiting are %v after %v", again, ones)
	}
	if r, from := w.sample("pool", "exit 4"); r.code != 4 || from != "pool" {
		t.Errorf("exit %d, from %q: %s", r.code, from, r.stderr)
	}
	w.stop()
	w.gone()
	w.open("--size", "1")
}

func killSteward(t *testing.T, w *warmHouse) {
	w.full()
	if err := syscall.Kill(w.steward(w.waiting()[0]), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if r := w.sh("exit 4"); r.code != 4 || w.origin() != "anew" {
		t.Errorf("exit %d, from %q: %s", r.code, w.origin(), r.stderr)
	}
}

func killClaimer(t *testing.T, w *warmHouse) {
	for i := range 8 {
		w.full()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		cmd := w.command(ctx, "run", "--", "sleep", "100")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(5+5*i) * time.Millisecond) // while it starts, claims, and runs
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		cancel()
	}
	w.stop()
	w.gone()
}

// TestPoolKeeps has a sandbox kept, as the service does, in one from the pool: it trusts the gateway's authority, which was made after the sandbox.
func TestPoolKeeps(t *testing.T) {
	const bundle, begin = "/etc/ssl/certs/ca-certificates.crt", "BEGIN CERTIFICATE"
	data, err := os.ReadFile(bundle)
	if err != nil {
		t.Skip(err)
	}
	line := fmt.Sprintf("test $(grep -c '%s' %s) = %d && sleep 1 && exit 7", begin, bundle, strings.Count(string(data), begin)+1)
	asEachUser(t, func(t *testing.T, h *house) {
		if r := h.do("pool", "start", "--size", "1"); r.code != 0 {
			t.Fatalf("pool start: %s", r.stderr)
		}
		t.Cleanup(func() { _ = h.command(context.Background(), "pool", "stop").Run() })
		var k *kept
		for range 4 { // as in sample
			k = h.keep(keeper.Spec{Command: []string{"sh", "-c", line}})
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			k.gone(ctx)
			cancel()
			for _, e := range h.events() {
				if e.Kind == "run.ended" && strings.Contains(e.Detail, "exit 7") && strings.Contains(e.Detail, "; from the pool;") {
					return
				}
			}
		}
		t.Errorf("not from the pool: %+v", h.events())
	})
}
