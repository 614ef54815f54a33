package e2e

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// How a sandbox of the churn ends.
const (
	byItself      = "by itself"
	byInterrupt   = "Ctrl-C"
	byTermination = "terminated"
	byTimeout     = "timeout"
	killOwner     = "cofferdam killed"
	killMaker     = "supervisor killed"
	killFirst     = "process 1 killed"
)

func churnEndings() []string {
	return []string{byItself, byInterrupt, byTermination, byTimeout, killOwner, killMaker, killFirst}
}

// churned is one sandbox of the churn, before it is made.
type churned struct {
	row    *churnRow
	ending string
	moment time.Duration // after what is to be hit is there
}

// churnRow is a user at a level, with a state directory and programs of its own.
type churnRow struct {
	*crypt
	tmp    string
	weight int
	pool   *churnPool // which keeps sandboxes ready; nil for none

	mu    sync.Mutex
	count map[string]int           // sandboxes by how they ended
	took  map[string]time.Duration // all together
	alien map[string]bool          // namespaces that were seen
	wrong []string
}

// TestChurn makes sandboxes of every user at every level that this machine has, several at once, and ends them at random moments in every way; then nothing of any of them may be
// left. CHURN says how many, CHURN_SEED repeats one that failed.
func TestChurn(t *testing.T) {
	testenv.Need(t, "userns")
	n := environmentNumber(t, "CHURN", 60)
	seed := uint64(environmentNumber(t, "CHURN_SEED", int(time.Now().UnixNano()&0xffffff)))
	t.Logf("%d sandboxes, CHURN_SEED=%d", n, seed)
	rows := churnRows(t)
	plan := churnPlan(rand.New(rand.NewPCG(seed, 0)), rows, n)
	before := takeCensus(t, rows)
	began := time.Now()
	churn(t, plan)
	took := time.Since(began)
	settleChurn(t, rows)
	left := before.left(t, rows, 20*time.Second)
	t.Logf("\n%s%d sandboxes in %v, %v each; leaks found: %d", churnTable(rows), n, took.Round(time.Second), (took / time.Duration(n)).Round(time.Millisecond), len(left))
	if len(left) > 0 {
		t.Errorf("left behind, seed %d:\n%s", seed, strings.Join(left, "\n"))
	}
	churnSees(t, before, rows)
}

// churnSees leaves something behind, as the control of what finds nothing.
func churnSees(t *testing.T, before census, rows []*churnRow) {
	t.Helper()
	r := rows[0]
	cmd := exec.Command("sleep", "60")
	cmd.Env = []string{r.marks()[0]} // as a program of a sandbox has it
	if err := errors.Join(os.WriteFile(filepath.Join(r.tmp, "forgotten"), nil, 0o600), os.Mkdir(filepath.Join(r.state, "runs", "forgotten"), 0o700), cmd.Start()); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait() //nolint:errcheck // it was killed
	defer cmd.Process.Kill()
	left := strings.Join(before.left(t, rows, 0), "\n")
	for _, want := range []string{"file " + filepath.Join(r.tmp, "forgotten"), "directory without a record", fmt.Sprintf("process %d", cmd.Process.Pid)} {
		if !strings.Contains(left, want) {
			t.Errorf("what was left behind on purpose is not found: no %q in %q", want, left)
		}
	}
}

func environmentNumber(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q is not a number of at least 1", name, text)
	}
	return n
}

// churnRows are the users at the levels that this machine has.
func churnRows(t *testing.T) (rows []*churnRow) {
	t.Helper()
	for _, a := range levels() {
		for _, u := range users() {
			t.Run("has "+a.level+" "+u.name, func(t *testing.T) { testenv.Need(t, a.needs...) }) // where it is promised its absence is a failure
			if testenv.Missing(a.needs...) || a.lacking(u) != "" {
				continue
			}
			own := as{name: u.name, uid: u.uid, level: a.level}
			if a.image {
				own.root = testenv.Tree(t, u.uid)
			}
			rows = append(rows, newChurnRow(t, own))
			if a.kernel == "host" { // once more, from a pool
				warm := newChurnRow(t, own)
				warm.pool = newChurnPool(t, warm)
				rows = append(rows, warm)
			}
		}
	}
	return rows
}

