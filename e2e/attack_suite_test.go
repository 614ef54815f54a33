package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// finding is the outcome of one attack. The zero value is unknown, which fails like an open door: a test that says nothing proves nothing.
type finding uint8

const (
	unknown finding = iota
	blocked
	open
	absent // the column has no such attack
)

func (f finding) String() string {
	return [...]string{"UNKNOWN", "BLOCKED", "OPEN", "-"}[f]
}

// outcome is a finding with what shows it.
type outcome struct {
	finding  finding
	evidence string
}

// probe is one attack, made by real programs inside: a shell script whose status 0 means that it got through, and 3 that it could not be tried.
//
// A refusal counts only with attribution: what the script printed must match refused, and where a record is named, the audit log must have it.
type probe struct {
	id, what string
	needs    string // a tool; without it on this machine there is no such attack
	run      string
	refused  string // regular expression
	record   *event // a denial in the audit log
	// control is the same act at an allowed place, in the same sandbox. It must succeed.
	control string
	// only restricts it to "root" or "rootless".
	only string
	// harmful says that it is not to be tried in the control columns, where it would succeed at this machine's cost.
	harmful bool
}

// batch is a set of attacks that do not disturb each other and run in one sandbox.
type batch struct {
	name   string
	flags  []string
	probes []probe
	// allowed says which of the things that reached the world were meant to. Nil: none.
	allowed func(hit) bool
	// files are laid into the project before.
	files func(h *house)
	limit time.Duration
}

// suite makes attacks in a world of its own.
type suite struct {
	*findings
	world *world
}

// TestAttack tries to get out, in every way that is known to have worked somewhere. It prints one line for each attack.
func TestAttack(t *testing.T) {
	needsOfAttacks(t)
	f := newFindings()
	t.Cleanup(func() { // when all users are done
		f.publish()
		f.save(t)
	})
	for _, u := range users() {
		t.Run(u.name, func(t *testing.T) {
			u = u.furnished(t)
			t.Parallel()
			s := &suite{f, newWorld(t)}
			for _, b := range batches() {
				t.Run(b.name, func(t *testing.T) { s.try(t, u, b) })
			}
			t.Run("lending", func(t *testing.T) { s.lending(t, u) })
			for _, x := range append(scenes(), lendingScenes()...) {
				if u.lacks(x.id) {
					continue
				}
				t.Run(x.id, func(t *testing.T) { s.play(t, u, x) })
			}
		})
	}
	t.Run("controls", func(t *testing.T) {
		t.Parallel()
		s := &suite{f, newWorld(t)}
		for _, c := range controls() {
			if _, err := exec.LookPath(c.tool); err != nil {
				continue
			}
			t.Run(c.name, func(t *testing.T) {
				for _, b := range batches() {
					s.compare(t, c, b)
				}
			})
		}
	})
}

func needsOfAttacks(t *testing.T) {
	t.Helper()
	testenv.Need(t, "root", "userns", "tool:ip", "tool:nsenter", "tool:curl", "tool:python3")
}

// judge notes an outcome of ours and fails the test unless it was blocked.
func (s *suite) judge(t *testing.T, u as, id, what string, o outcome) {
	t.Helper()
	s.note(u.column(), id, what, o)
	if o.finding != blocked {
		t.Errorf("%s %v: %s: %s", id, o.finding, what, o.evidence)
	}
}

// try runs a batch in a sandbox of ours and judges it.
func (s *suite) try(t *testing.T, u as, b batch) {
	h := newHouse(t, u.equipped(t))
	probes := u.meets(applicable(b.probes, h.as))
	lay(t, h, probes)
	if b.files != nil {
		b.files(h)
	}
	h.own(h.home)
	before := s.world.mark()
	limit := b.limit
	if limit == 0 {
		limit = 3 * time.Minute
	}
	args := append(append([]string{"run"}, b.flags...), "--", "sh", "cases/run")
	r := s.world.do(h, limit, args...)
	ran := parseCases(r.stdout)
	events := h.events()
	for _, p := range probes {
		o := p.judge(ran[p.id], ran[p.id+".control"], events)
		if o.finding == unknown && len(ran) == 0 {
			o.evidence = "the sandbox did not run: " + lastLine(r.stderr)
		}
		s.judge(t, u, p.id, p.what, o)
	}
	s.judge(t, u, "M-"+b.name, "all of the above together: nothing reached the world but what was allowed", s.leaks(b, before, len(ran) > 0))
}

