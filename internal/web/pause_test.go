package web

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/control"
)

// halted is a sample with one sandbox in a state, which notes what it is told to do.
type halted struct {
	*sample
	state api.SandboxState
	told  []string
}

func (h *halted) Sandbox(context.Context, control.Actor, string) (api.Sandbox, error) {
	b := h.sandbox(0)
	b.State = h.state
	return b, nil
}

func (h *halted) PauseSandbox(_ context.Context, _ control.Actor, id string) (api.Sandbox, error) {
	h.told = append(h.told, "pause "+id)
	return api.Sandbox{ID: id, State: api.Paused}, nil
}

func (h *halted) ResumeSandbox(_ context.Context, _ control.Actor, id string) (api.Sandbox, error) {
	h.told = append(h.told, "resume "+id)
	return api.Sandbox{ID: id, State: api.Running}, nil
}

// TestPauseButtons looks for the one button that fits the state.
func TestPauseButtons(t *testing.T) {
	for state, want := range map[api.SandboxState]string{api.Running: "pause", api.Paused: "resume", api.Stopping: "", api.Ended: ""} {
		h := &halted{sample: &sample{}, state: state}
		p := newPages(t, h.sample)
		p.ops = h
		w := get(t, p, "/sandboxes/r1")
		if w.Code != http.StatusOK {
			t.Fatalf("%s: status %d", state, w.Code)
		}
		for _, verb := range []string{"pause", "resume"} {
			if has := strings.Contains(w.Body.String(), `data-test="`+verb+`"`); has != (verb == want) {
				t.Errorf("%s: a button to %s: %t", state, verb, has)
			}
		}
		if !strings.Contains(w.Body.String(), ">"+string(state)+"<") {
			t.Errorf("%s is not shown", state)
		}
		for _, verb := range []string{"pause", "resume"} {
			if w := post(t, p, "/sandboxes/r1/"+verb, ""); w.Code != http.StatusSeeOther || !strings.HasPrefix(w.Header().Get("Location"), "/sandboxes/r1?done=sandbox-"+verb) {
				t.Errorf("%s leads to %d %q", verb, w.Code, w.Header().Get("Location"))
			}
		}
		if got := strings.Join(h.told, ", "); got != "pause r1, resume r1" {
			t.Errorf("told: %s", got)
		}
	}
}