// newChurnRow gives a user a directory of temporary files, too. A level that is slow to start gets a twentieth.
func newChurnRow(t *testing.T, u as) *churnRow {
	t.Helper()
	r := &churnRow{crypt: newCrypt(newHouse(t, u)), weight: 20, count: map[string]int{}, took: map[string]time.Duration{}, alien: map[string]bool{}}
	if u.able().slow {
		r.weight = 1
	}
	r.tmp = filepath.Join(filepath.Dir(r.state), "tmp")
	if err := os.Mkdir(r.tmp, 0o755); err != nil {
		t.Fatal(err)
	}
	r.own(r.tmp)
	return r
}

// name is the row's in tables.
func (r *churnRow) name() string {
	if r.pool != nil {
		return r.as.name + ", pool"
	}
	return r.as.name
}

func churnPlan(random *rand.Rand, rows []*churnRow, n int) (plan []churned) {
	var lots []*churnRow
	for _, r := range rows {
		lots = append(lots, slices.Repeat([]*churnRow{r}, r.weight)...)
	}
	endings := churnEndings()
	for range n {
		c := churned{row: lots[random.IntN(len(lots))], ending: endings[random.IntN(len(endings))]}
		within := 40 * time.Millisecond // about twice as long as a start takes
		switch able := c.row.as.able(); {
		case able.slow:
			within = 4 * time.Second
		case able.kernel != "host":
			within = 400 * time.Millisecond
		}
		c.moment = time.Duration(random.Int64N(int64(within)))
		plan = append(plan, c)
	}
	return plan
}

// churnAtOnce is how many sandboxes are made at once.
const churnAtOnce = 5

// churn carries out the plan, with a "cofferdam gc" after every tenth sandbox.
func churn(t *testing.T, plan []churned) {
	t.Helper()
	next := make(chan churned)
	var working sync.WaitGroup
	for range churnAtOnce {
		working.Go(func() {
			for c := range next {
				if err := c.live(t.Context()); err != nil {
					c.row.note(func() { c.row.wrong = append(c.row.wrong, c.ending+": "+err.Error()) })
				}
			}
		})
	}
	for i, c := range plan {
		next <- c
		if i%10 == 9 {
			if out, err := c.row.command(t.Context(), "gc").CombinedOutput(); err != nil {
				t.Errorf("gc: %v: %s", err, out)
			}
		}
	}
	close(next)
	working.Wait()
}

func (r *churnRow) note(what func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	what()
}

// live makes one sandbox and ends it.
func (c churned) live(ctx context.Context) error {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	line, flags := "while :; do sleep 0.05; done", []string{"run", "-q"}
	switch c.ending {
	case byItself:
		line = "exit 3"
	case byTimeout:
		flags = append(flags, "--timeout", "1s")
	case killMaker, killFirst:
		if c.row.pool != nil { // somebody's is killed
			line = "sleep 0.3; exit 3"
		}
	}
	line = "head -c 1000000 /dev/zero >/tmp/scratch; echo new >made.txt; (sleep 60 &); " + line
	cmd := c.row.command(ctx, append(flags, "--", "sh", "-c", line)...)
	cmd.Env = append(cmd.Env, "TMPDIR="+c.row.tmp)
	cmd.SysProcAttr.Setpgid = true
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &out, 10*time.Second
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // the state tells
		close(ended)
	}()
	hit := c.strike(cmd.Process.Pid, ended)
	<-ended
	how := c.ending
	if !hit {
		how = "ended before it was hit"
	}
	c.row.note(func() {
		c.row.count[how]++
		c.row.took[how] += time.Since(began)
	})
	if ctx.Err() != nil {
		return fmt.Errorf("not over after two minutes: %s", out.String())
	}
	return c.judge(cmd.ProcessState.ExitCode(), hit, out.String())
}

// strike does what ends the sandbox, a while after whom it meets is there, and says whether it met anybody.
func (c churned) strike(owner int, ended <-chan struct{}) bool {
	if c.row.pool != nil {
		return c.strikeWarm(owner, ended)
	}
	signal := syscall.SIGKILL
	var find func() int
	switch c.ending {
	case byItself, byTimeout:
		c.row.see(c.row.first(owner))
		return true
	case byInterrupt, byTermination:
		find, signal = func() int { return c.row.first(owner) }, syscall.SIGINT // when process 1 is there, cofferdam has its handlers
		if c.ending == byTermination {
			signal = syscall.SIGTERM
		}
	case killOwner:
		find = func() int { return owner }
	case killMaker:
		find = func() int { return c.row.maker(owner) }
	case killFirst:
		find = func() int { return c.row.first(owner) }
	}
	for {
		if pid := find(); pid != 0 {
			c.row.see(c.row.first(owner))
			time.Sleep(c.moment)
			if signal != syscall.SIGKILL {
				pid = owner
			}
			select {
			case <-ended: // the number may be another process's by now
				return false
			default:
			}
			if parentOf(pid) >= 0 && syscall.Kill(pid, signal) == nil {
				return true
			}
		}
		select {
		case <-ended:
			return false
		case <-time.After(time.Millisecond):
		}
	}
}

