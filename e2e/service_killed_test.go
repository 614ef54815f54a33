package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	wire "github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/client"
)

// kills is how often the service is killed.
const kills = 8

// TestServiceKilled kills the service while clients make sandboxes, use and stop them: no sandbox is hurt or forgotten, no command runs twice, no event is lost.
func TestServiceKilled(t *testing.T) {
	forEachUser(t, func(t *testing.T, h *house) {
		s := newService(h)
		s.start("127.0.0.1:0")
		admin := s.setUp()
		c := admin.client()
		k := &killing{s: s, c: c, done: make(chan struct{})}
		var working sync.WaitGroup
		for i := range 3 {
			w := k.worker(admin, fmt.Sprintf("worker-%d", i+1))
			k.workers = append(k.workers, w)
			working.Go(w.work)
		}
		finish := sync.OnceFunc(func() {
			close(k.done)
			working.Wait()
		})
		defer finish()
		began := time.Now()
		for i := range kills {
			time.Sleep(time.Duration(250+150*(i%4)) * time.Millisecond)
			at := s.address()
			s.kill()
			s.start(at)
			k.check()
		}
		finish()
		k.settle()
		t.Logf("%d kills in %v: %s", kills, time.Since(began).Round(time.Millisecond), k.counts())
		k.indexed()
		s.stop()
		s.gone()
	})
}

// killing is what the test knows.
type killing struct {
	s       *service
	c       *client.Client
	workers []*worker
	done    chan struct{}
}

// worker is one client with an agent and a persistent workspace of its own.
type worker struct {
	k     *killing
	name  string
	agent string
	token string
	url   string
	mu    sync.Mutex
	boxes map[string]bool // acknowledged as made
	keys  map[string]bool // of commands: acknowledged as run
	lost  int             // requests that nobody knows the fate of
}

func (k *killing) worker(admin *browser, name string) *worker {
	k.s.t.Helper()
	a := k.s.agent(k.c, name, "")
	if _, err := k.c.CreateWorkspace(k.s.t.Context(), wire.NewWorkspace{Name: name, Agent: a.ID}); err != nil {
		k.s.t.Fatal(err)
	}
	var token wire.Token
	admin.api("POST", "/tokens", wire.NewToken{Name: name, Scopes: []string{"sandboxes:read", "sandboxes:write"}}, &token)
	return &worker{k: k, url: k.s.url, name: name, agent: a.ID, token: token.Secret, boxes: map[string]bool{}, keys: map[string]bool{}}
}

// errLost says that a request was cut by a kill, and that its key tells no more.
var errLost = errors.New("nobody knows whether it was done")

// post sends one request under one key until it is answered.
func (w *worker) post(path, key string, body, out any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	cut := false
	for began := time.Now(); time.Since(began) < 30*time.Second; time.Sleep(50 * time.Millisecond) {
		r, err := http.NewRequestWithContext(context.Background(), "POST", w.url+"/api/v1"+path, bytes.NewReader(text))
		if err != nil {
			return err
		}
		r.Header.Set("Authorization", "Bearer "+w.token)
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Idempotency-Key", key)
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			cut = true
			continue // it was killed, and comes again
		}
		said, err := io.ReadAll(answer.Body)
		_ = answer.Body.Close() // it was read
		var p wire.Problem
		switch {
		case err != nil:
			cut = true
			continue
		case answer.StatusCode/100 == 2:
			return json.Unmarshal(said, out)
		case json.Unmarshal(said, &p) == nil && p.Status == http.StatusConflict && strings.Contains(p.Detail, "still under way") && cut:
			return errLost
		case answer.StatusCode == http.StatusServiceUnavailable:
			continue
		}
		return fmt.Errorf("%s: %d %s", path, answer.StatusCode, said)
	}
	return fmt.Errorf("%s: no answer", path)
}

