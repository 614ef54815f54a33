package seccomp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// libseccompSource reads profiles as lines "number count (argument operator value value2)...", an empty line ending each, and writes
// the filter that libseccomp makes of it, preceded by its length. It declares what it needs of seccomp.h, so that the library is enough.
const libseccompSource = `
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
struct cmp { unsigned int arg; int op; uint64_t a, b; };
extern void *seccomp_init(uint32_t);
extern void seccomp_release(void *);
extern int seccomp_attr_set(void *, int, uint32_t);
extern int seccomp_rule_add_exact_array(void *, uint32_t, int, unsigned int, const struct cmp *);
extern int seccomp_export_bpf(void *, int);
static void fail(const char *what, int r) { fprintf(stderr, "%s: %d\n", what, r); exit(1); }
int main(void) {
	char *line = 0; size_t room = 0;
	for (;;) {
		if (getline(&line, &room, stdin) <= 0) return 0;
		void *ctx = seccomp_init(0x00050001);
		if (!ctx) fail("init", 0);
		int r = seccomp_attr_set(ctx, 2, 0x80000000);
		if (r) fail("attr", r);
		do {
			int nr, used; unsigned int n; char *at = line; struct cmp c[6];
			if (sscanf(at, "%d %u%n", &nr, &n, &used) != 2) break;
			for (unsigned int i = 0; i < n; i++) {
				at += used;
				if (sscanf(at, "%u %d %lu %lu%n", &c[i].arg, &c[i].op, &c[i].a, &c[i].b, &used) != 4) fail("line", i);
			}
			r = seccomp_rule_add_exact_array(ctx, 0x7fff0000, nr, n, c);
			if (r) fail("rule", r);
		} while (getline(&line, &room, stdin) > 0);
		FILE *f = tmpfile();
		if (!f) fail("tmpfile", 0);
		if ((r = seccomp_export_bpf(ctx, fileno(f)))) fail("export", r);
		fseek(f, 0, SEEK_END);
		uint32_t length = ftell(f);
		char *buffer = malloc(length);
		rewind(f);
		if (fread(buffer, 1, length, f) != length) fail("read", 0);
		fclose(f);
		fwrite(&length, 4, 1, stdout);
		fwrite(buffer, 1, length, stdout);
		free(buffer);
		seccomp_release(ctx);
	}
}
`

// libseccompOps are the library's numbers for the operators (enum scmp_compare).
var libseccompOps = map[Op]int{NotEqual: 1, LessThan: 2, LessOrEqual: 3, EqualTo: 4, GreaterOrEqual: 5, GreaterThan: 6, MaskedEqual: 7}

// TestAgainstLibseccomp compares filters with those of the library that container runtimes use: operators, several conditions in one
// rule, several rules for one call.
func TestAgainstLibseccomp(t *testing.T) {
	if Native() != AMD64 {
		t.Skip("the library makes filters for the machine it runs on")
	}
	helper := buildLibseccomp(t)
	r := rand.New(rand.NewPCG(7, 7))
	var profiles []Profile
	var input bytes.Buffer
	for range 200 {
		p := comparableProfile(r)
		profiles = append(profiles, p)
		for _, rule := range p.Rules {
			number, _ := lookup(rule.Calls[0], AMD64)
			fmt.Fprintf(&input, "%d %d", number, len(rule.When))
			for _, c := range rule.When {
				if c.Op == MaskedEqual {
					fmt.Fprintf(&input, " %d %d %d %d", c.Arg, libseccompOps[c.Op], c.Mask, c.Value)
				} else {
					fmt.Fprintf(&input, " %d %d %d 0", c.Arg, libseccompOps[c.Op], c.Value)
				}
			}
			fmt.Fprintln(&input)
		}
		fmt.Fprintln(&input)
	}
	cmd := exec.CommandContext(t.Context(), helper)
	cmd.Stdin, cmd.Stderr = &input, os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	reader := bytes.NewReader(out)
	for _, p := range profiles {
		var length uint32
		if err := binary.Read(reader, binary.LittleEndian, &length); err != nil {
			t.Fatal(err)
		}
		theirs := make([]unix.SockFilter, length/8)
		if err := binary.Read(reader, binary.LittleEndian, theirs); err != nil {
			t.Fatal(err)
		}
		compareFilters(t, r, p, theirs)
	}
}

func compareFilters(t *testing.T, r *rand.Rand, p Profile, theirs []unix.SockFilter) {
	t.Helper()
	ours, err := Compile(p, AMD64)
	if err != nil {
		t.Fatal(err)
	}
	for range 500 {
		d := randomData(r, p, AMD64)
		if d.number > x32Bit && d.number != skipped {
			continue // the library says bad architecture for the x32 bit, we for everything above it
		}
		a, _, err1 := execute(ours, d)
		b, _, err2 := execute(theirs, d)
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		if a != b {
			t.Fatalf("call %d with %#x: ours %s, libseccomp's %s\n%+v", d.number, d.args, a, b, p)
		}
	}
}

// comparableProfile keeps to what the library means: one condition for each argument, one action besides the default, and one rule for
// a call unless its rules compare one argument for equality. With other combinations libseccomp 2.5 merges the rules into one tree
// without a way back, and then refuses what its second rule allows; randomized against judge, ours does not.
func comparableProfile(r *rand.Rand) Profile {
	p := Profile{Default: other}
	for _, name := range []string{"read", "ioctl", "prctl", "socket", "fcntl"} {
		rule := Rule{Calls: []string{name}, Action: Allow}
		if r.IntN(3) == 0 {
			arg := uint8(r.IntN(6))
			for _, i := range r.Perm(len(interesting))[:1+r.IntN(6)] {
				rule.When = []Condition{{Arg: arg, Op: EqualTo, Value: interesting[i]}}
				p.Rules = append(p.Rules, rule)
			}
			continue
		}
		for _, arg := range r.Perm(6)[:1+r.IntN(3)] {
			c := Condition{Arg: uint8(arg), Op: Op(1 + r.IntN(7)), Value: interesting[r.IntN(len(interesting))]}
			if c.Op == MaskedEqual {
				c.Mask = interesting[1+r.IntN(len(interesting)-1)]
				c.Value &= c.Mask
			}
			rule.When = append(rule.When, c)
		}
		p.Rules = append(p.Rules, rule)
	}
	return p
}

func buildLibseccomp(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	source, helper := filepath.Join(dir, "l.c"), filepath.Join(dir, "l")
	if err := os.WriteFile(source, []byte(libseccompSource), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "gcc", "-o", helper, source, "-l:libseccomp.so.2").CombinedOutput()
	if err != nil {
		t.Skipf("no gcc or no libseccomp to compare with: %v %s", err, strings.TrimSpace(string(out)))
	}
	return helper
}
