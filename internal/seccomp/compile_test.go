package seccomp

import (
	"go/parser"
	"go/token"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const other = Action(unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM))

// boundary values: around both halves of a 64-bit comparison and around the sign bits.
var interesting = []uint64{0, 1, 2, 3, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff, 0x1_00000000, 0x1_00000001, 0x1_ffffffff,
	0x2_00000000, 0x7fffffff_ffffffff, 0x80000000_00000000, 0xffffffff_00000000, 0xffffffff_fffffffe, math.MaxUint64}

// TestOperators compares every operator with its plain meaning on every pair of boundary values, in both outcomes' positions.
func TestOperators(t *testing.T) {
	number, _ := lookup("ioctl", AMD64)
	for op := EqualTo; op <= MaskedEqual; op++ {
		for _, value := range interesting {
			for _, mask := range interesting {
				c := Condition{Arg: 1, Op: op, Value: value}
				if op == MaskedEqual {
					c.Mask, c.Value = mask, value&mask
				} else if mask != 0 {
					continue
				}
				p := Profile{Default: other, Rules: []Rule{{Calls: []string{"ioctl"}, When: []Condition{c}, Action: Allow}}}
				filter, err := Compile(p, AMD64)
				if err != nil {
					t.Fatal(err)
				}
				for _, arg := range interesting {
					d := data{number: uint32(number), arch: AMD64, args: [6]uint64{0, arg}}
					agree(t, p, AMD64, filter, d)
				}
			}
		}
	}
}

func agree(t *testing.T, p Profile, arch Arch, filter []unix.SockFilter, d data) {
	t.Helper()
	got, _, err := execute(filter, d)
	if err != nil {
		t.Fatalf("%+v: %v", d, err)
	}
	if want := judge(p, arch, d); got != want {
		t.Fatalf("call %#x of %s with %#x: filter says %s, profile says %s\n%+v", d.number, d.arch, d.args, got, want, p)
	}
}

// randomProfile makes a profile that Compile accepts, with calls that have several rules and conditions.
func randomProfile(r *rand.Rand, rules int) Profile {
	actions := []Action{Allow, Log, KillProcess, other, Errno(unix.ENOSYS), Errno(unix.EAFNOSUPPORT)}
	p := Profile{Default: actions[r.IntN(len(actions))]}
	closed := map[string]bool{}
	for range rules {
		rule := Rule{Action: actions[r.IntN(len(actions))]}
		for range r.IntN(4) {
			c := Condition{Arg: uint8(r.IntN(6)), Op: Op(1 + r.IntN(7)), Value: interesting[r.IntN(len(interesting))]}
			if c.Op == MaskedEqual {
				c.Mask = interesting[r.IntN(len(interesting))]
				c.Value &= c.Mask
			}
			rule.When = append(rule.When, c)
		}
		for range 1 + r.IntN(4) {
			name := calls[r.IntN(len(calls))].name
			if !closed[name] && !slices.Contains(rule.Calls, name) {
				rule.Calls = append(rule.Calls, name)
				closed[name] = len(rule.When) == 0
			}
		}
		if len(rule.Calls) > 0 {
			p.Rules = append(p.Rules, rule)
		}
	}
	return p
}

func randomData(r *rand.Rand, p Profile, arch Arch) data {
	d := data{number: uint32(r.IntN(500)), arch: arch}
	if len(p.Rules) > 0 && r.IntN(4) > 0 {
		names := p.Rules[r.IntN(len(p.Rules))].Calls
		if n, _ := lookup(names[r.IntN(len(names))], arch); n >= 0 {
			d.number = uint32(n)
		}
	}
	switch r.IntN(20) {
	case 0:
		d.arch = Arch(unix.AUDIT_ARCH_I386)
	case 1:
		d.number |= x32Bit
	case 2:
		d.number = skipped - uint32(r.IntN(3))
	}
	for i := range d.args {
		d.args[i] = interesting[r.IntN(len(interesting))]
	}
	return d
}