// leaks looks at what reached the world during a batch.
func (s *suite) leaks(b batch, before int, ran bool) outcome {
	time.Sleep(50 * time.Millisecond) // the world's reports come through a pipe
	hits := s.world.since(before)
	var meant int
	for _, x := range hits {
		if b.allowed == nil || !b.allowed(x) {
			return outcome{open, fmt.Sprintf("%+v", x)}
		}
		meant++
	}
	if !ran || b.allowed != nil && meant == 0 {
		return outcome{unknown, "nothing at all reached the world: the controls have not worked"}
	}
	return outcome{blocked, fmt.Sprintf("%d arrivals, all of them allowed", meant)}
}

// applicable leaves out what is for others, and what needs a tool that there is none of inside.
func applicable(probes []probe, u as) (out []probe) {
	for _, p := range probes {
		if (p.only == "" || p.only == u.name) && (p.needs == "" || u.has(p.needs)) {
			out = append(out, p)
		}
	}
	return out
}

// has says whether a program is there for a user inside: in his own root, or else in this machine's system.
func (u as) has(tool string) bool {
	if u.root == "" {
		_, err := exec.LookPath(tool)
		return err == nil
	}
	for _, dir := range []string{"usr/bin", "usr/sbin"} {
		if _, err := os.Lstat(filepath.Join(u.root, dir, tool)); err == nil {
			return true
		}
	}
	return false
}

// furnished is the user with what his level needs as root, if this machine has what else it needs; else the test is skipped.
func (u as) furnished(t *testing.T) as {
	t.Helper()
	able := u.able()
	testenv.Need(t, able.needs...)
	if reason := able.lacking(u); reason != "" {
		t.Skip(reason)
	}
	if able.image {
		u.root = testenv.Tree(t, u.uid)
	}
	return u
}

// equipped is a furnished user whose root has all the tools of the attacks.
func (u as) equipped(t *testing.T) as {
	t.Helper()
	if u.root != "" {
		u.root = testenv.FullTree(t, u.uid)
	}
	return u
}

// meets adapts the attacks to the user's level.
func (u as) meets(probes []probe) (out []probe) {
	for _, p := range probes {
		other := u.differs(p.id)
		if other.absent != "" {
			continue
		}
		if other.refused != "" {
			p.refused += "|" + other.refused
		}
		p.run += other.more
		out = append(out, p)
	}
	return out
}

// ran is how one script ended.
type ran struct {
	code   int
	output string
}

// judge says what a script's end means.
func (p probe) judge(attack, control *ran, events []event) outcome {
	switch {
	case attack == nil:
		return outcome{unknown, "it did not run"}
	case attack.code == 0:
		return outcome{open, lastLine(attack.output)}
	case attack.code == 3 || attack.code >= 124 && attack.code <= 127 || attack.code == 137:
		return outcome{unknown, fmt.Sprintf("status %d: %s", attack.code, lastLine(attack.output))}
	case !regexp.MustCompile(p.refused).MatchString(attack.output):
		return outcome{unknown, fmt.Sprintf("refused otherwise than by %q: %s", p.refused, lastLine(attack.output))}
	case p.control != "" && control == nil:
		return outcome{unknown, "the same act at an allowed place did not run"}
	case p.control != "" && control.code != 0:
		return outcome{unknown, fmt.Sprintf("the same act is refused at an allowed place with status %d: %s", control.code, lastLine(control.output))}
	}
	evidence := lastLine(attack.output)
	if p.record != nil {
		e, ok := denied(events, *p.record)
		if !ok {
			return outcome{unknown, fmt.Sprintf("refused (%s), but the denial %s is not on record", evidence, p.record.brief())}
		}
		evidence += "; on record: " + e.brief()
	}
	return outcome{blocked, evidence}
}

