// Package archtest (MACHINE) holds the import law as a test: which room may know of which, with the reason.
package archtest

import (
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

const module = "github.com/cofferdam/cofferdam/"

// rooms says on which floor each package stands. A new package needs a line here and one in ARCHITECTURE.md.
func rooms() map[string]string {
	return map[string]string{
		"api":            "WORDS", // the wire types are public words
		"internal/ident": "WORDS", "internal/netname": "WORDS", "internal/pathname": "WORDS", "internal/fault": "WORDS", "internal/frame": "WORDS", "internal/seccomp": "WORDS", "internal/inherit": "WORDS", "internal/private": "WORDS",
		"internal/secret": "WORDS", "internal/seal": "WORDS", "internal/receipt": "WORDS",
		"internal/policy": "LAW", "internal/audit": "LAW", "internal/credential": "LAW",
		"internal/gateway": "GATEWAY", "internal/gateway/dns": "GATEWAY", "internal/gateway/tunnel": "GATEWAY", "internal/gateway/plainhttp": "GATEWAY",
		"internal/gateway/inspected": "GATEWAY", "internal/gateway/redact": "GATEWAY",
		"internal/gateway/git": "GATEWAY", "internal/gateway/git/wire": "GATEWAY", "internal/gateway/git/pack": "GATEWAY",
		"internal/gateway/git/lfs": "GATEWAY", "internal/gateway/git/forge": "GATEWAY", "internal/gateway/git/forge/forgetest": "GATEWAY",
		"internal/upstream": "GATEWAY", "internal/confine": "GATEWAY",
		"internal/supervisor": "SANDBOX", "internal/supervisor/call": "SANDBOX", "internal/isolation/container": "SANDBOX", "internal/isolation/gvisor": "SANDBOX", "internal/netns": "SANDBOX",
		"internal/rootfs": "SANDBOX", "internal/workspace": "SANDBOX", "internal/cgroup": "SANDBOX", "internal/runner": "SANDBOX", "internal/runner/files": "SANDBOX",
		"internal/isolation/vm": "SANDBOX", "internal/isolation/kvm": "SANDBOX", "internal/guest": "SANDBOX", "internal/guest/boot": "SANDBOX", "internal/guest/initramfs": "SANDBOX", "internal/disk": "SANDBOX",
		"internal/rights": "SANDBOX", "internal/scratch": "SANDBOX",
		"internal/sandbox": "CONTROL", "internal/terminal": "CONTROL", "internal/preset": "CONTROL", "internal/keeper": "CONTROL", "internal/store": "CONTROL",
		"internal/auth": "CONTROL", "internal/auth/limit": "CONTROL", "internal/auth/mail": "CONTROL", "internal/auth/password": "CONTROL", "internal/auth/totp": "CONTROL",
		"internal/image": "CONTROL", "internal/image/build": "CONTROL", "internal/pool": "CONTROL", "internal/snapshot": "CONTROL",
		"internal/review": "CONTROL", "internal/control": "CONTROL", "internal/control/controltest": "CONTROL", "internal/server": "CONTROL", "internal/web": "CONTROL",
		"internal/testenv": "MACHINE", "internal/archtest": "MACHINE", "internal/config": "MACHINE", "internal/certificate": "MACHINE",
	}
}

// above says which other floors a floor may import. Floors meet only in cmd/.
func above() map[string][]string {
	return map[string][]string{
		"WORDS":   {},
		"LAW":     {"WORDS"},
		"GATEWAY": {"WORDS", "LAW"},
		"SANDBOX": {"WORDS", "LAW"},
		"CONTROL": {"WORDS", "LAW"},
		"MACHINE": {"WORDS"},
	}
}

// forbidden are packages that a program or room must not reach, even through others, with the reason.
func forbidden() []struct{ from, to, reason string } {
	return []struct{ from, to, reason string }{
		{"cmd/cofferdam-runner", "net/http", "what the runner links, an attacker has: it stays small"},
		{"cmd/cofferdam-runner", "crypto/tls", "the runner holds no secret worth a protocol"},
		{"cmd/cofferdam-runner", module + "internal/policy", "nothing inside may decide"},
		{"cmd/cofferdam-runner", module + "internal/audit", "nothing inside may write the record"},
		{"cmd/cofferdam-runner", module + "internal/supervisor", "nothing inside may know how to ask for more"},
		{"cmd/cofferdam-runner", module + "internal/secret", "nothing inside holds a secret"},
		{"cmd/cofferdam-supervisor", module + "internal/secret", "the privileged half holds no credential and no key"},
		{"internal/policy", module + "internal/secret", "policy names credentials and has none"},
		{"internal/audit", module + "internal/secret", "what cannot reach the record cannot leak into it"},
		{"internal/seal", "net/http", "keys do not travel"},
		{"cmd/cofferdam-guest", "net/http", "what the machine's init links, an attacker has: it stays small"},
		{"cmd/cofferdam-guest", module + "internal/policy", "nothing inside may decide"},
		{"cmd/cofferdam-guest", module + "internal/supervisor", "nothing inside may know how to ask for more"},
		{"cmd/cofferdam-guest", module + "internal/secret", "nothing inside holds a secret"},
		{"cmd/cofferdam-supervisor", module + "internal/image", "what comes from a registry is unpacked without privilege over anything else"},
		{"cmd/cofferdam-supervisor", "net/http", "the privileged half never reads a byte that a sandbox wrote to the network"},
		{"cmd/cofferdam-supervisor", "crypto/tls", "as above"},
		{"cmd/cofferdam-supervisor", module + "internal/gateway", "as above"},
		{"cmd/cofferdam-supervisor", module + "internal/upstream", "as above"},
		{"cmd/cofferdam-supervisor", module + "internal/audit", "the log is the control plane's"},
		{"cmd/cofferdam-supervisor", module + "internal/policy", "policy is decided outside privilege; the supervisor gets numbers and paths"},
		{"cmd/cofferdam", module + "internal/isolation/container", "only the supervisor makes sandboxes"},
		{"cmd/cofferdam", module + "internal/isolation/gvisor", "as above"},
		{"cmd/cofferdam", module + "internal/isolation/vm", "as above"},
		{"cmd/cofferdam", module + "internal/isolation/kvm", "as above"},
		{"cmd/cofferdam", module + "internal/guest", "as above"},
		{"cmd/cofferdam", module + "internal/netns", "as above"},
		{"cmd/cofferdam", module + "internal/rootfs", "as above"},
		{"internal/gateway/dns", module + "internal/audit", "protocol rooms translate; the pipeline records"},
		{"internal/gateway/dns", module + "internal/upstream", "protocol rooms translate; the pipeline dials"},
		{"internal/gateway/tunnel", module + "internal/audit", "as above"},
		{"internal/gateway/tunnel", module + "internal/upstream", "as above"},
		{"internal/gateway/plainhttp", module + "internal/audit", "as above"},
		{"internal/gateway/plainhttp", module + "internal/upstream", "as above"},
		{"internal/gateway/inspected", module + "internal/audit", "as above"},
		{"internal/gateway/inspected", module + "internal/upstream", "as above"},
		{"internal/gateway/inspected", module + "internal/policy", "as above"},
		{"internal/gateway/inspected", module + "internal/secret", "credentials are lent by the pipeline; what speaks HTTP/2 sees a header"},
		{"internal/gateway/plainhttp", module + "internal/secret", "as above"},
		{"internal/gateway/git", module + "internal/upstream", "protocol rooms translate; the pipeline dials"},
		{"internal/gateway/git", module + "internal/secret", "credentials are lent by the pipeline; what speaks Git sees none"},
		{"internal/gateway/git/wire", module + "internal/policy", "bytes first, meaning later"},
		{"internal/gateway/git/pack", module + "internal/policy", "it says what a push does, not whether it may"},
		{"internal/gateway/git/lfs", module + "internal/upstream", "as above"},
		{"internal/gateway/git/lfs", module + "internal/secret", "as above"},
		{"internal/gateway/git/forge", module + "internal/upstream", "as above"},
		{"internal/gateway/git/forge", module + "internal/secret", "as above"},
		{"cmd/cofferdam", module + "internal/store", "running a sandbox opens no database: it stays light"},
		{"cmd/cofferdam", module + "internal/server", "as above"},
		{"cmd/cofferdam", module + "internal/control", "as above"},
		{"cmd/cofferdam-runner", module + "api", "nothing inside speaks to the service"},
		{"cmd/cofferdamd", module + "internal/gateway", "what a sandbox sends is read by its keeper, never by the service"},
		{"cmd/cofferdamd", module + "internal/supervisor", "the service asks keepers, which ask the supervisor"},
		{"cmd/cofferdamd", module + "internal/control/controltest", "its passwords are quick to guess"},
		{"client", module + "internal/control", "what others link stands alone"},
		{"internal/review", module + "internal/store", "it is pure"},
		{"internal/gateway", module + "internal/credential", "the gateway is handed grants: it opens no store"},
		{"internal/gateway", module + "internal/gateway/git/forge/forgetest", "tests meet its forges; the gateway meets real ones"},
	}
}

// impure are packages that a pure room must not import itself.
func impure() []string { return []string{"os", "net", "net/http", "time/tzdata", "os/exec", "syscall"} }

// TestPure keeps policy to decisions: it resolves and dials nothing and reads no files.
func TestPure(t *testing.T) {
	all := read(t)
	for _, to := range impure() {
		if all["internal/policy"].imports[to] {
			t.Errorf("internal/policy imports %s: what decides must not depend on the machine", to)
		}
	}
}

// tree is every package of ours: its imports and its doc comment. The test reads the sources itself, because go test caches what it did not see change.
type tree map[string]*pkg

type pkg struct {
	imports map[string]bool
	doc     string
}

func read(t *testing.T) tree {
	t.Helper()
	root := testenv.Module()
	all := tree{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin") && path != root {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") && d.Name() != "archtest_test.go" {
			return nil
		}
		rel, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		return all.add(filepath.ToSlash(rel), path)
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func (all tree) add(name, path string) error {
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly|parser.ParseComments)
	if err != nil {
		return err
	}
	if file.Name.Name == "main" && !strings.HasPrefix(name, "cmd/") && name != "bench" {
		return nil // a generator
	}
	if all[name] == nil {
		all[name] = &pkg{imports: map[string]bool{}}
	}
	if file.Doc != nil {
		all[name].doc += file.Doc.Text()
	}
	for _, spec := range file.Imports {
		to, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return err
		}
		all[name].imports[to] = true
	}
	return nil
}