// FuzzCompile holds that a filter means what its profile means, and that the kernel's checker would take it: it does so for every filter
// whose jumps stay inside and which ends with returns, and execute would report anything else.
func FuzzCompile(f *testing.F) {
	for seed := range uint64(60) {
		f.Add(seed, uint16(seed*seed/4))
	}
	f.Fuzz(func(t *testing.T, seed uint64, rules uint16) {
		r := rand.New(rand.NewPCG(seed, 1))
		p := randomProfile(r, int(rules%900))
		for _, arch := range []Arch{AMD64, ARM64} {
			filter, err := Compile(p, arch)
			if err != nil {
				if strings.Contains(err.Error(), "the kernel takes") {
					continue
				}
				t.Fatal(err)
			}
			for range 300 {
				agree(t, p, arch, filter, randomData(r, p, arch))
			}
		}
	})
}

// TestFarJumps needs detours: the rules of one call are longer than a conditional jump reaches, with the search tree behind them.
func TestFarJumps(t *testing.T) {
	p := Profile{Default: other}
	for _, name := range []string{"ioctl", "prctl", "fcntl"} {
		for i := range uint64(300) {
			p.Rules = append(p.Rules, Rule{Calls: []string{name}, When: []Condition{{Arg: 1, Op: EqualTo, Value: 5 * i}}, Action: Errno(unix.Errno(i%9 + 1))})
		}
	}
	for _, arch := range []Arch{AMD64, ARM64} {
		filter, err := Compile(p, arch)
		if err != nil {
			t.Fatal(err)
		}
		if len(filter) < 1000 {
			t.Fatalf("only %d instructions: the test does not reach what it is for", len(filter))
		}
		for _, name := range []string{"ioctl", "prctl", "fcntl", "read"} {
			number, _ := lookup(name, arch)
			for i := range uint64(1510) {
				agree(t, p, arch, filter, data{number: uint32(number), arch: arch, args: [6]uint64{0, i}})
			}
		}
	}
}