// brief is the part of a denial that tells why.
func (e event) brief() string {
	place := e.Host + e.Address
	if e.Port != 0 {
		place += ":" + strconv.Itoa(int(e.Port))
	}
	return strings.TrimSpace(e.Protocol + " " + place + " by " + e.Rule)
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	line := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, lines[len(lines)-1])
	return line[:min(len(line), 160)]
}

// driver runs every case, some at once, and prints how each ended. A is the attacking program, SOON the seconds that a tool or a download has, PATIENCE those that the attacking program waits for an answer.
const driver = `cd "$(dirname "$0")" || exit 99
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin A=$PWD/attack SOON=%d PATIENCE=%d; export PATH A SOON PATIENCE
ls *.sh | xargs -P %d -n 1 sh -c 'timeout -s KILL %d sh ./$0 >$0.out 2>&1 </dev/null; echo $? >$0.rc'
for f in *.sh; do
  printf '\n@@ %%s %%s\n' "${f%%.sh}" "$(cat $f.rc)"
  tail -c 3000 $f.out
done
`

// lay writes the cases, their driver and the attacking program into the project.
func lay(t *testing.T, h *house, probes []probe) {
	t.Helper()
	abreast := 8
	if h.as.able().slow {
		abreast = 3
	}
	seconds := func(d time.Duration) int { return int(h.as.patience(d).Seconds()) }
	h.write("cases/run", fmt.Sprintf(driver, seconds(15*time.Second), seconds(5*time.Second), abreast, seconds(45*time.Second)))
	for _, p := range probes {
		h.write("cases/"+p.id+".sh", p.run+"\n")
		if p.control != "" {
			h.write("cases/"+p.id+".control.sh", p.control+"\n")
		}
	}
	program, err := os.ReadFile(attackProgram(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.project, "cases", "attack"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	h.own(h.project)
}

// parseCases reads what the driver printed.
func parseCases(text string) map[string]*ran {
	all := map[string]*ran{}
	for _, part := range strings.Split("\n"+text, "\n@@ ")[1:] {
		head, output, _ := strings.Cut(part, "\n")
		id, code, _ := strings.Cut(head, " ")
		n, err := strconv.Atoi(code)
		if err != nil {
			n = 3 // it left no status
		}
		all[id] = &ran{n, output}
	}
	return all
}

// control is another sandbox, in which the same attacks run for comparison.
type control struct {
	name, tool string
	args       func(dir string) []string
}

func controls() []control {
	return []control{
		{"bwrap", "bwrap", func(dir string) []string {
			return []string{"bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "--bind", dir, dir, "--unshare-all", "--share-net", "--chdir", dir}
		}},
		{"unshare", "unshare", func(string) []string { return []string{"unshare", "-Urnmpf", "--mount-proc"} }},
	}
}

// compare runs a batch in another sandbox, as an ordinary user. Nothing there fails the test: the table tells.
func (s *suite) compare(t *testing.T, c control, b batch) {
	h := newHouse(t, as{name: "rootless", uid: 65533})
	probes := slices.DeleteFunc(applicable(b.probes, h.as), func(p probe) bool { return p.harmful })
	lay(t, h, probes)
	if b.files != nil {
		b.files(h)
	}
	h.own(h.home)
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	cmd := h.command(ctx, "")
	args := append(c.args(h.project), "sh", "cases/run")
	cmd.Path, cmd.Args = args[0], args
	s.world.enter(cmd, h)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Logf("%s: %v", c.name, err)
	}
	all := parseCases(out.String())
	for _, p := range probes {
		o := outcome{unknown, "it did not run"}
		if r := all[p.id]; r != nil {
			o.evidence = lastLine(r.output)
			switch {
			case r.code == 0:
				o.finding = open
			case r.code != 3:
				o.finding = blocked
			}
		}
		s.note(c.name, p.id, p.what, o)
	}
}
