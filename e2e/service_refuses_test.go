package e2e

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	wire "github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/client"
)

// badStart is one way in which a service cannot start.
type badStart struct {
	name, says, hint string
	env              string
	program          string
	args             []string
}

// TestServiceRefuses: a service that cannot start says why in one line, and in another what to do.
func TestServiceRefuses(t *testing.T) {
	s := newService(someone(t))
	s.start("127.0.0.1:0") // the control: the same service starts where nothing is wrong
	defer s.stop()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, c := range s.badStarts(taken.Addr().String()) {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			cmd := s.program(ctx, c.args...)
			if c.program != "" {
				cmd.Path = c.program
			}
			if c.env != "" {
				cmd.Env = append(cmd.Env, c.env)
			}
			var out, errs bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &errs
			err := cmd.Run()
			if ctx.Err() != nil || err == nil || cmd.ProcessState.ExitCode() < 1 {
				t.Fatalf("it ended with %v\n%s%s", err, out.String(), errs.String())
			}
			lines := strings.Split(strings.TrimRight(errs.String(), "\n"), "\n")
			if len(lines) != 2 || !strings.HasPrefix(lines[0], "cofferdam: ") || !strings.HasPrefix(lines[1], "  hint: ") {
				t.Fatalf("it said:\n%s", errs.String())
			}
			if !strings.Contains(lines[0], c.says) || !strings.Contains(lines[1], c.hint) || strings.Contains(errs.String(), "swordfish") || len(lines[0]) > 400 {
				t.Errorf("it said:\n%s", errs.String())
			}
		})
	}
	if r := s.browser().ask("GET", "/readyz", nil); r.status != 200 {
		t.Errorf("control: the first service answers %d", r.status)
	}
	s.withoutSupervisor()
}

// badStarts prepares them all. At the address taken somebody else listens.
func (s *service) badStarts(taken string) []badStart {
	other := func(name string) string { return "COFFERDAM_STATE=" + filepath.Join(s.home, name) }
	file := func(name, text string) string {
		path := filepath.Join(s.home, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			s.t.Fatal(err)
		}
		return path
	}
	broken := filepath.Join(s.home, "broken")
	if err := os.MkdirAll(filepath.Join(broken, "server"), 0o755); err != nil {
		s.t.Fatal(err)
	}
	file("broken/server/cofferdam.db", strings.Repeat("this is no database\n", 500))
	s.own(s.home)
	alone := filepath.Join(s.home, "alone") // the program without those beside it
	if err := os.Mkdir(alone, 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Link(filepath.Join(s.bin, "cofferdamd"), filepath.Join(alone, "cofferdamd")); err != nil {
		s.t.Fatal(err)
	}
	quiet := []string{"serve", "--listen", "127.0.0.1:0"}
	return []badStart{
		{"the same state directory", "runs already", "another directory", "", "", quiet},
		{"the port is in use", taken, "--listen", other("port"), "", []string{"serve", "--listen", taken}},
		{"a port that is none", "listen", "ADDRESS:PORT", other("x"), "", []string{"serve", "--listen", "127.0.0.1:http"}},
		{"a name to listen on", "listen", "address", other("x"), "", []string{"serve", "--listen", "example.com:80"}},
		{"in the clear for all", "unprotected", "tls", other("x"), "", []string{"serve", "--listen", "0.0.0.0:0", "--tls", "off"}},
		{"a mode that is none", "tls.mode", "acme", other("x"), "", []string{"serve", "--listen", "127.0.0.1:0", "--tls", "maybe"}},
		{"a flag that is none", "--nonsense", "--help", other("x"), "", []string{"serve", "--nonsense"}},
		{"a configuration that is not there", "absent.yaml", "--config", other("x"), "", append(quiet, "--config", filepath.Join(s.home, "absent.yaml"))},
		{"an unknown member", "nonsense", "docs/serve.md", other("x"), "", append(quiet, "--config", file("unknown.yaml", "version: 1\nnonsense: 1\n"))},
		{"no version", "version", "version: 1", other("x"), "", append(quiet, "--config", file("version.yaml", "listen: 127.0.0.1:0\n"))},
		{"no YAML", "broken.yaml", "docs/serve.md", other("x"), "", append(quiet, "--config", file("broken.yaml", "version: [1\n"))},
		{"a store that is none", "store", "sqlite:", other("x"), "", append(quiet, "--store", "mysql://db")},
		{"a store that does not answer", "database does not answer", "--store", other("x"), "", append(quiet, "--store", "postgres://u:swordfish@127.0.0.1:1/db")},
		{"a store that is broken", "database", "backup", "COFFERDAM_STATE=" + broken, "", quiet},
		{"a state directory that is a file", "state directory", "COFFERDAM_STATE", "COFFERDAM_STATE=" + filepath.Join(file("plain", ""), "state"), "", quiet},
		{"a state directory below another's", "state directory", "COFFERDAM_STATE", "COFFERDAM_STATE=/proc/1/state", "", quiet},
		{"programs are missing", "cofferdam is missing", "install", other("alone-state"), filepath.Join(alone, "cofferdamd"), quiet},
	}
}

// withoutSupervisor has a sandbox made by a service that lost the program for it, and then again once it is back.
func (s *service) withoutSupervisor() {
	c := s.setUp().client()
	a := s.agent(c, "worker", "")
	program := filepath.Join(s.bin, "cofferdam-supervisor")
	if err := os.Rename(program, program+"-away"); err != nil {
		s.t.Fatal(err)
	}
	_, err := c.CreateSandbox(s.t.Context(), wire.NewSandbox{Agent: a.ID, Hold: true})
	if e, ok := errors.AsType[*client.Error](err); !ok || e.Code == client.Internal || !strings.Contains(e.Detail, "cofferdam-supervisor") || e.Hint == "" {
		s.t.Errorf("without a supervisor: %v (%+v)", err, e)
	}
	if page, err := c.Sandboxes(s.t.Context(), a.ID, true, client.Page{}); err != nil || len(page.Items) != 0 {
		s.t.Errorf("without a supervisor there lives %+v, %v", page.Items, err)
	}
	if err := os.Rename(program+"-away", program); err != nil {
		s.t.Fatal(err)
	}
	s.box(c, wire.NewSandbox{Agent: a.ID}).stop()
}