// work makes sandboxes, runs commands in them and stops them, until it is told to end.
func (w *worker) work() {
	for n := 0; ; n++ {
		select {
		case <-w.k.done:
			return
		default:
		}
		if err := w.round(n); err != nil && !errors.Is(err, errLost) {
			w.k.s.t.Errorf("%s, round %d: %v", w.name, n, err)
			return
		}
	}
}

func (w *worker) round(n int) error {
	var made wire.Sandbox
	err := w.post("/sandboxes", fmt.Sprintf("%s-make-%d", w.name, n), wire.NewSandbox{Agent: w.agent, Hold: true, Workspace: w.name}, &made)
	if errors.Is(err, errLost) {
		w.note(func() { w.lost++ })
		return w.recover()
	}
	if err != nil {
		return fmt.Errorf("make: %w", err)
	}
	w.note(func() { w.boxes[made.ID] = true })
	for i := range 3 {
		key := fmt.Sprintf("%s-%d-%d", w.name, n, i)
		var r wire.ExecResult
		err := w.post("/sandboxes/"+made.ID+"/exec", key, wire.Exec{Command: []string{"sh", "-c", "echo " + key + " >> /work/log; sleep 0.05; echo done"}}, &r)
		switch {
		case errors.Is(err, errLost):
			w.note(func() { w.lost++ })
		case err != nil:
			return fmt.Errorf("command %s in %s: %w", key, made.ID, err)
		case r.Stdout != "done\n" || r.ExitCode != 0:
			return fmt.Errorf("command %s in %s came to %+v", key, made.ID, r)
		default:
			w.note(func() { w.keys[key] = true })
		}
	}
	return w.end(made.ID)
}

func (w *worker) note(what func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	what()
}

// end stops a sandbox and waits until it has gone, so that its workspace is free.
func (w *worker) end(id string) error {
	var s wire.Sandbox
	if err := w.post("/sandboxes/"+id+"/stop", id+"-stop", wire.Stop{Reason: "enough"}, &s); errors.Is(err, errLost) {
		w.note(func() { w.lost++ })
		if err := w.post("/sandboxes/"+id+"/stop", id+"-stop-again", wire.Stop{Reason: "enough"}, &s); err != nil && !strings.Contains(err.Error(), ": 409 ") {
			return fmt.Errorf("stop again: %w", err)
		}
	} else if err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	for began := time.Now(); time.Since(began) < 30*time.Second; time.Sleep(100 * time.Millisecond) {
		if s, err := w.k.c.Sandbox(context.Background(), id); err == nil && !s.State.Live() {
			return nil
		}
	}
	return fmt.Errorf("sandbox %s does not end", id)
}

// recover ends what was made for a request whose answer was lost.
func (w *worker) recover() error {
	for began := time.Now(); time.Since(began) < 30*time.Second; time.Sleep(100 * time.Millisecond) {
		page, err := w.k.c.Sandboxes(context.Background(), w.agent, true, client.Page{})
		if err != nil {
			continue // it was killed again
		}
		if len(page.Items) == 0 {
			return nil
		}
		for _, b := range page.Items {
			if b.State == wire.Running {
				w.note(func() { w.boxes[b.ID] = true })
				if err := w.end(b.ID); err != nil {
					return err
				}
			}
		}
	}
	return errors.New("what was begun before a kill neither runs nor ends")
}

// check looks, after a restart, whether the service knows all sandboxes, and those that it says are running do run.
func (k *killing) check() {
	k.s.t.Helper()
	ctx := k.s.t.Context()
	for _, w := range k.workers {
		var ids map[string]bool
		w.note(func() { ids = maps.Clone(w.boxes) })
		for id := range ids {
			if _, err := k.c.Sandbox(ctx, id); err != nil {
				k.s.t.Errorf("a sandbox that was acknowledged is not known: %s: %v", id, err)
			}
		}
	}
	page, err := k.c.Sandboxes(ctx, "", true, client.Page{Limit: 100})
	if err != nil {
		k.s.t.Error(err)
		return
	}
	for _, b := range page.Items {
		if b.State != wire.Running {
			continue
		}
		r, err := k.c.ExecWait(ctx, b.ID, wire.Exec{Command: []string{"echo", "here"}})
		if err == nil && r.Stdout == "here\n" {
			continue
		}
		time.Sleep(50 * time.Millisecond)
		if now, err2 := k.c.Sandbox(ctx, b.ID); err2 != nil || now.State == wire.Running { // else its client has stopped it meanwhile
			k.s.t.Errorf("sandbox %s is said to run and came to %+v, %v (%v)", b.ID, r, err, err2)
		}
	}
}

