package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const inspectedName = "inspected"

// othersMost is the longest body by which others are measured: their rates show by then.
const othersMost = 1 << 30

// inspecting is everything that takes part where TLS is ended: the API's servers, a client in a sandbox to which the credential is lent, one outside
// who has it, and what else puts a header into requests inside TLS.
type inspecting struct {
	*serving
	in, out *worker
	others  []interceptor
	stop    func()
}

// inspect starts all of it. What inspects runs under the first pin, clients and servers under the second.
func (b *bench) inspect(ctx context.Context, first, second []string) (_ *inspecting, err error) {
	var undo []func()
	i := &inspecting{stop: func() {
		for _, f := range slices.Backward(undo) {
			f()
		}
	}}
	defer func() {
		if err != nil {
			i.stop()
		}
	}()
	if i.serving, err = b.serve(ctx, second...); err != nil {
		return nil, err
	}
	undo = append(undo, i.serving.stop)
	trust := filepath.Join(b.dir, "trust.pem")
	if err := os.WriteFile(trust, []byte(i.Certificate), 0o644); err != nil {
		return nil, err
	}
	if i.in, err = b.insideLending(ctx, i.API, trust, first, second); err != nil {
		return nil, err
	}
	undo = append(undo, i.in.stop)
	if i.out, err = b.outside(ctx, second...); err != nil {
		return nil, err
	}
	undo = append(undo, i.out.stop)
	others, stop := b.interceptors(ctx, trust, first...)
	i.others, undo = others, append(undo, stop)
	return i, nil
}

// insideLending puts a credential into the store and starts a client in a sandbox to whose requests it is lent.
func (b *bench) insideLending(ctx context.Context, port int, trust string, gatewayPin, clientPin []string) (*worker, error) {
	credential := "api-" + strconv.Itoa(port)
	add := exec.CommandContext(ctx, b.cofferdam, "credential", "add", credential, "--host", name, "--port", strconv.Itoa(port), "--path", "/v1/")
	add.Env, add.Stdin = b.environment(), strings.NewReader(realToken+"\n")
	if out, err := add.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("cofferdam credential add: %w: %s", err, firstLine(string(out)))
	}
	policy := filepath.Join(b.dir, credential+".yaml")
	if err := os.WriteFile(policy, fmt.Appendf(nil, `version: 1
egress:
  networks: [127.0.0.0/8]
  rules:
    - hosts: [%s]
      ports: [%d]
credentials:
  - use: %s
    hosts: [%s]
    ports: [%d]
    paths: [/v1/]
    header: Authorization
    env: %s
`, name, port, credential, name, port, tokenVariable), 0o644); err != nil {
		return nil, err
	}
	const seen = "/tmp/bench"
	argv := append(slices.Clone(gatewayPin), "env", "SSL_CERT_FILE="+trust, b.cofferdam, "run", "-q", "--workspace", b.workspace(), "--mount", b.self+":"+seen,
		"--resolve", name+"=127.0.0.1", "--policy", policy, "--")
	return b.work(ctx, append(append(argv, clientPin...), seen, "client"))
}

// subjects has each way carry out the same task: the gateway first, the direct way second.
func (i *inspecting) subjects(t task) []subject {
	t.Host, t.Port, t.Token = loopback, i.API, realToken
	ours := t
	ours.Host, ours.Token = name, ""
	if t.Do == "bulk" {
		t.Count = min(t.Count, othersMost)
	}
	all := []subject{i.in.via(inspectedName, ours), i.out.via(directName, t)}
	for _, o := range i.others {
		if slices.Contains(o.protocols, t.Protocol) {
			through := t
			through.Port, through.Connect, through.Token = o.port, i.API, "of-no-worth"
			all = append(all, i.out.via(o.name, through))
		}
	}
	return all
}

// inspects returns the process that does the work of a subject.
func (i *inspecting) inspects(name string) (pid int, ok bool) {
	if name == inspectedName {
		return i.in.cmd.Process.Pid, true
	}
	for _, o := range i.others {
		if o.name == name {
			return o.cmd.Process.Pid, true
		}
	}
	return 0, false
}