func TestCompileRefuses(t *testing.T) {
	allow := func(names ...string) Rule { return Rule{Calls: names, Action: Allow} }
	when := func(c Condition) Profile {
		return Profile{Default: other, Rules: []Rule{{Calls: []string{"read"}, When: []Condition{c}, Action: Allow}}}
	}
	var many Profile
	many.Default = other
	for i := range uint64(2000) {
		many.Rules = append(many.Rules, Rule{Calls: []string{"read"}, When: []Condition{{Op: EqualTo, Value: i}}, Action: Allow})
	}
	for _, c := range []struct {
		name    string
		profile Profile
		arch    Arch
		want    string // "" compiles
	}{
		{"empty profile", Profile{Default: other}, AMD64, ""},
		{"call of another architecture only", Profile{Default: other, Rules: []Rule{allow("open")}}, ARM64, ""},
		{"kill as default", Profile{Default: KillProcess, Rules: []Rule{allow("read")}}, ARM64, ""},
		{"zero profile", Profile{}, AMD64, "no valid default action"},
		{"zero architecture", Profile{Default: other}, 0, "no table"},
		{"i386", Profile{Default: other}, Arch(unix.AUDIT_ARCH_I386), "no table"},
		{"misspelt call", Profile{Default: other, Rules: []Rule{allow("read", "raed")}}, AMD64, `unknown system call "raed"`},
		{"rule without action", Profile{Default: other, Rules: []Rule{{Calls: []string{"read"}}}}, AMD64, "no valid action"},
		{"errno 0 means success", Profile{Default: Action(unix.SECCOMP_RET_ERRNO)}, AMD64, "no valid default action"},
		{"errno too large", Profile{Default: Errno(4096)}, AMD64, "no valid default action"},
		{"kill of one thread", Profile{Default: Action(unix.SECCOMP_RET_KILL_THREAD)}, AMD64, "no valid default action"},
		{"trace", Profile{Default: Action(unix.SECCOMP_RET_TRACE)}, AMD64, "no valid default action"},
		{"rule without calls", Profile{Default: other, Rules: []Rule{{Action: Allow}}}, AMD64, "names no call"},
		{"twice in one rule", Profile{Default: other, Rules: []Rule{allow("read", "read")}}, AMD64, "never reached for read"},
		{"after an unconditional rule", Profile{Default: other, Rules: []Rule{allow("read"), {Calls: []string{"read"}, Action: KillProcess}}}, AMD64, "never reached for read"},
		{"seventh argument", when(Condition{Arg: 6, Op: EqualTo}), AMD64, "0 to 5"},
		{"no operator", when(Condition{Arg: 0}), AMD64, "unknown operator 0"},
		{"operator beyond the last", when(Condition{Op: MaskedEqual + 1}), AMD64, "unknown operator 8"},
		{"value outside the mask", when(Condition{Op: MaskedEqual, Mask: 0xf0, Value: 0x1}), AMD64, "outside the mask"},
		{"mask without masked operator", when(Condition{Op: EqualTo, Mask: 0xf0, Value: 0x10}), AMD64, "only MaskedEqual"},
		{"too long", many, AMD64, "the kernel takes 4096"},
	} {
		t.Run(c.name, func(t *testing.T) {
			filter, err := Compile(c.profile, c.arch)
			switch {
			case c.want == "" && err != nil:
				t.Errorf("error %v", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || filter != nil):
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

func TestActionString(t *testing.T) {
	for a, want := range map[Action]string{Allow: "allow", Log: "log", KillProcess: "kill", Errno(unix.EPERM): "EPERM", 0: "action(0)", Errno(0): "action(0)"} {
		if got := a.String(); got != want {
			t.Errorf("%#x: %q, want %q", uint32(a), got, want)
		}
	}
	for a, want := range map[Arch]string{AMD64: "amd64", ARM64: "arm64", 0: "arch(0)"} {
		if got := a.String(); got != want {
			t.Errorf("%#x: %q, want %q", uint32(a), got, want)
		}
	}
}

// TestTable compares the checked-in numbers with golang.org/x/sys, so that an update of the module is noticed and each new call gets a
// decision in Sandbox (TestSandboxDecidesEveryCall).
func TestTable(t *testing.T) {
	if !slices.IsSortedFunc(calls[:], func(a, b call) int { return strings.Compare(a.name, b.name) }) {
		t.Error("the table is not sorted; lookup needs it to be")
	}
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/sys").Output()
	if err != nil {
		t.Skipf("no go command to find golang.org/x/sys: %v", err)
	}
	line := regexp.MustCompile(`(?m)^\s+SYS_([A-Z0-9_]+)\s+= (\d+)`)
	for _, arch := range []Arch{AMD64, ARM64} {
		text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "unix", "zsysnum_linux_"+arch.String()+".go"))
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for _, m := range line.FindAllStringSubmatch(string(text), -1) {
			name := strings.ToLower(m[1])
			want, _ := strconv.Atoi(m[2])
			if name == "arch_specific_syscall" {
				continue
			}
			found++
			if got, _ := lookup(name, arch); got != want {
				t.Errorf("%s on %s: %d, want %d (go generate)", name, arch, got, want)
			}
		}
		have := 0
		for i := range calls {
			if calls[i].number(arch) >= 0 {
				have++
			}
		}
		if have != found {
			t.Errorf("%s: %d calls, golang.org/x/sys has %d", arch, have, found)
		}
	}
}

// TestImports holds the package to what may be linked into a process that lives for milliseconds.
func TestImports(t *testing.T) {
	allowed := []string{"cmp", "errors", "math", "os", "runtime", "slices", "sort", "strconv", "unsafe", "golang.org/x/sys/unix"}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") || file == "numbers_gen.go" {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range parsed.Imports {
			if path, _ := strconv.Unquote(spec.Path.Value); !slices.Contains(allowed, path) {
				t.Errorf("%s imports %s", file, path)
			}
		}
	}
}

// TestCompileSpeed fails if compiling the largest profile at every start would be felt; the aim is 0.3 ms.
func TestCompileSpeed(t *testing.T) {
	best := time.Hour
	for range 50 {
		start := time.Now()
		if _, err := Compile(Sandbox(), AMD64); err != nil {
			t.Fatal(err)
		}
		best = min(best, time.Since(start))
	}
	if limit := 300 * time.Microsecond; best > limit && !raceEnabled {
		t.Errorf("compiling Sandbox took %v at best, want < %v", best, limit)
	}
	t.Logf("compiling Sandbox takes %v", best)
}

func BenchmarkCompileSandbox(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Compile(Sandbox(), AMD64); err != nil {
			b.Fatal(err)
		}
	}
}
