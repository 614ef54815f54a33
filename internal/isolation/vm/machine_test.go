package vm

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/isolation/container"
	"github.com/cofferdam/cofferdam/internal/netns"
	"github.com/cofferdam/cofferdam/internal/scratch"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
	"github.com/cofferdam/cofferdam/internal/terminal"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// insideName is argv[0] of this binary in a machine.
const insideName = "/inside"

// inside is what the tests run there: it says what a copy must not have in common with another.
func inside() {
	var seed [16]byte
	_, _ = rand.Read(seed[:]) // never fails
	id, _ := os.ReadFile("/proc/sys/kernel/random/uuid")
	if path := "/root/left"; len(os.Args) > 1 {
		boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
		left, err := os.ReadFile(path)
		fmt.Printf("%s %q %v ", bytes.TrimSpace(boot), left, err != nil)
		_ = os.WriteFile(path, append(left, os.Args[1]...), 0o600) // the next looks for it
	}
	fmt.Printf("%x %s %s", seed, time.Now().UTC().Format(time.RFC3339), id)
}

// machines is where "make vm" has put the kernel; the test is skipped where it has not been.
func machines(t *testing.T) string {
	t.Helper()
	testenv.Need(t, "userns", "root")
	folder := filepath.Join(testenv.Module(), "bin", boot.FolderName)
	if dir := os.Getenv("COFFERDAM_BIN"); dir != "" {
		folder = filepath.Join(dir, boot.FolderName)
	}
	if _, err := Probe(t.Context(), folder, LevelEmulated); err != nil {
		t.Skipf("needs virtual machines: %v", err)
	}
	return folder
}

// specification asks for a small machine with this binary as its only program.
func specification(t *testing.T) (call.Create, *terminal.Token) {
	t.Helper()
	root := t.TempDir()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	err = os.WriteFile(root+insideName, self, 0o755)
	for _, dir := range []string{"/proc", "/sys", "/dev", "/tmp", "/etc", "/run", "/root"} {
		err = errors.Join(err, os.Mkdir(root+dir, 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	token, secret := terminal.NewToken()
	line, err := json.Marshal(frame.Boot{Control: netip.AddrPortFrom(netns.Gateway4, netns.ControlPort).String(), Token: secret})
	if err != nil {
		t.Fatal(err)
	}
	return call.Create{
		Run: "testtest", Level: LevelEmulated, Hostname: "cofferdam", RootFS: root, Boot: string(line), UIDBase: testBase,
		Limits: call.Limits{Disk: 64 << 20, Memory: 256 << 20},
	}, token
}

func optionsFor(spec call.Create) container.Options {
	return container.Options{IDs: container.PrivilegedIDs(spec.UIDBase)}
}

// run has the runner of a sandbox run this binary inside, and returns what it says.
func run(t *testing.T, s *Sandbox, token *terminal.Token, more ...string) string {
	t.Helper()
	defer s.Listeners.Close()
	l, err := net.FileListener(s.Listeners.TCP)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	context.AfterFunc(ctx, func() { _ = l.Close() })
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	stdin, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	session, err := terminal.Attach(ctx, conn, terminal.Options{
		Token: token, Stdin: stdin, Stdout: &out, Stderr: &out, Start: frame.Start{Args: append([]string{insideName}, more...), Dir: "/", Env: []string{}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if exit, err := session.Run(ctx); err != nil || exit.Code != 0 {
		t.Errorf("exit %+v, %v: %s", exit, err, out.String())
	}
	s.Keep(true) // where there is a place for it
	select {
	case <-s.Done():
	case <-ctx.Done():
		t.Error("the machine outlives its sandbox")
		s.Hurry()
	}
	if trouble := s.Trouble(); trouble != "" {
		t.Error(trouble)
	}
	if _, err := s.Remains(); err != nil {
		t.Error(err)
	}
	return out.String()
}

// TestPrepared finishes machines that were prepared, and looks for what they have in common and must not have.
func TestPrepared(t *testing.T) {
	folder := machines(t)
	const number = 2
	said := make([]string, number)
	for i := range number {
		spec, token := specification(t)
		nobodys := spec
		nobodys.Boot = ""
		began := time.Now()
		p, err := Prepare(t.Context(), folder, nobodys, optionsFor(spec))
		if err != nil {
			t.Fatal(err)
		}
		prepared := time.Since(began)
		began = time.Now()
		s, err := p.Finish(t.Context(), spec, optionsFor(spec))
		if err != nil {
			p.Discard()
			t.Fatal(err)
		}
		finished := time.Since(began)
		said[i] = run(t, s, token)
		t.Logf("prepared in %v, finished in %v, its command had ended %v after the claim; it says %q", prepared, finished, time.Since(began), said[i])
	}
	words := map[string]int{}
	for _, line := range said {
		fields := strings.Fields(line)
		if len(fields) != 3 {
			t.Fatalf("%q", line)
		}
		words[fields[0]]++
		words[fields[2]]++
		if at, err := time.Parse(time.RFC3339, fields[1]); err != nil || time.Since(at).Abs() > time.Minute {
			t.Errorf("its clock says %s, %v", fields[1], err)
		}
	}
	if len(words) != 2*number {
		t.Errorf("machines draw the same random numbers: %q", said)
	}
}

// TestPreparedAsAnother asks a prepared machine for what it cannot become. It has learnt nothing then, and is thrown away.
func TestPreparedAsAnother(t *testing.T) {
	folder := machines(t)
	spec, _ := specification(t)
	p, err := Prepare(t.Context(), folder, spec, optionsFor(spec))
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*call.Create){
		"another size": func(s *call.Create) { s.Limits.Memory *= 2 }, "more processors": func(s *call.Create) { s.Limits.MilliCPUs = 3000 }, "another root": func(s *call.Create) { s.RootFS = t.TempDir() }, "another disk of it": func(s *call.Create) { s.RootDisk = "/nowhere" },
		"another name": func(s *call.Create) { s.Hostname = "other" }, "encrypted scratch": func(s *call.Create) { s.Scratch = scratch.Encrypted }, "open files": func(s *call.Create) { s.Limits.OpenFiles = 100 },
		"a snapshot": func(s *call.Create) { s.Snapshot = &call.Snapshot{} }, "a copy": func(s *call.Create) { s.From = "/nowhere" },
		"more disks": func(s *call.Create) {
			for i := range preparedDisks {
				s.Mounts = append(s.Mounts, call.Mount{Source: "/etc", Target: fmt.Sprintf("/m%d", i)})
			}
		},
	} {
		other := spec
		change(&other)
		if _, err := p.Finish(t.Context(), other, optionsFor(other)); fault.KindOf(err) != fault.Conflict {
			t.Errorf("%s: %v", name, err)
		}
	}
	select {
	case <-p.Gone():
		t.Error("the machine is gone before it was thrown away")
	default:
	}
	p.Discard()
	<-p.Gone()
}