// reach returns every package that name imports, through ours.
func (all tree) reach(name string, seen map[string]bool) map[string]bool {
	for to := range all[name].imports {
		if seen[to] {
			continue
		}
		seen[to] = true
		if ours, ok := strings.CutPrefix(to, module); ok && all[ours] != nil {
			all.reach(ours, seen)
		}
	}
	return seen
}

func TestFloors(t *testing.T) {
	all, rooms, above := read(t), rooms(), above()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		floor, ok := rooms[name]
		if !strings.HasPrefix(name, "internal/") {
			continue
		}
		if !ok {
			t.Errorf("%s stands on no floor: give it a line in rooms and in ARCHITECTURE.md", name)
			continue
		}
		for to := range all[name].imports {
			ours, isOurs := strings.CutPrefix(to, module)
			if isOurs && rooms[ours] != floor && !slices.Contains(above[floor], rooms[ours]) {
				t.Errorf("%s (%s) imports %s (%s): floors meet only in cmd/", name, floor, ours, rooms[ours])
			}
		}
	}
}

func TestForbidden(t *testing.T) {
	all := read(t)
	for _, f := range forbidden() {
		if all[f.from] == nil {
			t.Errorf("%s does not exist", f.from)
			continue
		}
		if all.reach(f.from, map[string]bool{})[f.to] {
			t.Errorf("%s reaches %s: %s", f.from, f.to, f.reason)
		}
	}
}

