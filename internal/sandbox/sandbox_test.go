package sandbox

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
)

// TestMain lets the test play an owner that dies without a word.
func TestMain(m *testing.M) {
	if dir := os.Getenv("SANDBOX_DIE_IN"); dir != "" {
		store, err := OpenStore(dir)
		if err == nil {
			_, err = store.Begin(Record{Run: ident.Run(os.Getenv("SANDBOX_RUN")), State: Running, Started: time.Now()})
		}
		if err != nil {
			os.Exit(1)
		}
		os.Stdout.WriteString("begun\n")
		time.Sleep(time.Hour)
	}
	os.Exit(m.Run())
}

func open(t *testing.T) (*Store, string) {
	t.Helper()
	dir := t.TempDir()
	store, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	return store, dir
}

func TestLife(t *testing.T) {
	store, _ := open(t)
	run := ident.NewRun()
	live, err := store.Begin(Record{Run: run, State: Running, Command: []string{"true"}, Started: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	if !store.IsLive(run) {
		t.Error("a run that was begun is not live")
	}
	if dead, err := store.Settle(); err != nil || len(dead) != 0 {
		t.Errorf("a live run was taken for dead: %v, %v", dead, err)
	}
	if _, err := store.Begin(Record{Run: run}); err == nil {
		t.Error("one name was given twice")
	}
	label := strings.Repeat("weaker than the end is long ", 20)
	if err := live.Label([]string{label}); err != nil {
		t.Fatal(err)
	}
	if r, err := store.Load(run); err != nil || r.State != Running || !slices.Equal(r.Weaker, []string{label}) {
		t.Errorf("labelled: %+v, %v", r, err)
	}
	if dead, err := store.Settle(); err != nil || len(dead) != 0 {
		t.Errorf("a labelled run was taken for dead: %v, %v", dead, err)
	}
	if err := live.Finish(End{Finished: time.Now(), How: "exit 3", ExitCode: 3, Changed: 2}); err != nil {
		t.Fatal(err)
	}
	if err := live.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := store.Load(run)
	if err != nil || r.State != Ended || r.How != "exit 3" || r.ExitCode != 3 || r.Changed != 2 {
		t.Errorf("after the end: %+v, %v", r, err)
	}
	if dead, err := store.Settle(); err != nil || len(dead) != 0 {
		t.Errorf("an ended run was taken for dead: %v, %v", dead, err)
	}
	if store.IsLive(run) {
		t.Error("an ended run is live")
	}
}

// TestOwnerKilled kills a real owner: the kernel lets go of its lock, and the run is found dead exactly once.
func TestOwnerKilled(t *testing.T) {
	store, dir := open(t)
	run := ident.NewRun()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "SANDBOX_DIE_IN="+dir, "SANDBOX_RUN="+run.String())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	if dead, err := store.Settle(); err != nil || len(dead) != 0 || !store.IsLive(run) {
		t.Fatalf("while the owner lives: %v, %v", dead, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	dead, err := store.Settle()
	if err != nil || len(dead) != 1 || dead[0].Record.Run != run {
		t.Fatalf("after the kill: %v, %v", dead, err)
	}
	if again, err := store.Settle(); err != nil || len(again) != 0 {
		t.Errorf("two reapers got one run: %v, %v", again, err)
	}
	if err := store.Bury(dead[0], End{Finished: time.Now(), How: "killed"}); err != nil {
		t.Fatal(err)
	}
	if r, err := store.Load(run); err != nil || r.State != Ended || r.How != "killed" {
		t.Errorf("buried: %+v, %v", r, err)
	}
	if names, _ := os.ReadDir(filepath.Join(dir, "active")); len(names) != 0 {
		t.Errorf("marks left: %v", names)
	}
}

func TestResolve(t *testing.T) {
	store, _ := open(t)
	now := time.Now()
	for i, run := range []ident.Run{"aaaabbbb", "aaaacccc", "ddddeeee"} {
		if err := store.Create(Record{Run: run, State: Running, Started: now.Add(time.Duration(i) * time.Second)}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		text string
		want ident.Run
		kind fault.Kind
	}{
		{"aaaabbbb", "aaaabbbb", 0}, {"d", "ddddeeee", 0}, {"last", "ddddeeee", 0}, {"aaaab", "aaaabbbb", 0},
		{"aaaa", "", fault.Invalid}, {"zz", "", fault.NotFound}, {"", "", fault.NotFound}, {"../../etc", "", fault.NotFound},
	} {
		r, err := store.Resolve(c.text)
		if r.Run != c.want || (c.want == "" && fault.KindOf(err) != c.kind) {
			t.Errorf("%q: %q, %v", c.text, r.Run, err)
		}
	}
}

// TestBeginAmongLookers begins runs while others look for dead ones and list the living: no run may fail to begin, or be taken for dead.
func TestBeginAmongLookers(t *testing.T) {
	store, _ := open(t)
	done := make(chan struct{})
	var lookers, owners sync.WaitGroup
	for range 4 {
		lookers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				dead, err := store.Settle()
				for _, d := range dead {
					t.Errorf("%s lives and was taken for dead", d.Record.Run)
					d.Release()
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 8 {
		owners.Go(func() {
			for range 100 {
				live, err := store.Begin(Record{Run: ident.NewRun(), State: Running, Command: []string{"true"}, Started: time.Now()})
				if err != nil {
					t.Error(err)
					return
				}
				if err := errors.Join(live.Finish(End{Finished: time.Now(), How: "exit 0"}), live.Close()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	owners.Wait()
	close(done)
	lookers.Wait()
}