// childOf returns a child of a process that a test accepts, 0 if there is none. Go starts one that ends at once, to see whether the kernel has process descriptors.
func childOf(pid int, accept func(pid int) bool) int {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // the pattern is a good one
	for _, name := range lists {
		data, _ := os.ReadFile(name) // gone is empty
		for field := range strings.FieldsSeq(string(data)) {
			if child, err := strconv.Atoi(field); err == nil && parentOf(child) == pid && accept(child) {
				return child
			}
		}
	}
	return 0
}

// maker is the supervisor of a "cofferdam run", or 0.
func (r *churnRow) maker(owner int) int {
	return childOf(owner, func(pid int) bool { return r.programOf(pid, nil) == "cofferdam-supervisor" })
}

// first is process 1 of the sandbox that a "cofferdam run" has made, or 0: a child of the supervisor's, in another process namespace.
func (r *churnRow) first(owner int) int {
	maker := r.maker(owner)
	if maker == 0 {
		return 0
	}
	own, err := os.Readlink("/proc/self/ns/pid")
	return childOf(maker, func(pid int) bool {
		link, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
		return err == nil && err2 == nil && link != own
	})
}

// see remembers the namespaces of a process inside. It may be called from several goroutines.
func (r *churnRow) see(pid int) {
	if pid == 0 {
		return
	}
	one := &crypt{namespaces: map[string]bool{}}
	one.see(pid)
	r.note(func() { maps.Copy(r.alien, one.namespaces) })
}

// judge compares how a run ended with what was done to it.
func (c churned) judge(code int, hit bool, out string) error {
	want := map[string][]int{byItself: {3}, byTimeout: {124}, byInterrupt: {130, -1}, byTermination: {143, -1}}[c.ending] // -1: it died of the signal, before it listened
	if c.row.pool != nil && (code == 125 || code == 137) {                                                                // another one's stroke met this sandbox
		return nil
	}
	switch {
	case hit && want != nil && !slices.Contains(want, code), hit && code == 0:
		return fmt.Errorf("exit %d after %v: %s", code, c.moment, out)
	case !hit && code <= 0:
		return fmt.Errorf("exit %d of a command that never ends: %s", code, out)
	}
	return nil
}

// settleChurn collects what the killed have left, and reads the records.
func settleChurn(t *testing.T, rows []*churnRow) {
	t.Helper()
	for _, r := range rows {
		r.t = t
		maps.Copy(r.namespaces, r.alien)
		if r.pool != nil {
			r.pool.close(t)
		}
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) { // a supervisor whose owner was killed may be at work yet
			if out := r.do("gc"); out.code != 0 {
				t.Errorf("gc: exit %d: %s", out.code, out.stderr)
			}
			if strings.TrimSpace(r.do("ps", "--json").stdout) == "[]" || time.Now().After(deadline) {
				break
			}
		}
		all := r.runs()
		for _, one := range all {
			if one.State != "ended" || one.How == "" || slices.ContainsFunc(one.Problems, func(p string) bool {
				return !strings.HasPrefix(p, "the sandbox's kernel: ") && !strings.HasPrefix(p, "the changes could not be collected: ")
			}) {
				r.wrong = append(r.wrong, fmt.Sprintf("no good end on record: %+v", one))
			}
		}
		if out := r.do("audit", "verify"); len(all) > 0 && out.code != 0 {
			r.wrong = append(r.wrong, "audit verify: "+out.stdout+out.stderr)
		}
		for _, text := range r.wrong {
			t.Errorf("%s, %s: %s", r.as.level, r.name(), text)
		}
	}
}

// churnTable says how many sandboxes of each row ended how, and how long one took.
func churnTable(rows []*churnRow) string {
	var b strings.Builder
	for _, r := range rows {
		for _, how := range slices.SortedFunc(maps.Keys(r.count), cmp.Compare[string]) {
			fmt.Fprintf(&b, "%-12s %-15s %-24s %5d  %v each\n", r.as.level, r.name(), how, r.count[how], (r.took[how] / time.Duration(r.count[how])).Round(time.Millisecond))
		}
		if r.pool != nil {
			fmt.Fprintf(&b, "%-12s %-15s %s\n", r.as.level, r.name(), r.pool.summary)
		}
	}
	return b.String()
}