// TestRoomLines holds every package comment to its room line, and every room to its line in ARCHITECTURE.md.
func TestRoomLines(t *testing.T) {
	all := read(t)
	picture, err := os.ReadFile(filepath.Join(testenv.Module(), "ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	for name, floor := range rooms() {
		p := all[name]
		if p == nil {
			t.Errorf("%s does not exist: a room that no one needs has no line", name)
			continue
		}
		want := "Package " + filepath.Base(name) + " (" + floor + ") "
		if !strings.HasPrefix(name, "internal/") {
			continue // public: its comment is for users
		}
		if !strings.HasPrefix(p.doc, want) {
			t.Errorf("%s: package comment %.60q, want it to begin with %q", name, p.doc, want)
		}
		if !strings.Contains(string(picture), "`"+strings.TrimPrefix(name, "internal/")+"`") {
			t.Errorf("ARCHITECTURE.md has no line for %s", name)
		}
	}
}

// mayReveal says who may ask a secret for its bytes, and what for.
func mayReveal() map[string]string {
	return map[string]string{
		"internal/secret":         "masks and compares",
		"internal/seal":           "encrypts",
		"internal/credential":     "makes headers, signatures and requests to token endpoints",
		"internal/gateway":        "injects",
		"internal/gateway/redact": "looks for echoes",
		"internal/auth":           "exchanges codes at a sign-in service",
		"internal/auth/totp":      "computes one-time codes",
		"internal/auth/mail":      "signs in at the mail server",
		"cmd/cofferdam":           "shows the person's own token to the server that gave it",
	}
}

// TestReveal holds secrets to the few rooms that must see them.
func TestReveal(t *testing.T) {
	root := testenv.Module()
	for name := range read(t) {
		files, err := filepath.Glob(filepath.Join(root, name, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(data), ".Reveal"+"()") && mayReveal()[name] == "" && !strings.HasSuffix(file, "_test.go") {
				t.Errorf("%s reveals a secret: only %v may", file, slices.Sorted(maps.Keys(mayReveal())))
			}
		}
	}
}

// TestNoInit keeps start-up cheap and state out of packages: no init function anywhere.
func TestNoInit(t *testing.T) {
	root := testenv.Module()
	for name := range read(t) {
		files, err := filepath.Glob(filepath.Join(root, name, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(data), "\nfunc "+"init()") {
				t.Errorf("%s has an init function", file)
			}
		}
	}
}