// settle ends what runs, and counts what the commands wrote: each at most once, and those that were acknowledged exactly once.
func (k *killing) settle() {
	k.s.t.Helper()
	for _, w := range k.workers {
		if err := w.recover(); err != nil {
			k.s.t.Errorf("%s: %v", w.name, err)
		}
		b := k.s.box(k.c, wire.NewSandbox{Agent: w.agent, Workspace: w.name})
		times := map[string]int{}
		for key := range strings.Lines(b.sh("cat /work/log").Stdout) {
			times[strings.TrimSpace(key)]++
		}
		for key, n := range times {
			if n != 1 {
				k.s.t.Errorf("the command with the key %s ran %d times", key, n)
			}
		}
		for key := range w.keys {
			if times[key] != 1 {
				k.s.t.Errorf("the command with the key %s was acknowledged and ran %d times", key, times[key])
			}
		}
		b.stop()
		if err := k.c.DeleteWorkspace(k.s.t.Context(), w.name); err != nil {
			k.s.t.Error(err)
		}
	}
}

func (k *killing) counts() string {
	boxes, keys, lost := 0, 0, 0
	for _, w := range k.workers {
		boxes, keys, lost = boxes+len(w.boxes), keys+len(w.keys), lost+w.lost
	}
	if boxes < 5 || keys < 10 {
		k.s.t.Errorf("control: only %d sandboxes and %d commands came through", boxes, keys)
	}
	return fmt.Sprintf("%d sandboxes, %d commands, %d requests cut", boxes, keys, lost)
}

// indexed compares the log with its index: none is missing in either, none is there twice.
func (k *killing) indexed() {
	k.s.t.Helper()
	records := k.s.log()
	runs, want := map[string]bool{}, map[int64]bool{}
	var tenant string
	for _, r := range records {
		if r.Tenant != "" {
			tenant = r.Tenant
		}
		if r.Kind == "run.started" {
			runs[r.Run] = true
		}
	}
	for _, r := range records {
		if r.Tenant == tenant || runs[r.Run] {
			want[int64(r.Seq)] = true
		}
	}
	have := map[int64]int{}
	k.s.await("all events are in the index", 10*time.Second, func() bool {
		clear(have)
		for q := (wire.AuditQuery{Limit: 500}); ; {
			page, err := k.c.Audit(k.s.t.Context(), q)
			if err != nil {
				k.s.t.Fatal(err)
			}
			for _, e := range page.Items {
				have[e.Sequence]++
			}
			if q.After = page.Next; q.After == "" {
				break
			}
		}
		return len(have) >= len(want)
	})
	for seq := range want {
		if have[seq] != 1 {
			k.s.t.Errorf("event %d is in the index %d times", seq, have[seq])
		}
	}
	for _, w := range k.workers {
		for id := range w.boxes {
			if !runs[id] {
				k.s.t.Errorf("sandbox %s has no beginning on record", id)
			}
		}
	}
	if dirs, _ := filepath.Glob(filepath.Join(k.s.state, "workspaces", "*")); len(dirs) > 0 {
		entries := []string{}
		for _, d := range dirs {
			inside, _ := os.ReadDir(d) // absent counts as empty
			for _, e := range inside {
				entries = append(entries, filepath.Join(d, e.Name()))
			}
		}
		if len(entries) > 0 {
			k.s.t.Errorf("workspaces are left: %v", entries)
		}
	}
}
