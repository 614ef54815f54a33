package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// newDoctorCommand is "cofferdam doctor".
func (a *app) newDoctorCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this machine can enforce, and prove it",
		Long: `Say what this machine can enforce, what not, and what to do about it. Then make a sandbox and try to get out of it:
each attempt must be refused and found in the audit log under the rule that refused it, and the same act to an allowed place must work.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.doctor(cmd) },
	}
	jsonFlag(cmd)
	inside := &cobra.Command{Use: "inside PORT", Hidden: true, Args: cobra.ExactArgs(1), RunE: func(_ *cobra.Command, args []string) error {
		return json.NewEncoder(a.stdout).Encode(attempts(args[0]))
	}}
	cmd.AddCommand(inside)
	return cmd
}

// diagnosis is what doctor found.
type diagnosis struct {
	Features []call.Feature `json:"features"`
	Checks   []check        `json:"checks"`
	OK       bool           `json:"ok"`
}

// check is one attempt of the self-test. Outcome is BLOCKED, WORKS, OPEN, BROKEN or UNKNOWN; only the first two are good.
type check struct {
	Name     string `json:"name"`
	Outcome  string `json:"outcome"`
	Evidence string `json:"evidence"`
}

func (a *app) doctor(cmd *cobra.Command) error {
	ctx := cmd.Context()
	reply, err := a.consult(ctx, call.Request{Probe: &call.Probe{}})
	if err != nil {
		return err
	}
	if reply.Probed == nil {
		return errors.New("the supervisor sent an unexpected reply")
	}
	pools, err := a.poolFeatures(ctx)
	if err != nil {
		return err
	}
	d := diagnosis{Features: append(reply.Probed.Features, pools...), OK: true}
	for _, f := range d.Features {
		d.OK = d.OK && (f.OK || !f.Need)
	}
	if d.OK {
		if d.Checks, err = a.selfTest(ctx, policy.Container); err != nil {
			return err
		}
		for _, level := range policy.Levels()[1:] {
			a.try(ctx, &d, "level "+level.String(), level)
		}
		a.try(ctx, &d, "gvisor platform kvm", policy.GVisor, "--gvisor-platform", policy.KVM.String())
	}
	left := a.remains()
	d.Features, d.OK = append(d.Features, left), d.OK && left.OK
	for _, c := range d.Checks {
		d.OK = d.OK && (c.Outcome == "BLOCKED" || c.Outcome == "WORKS")
	}
	err = show(a, cmd, d, nil, a.printDiagnosis)
	if err == nil && !d.OK {
		return status(exitProblem)
	}
	return err
}

// try makes the self-test at another level too, or with flags, where the machine seems to deliver that feature. One that does not start is no fault of the machine's
// that concerns others: nothing falls back.
func (a *app) try(ctx context.Context, d *diagnosis, feature string, level policy.Level, flags ...string) {
	at := slices.IndexFunc(d.Features, func(f call.Feature) bool { return f.Name == feature })
	if at < 0 || !d.Features[at].OK {
		return
	}
	checks, err := a.selfTest(ctx, level, flags...)
	if err != nil {
		f := &d.Features[at]
		f.OK, f.Detail = false, err.Error()
		return
	}
	for _, c := range checks {
		c.Name = strings.TrimPrefix(feature, "level ") + ": " + c.Name
		d.Checks = append(d.Checks, c)
	}
}

func (a *app) printDiagnosis(d diagnosis) error {
	w := newTable(a.stdout)
	fmt.Fprintln(w, "THIS MACHINE\t\t")
	for _, f := range d.Features {
		mark := "yes"
		if !f.OK {
			mark = "no"
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\n", f.Name, mark, f.Detail)
		if !f.OK && f.Remedy != "" {
			fmt.Fprintf(w, "  \t\tremedy: %s\n", f.Remedy)
		}
	}
	if len(d.Checks) > 0 {
		fmt.Fprintln(w, "SELF-TEST\t\t")
	}
	for _, c := range d.Checks {
		fmt.Fprintf(w, "  %s\t%s\t%s\n", c.Name, c.Outcome, c.Evidence)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	verdict := "Sandboxes hold on this machine."
	if !d.OK {
		verdict = "Sandboxes do NOT hold on this machine: see above."
	}
	_, err := fmt.Fprintln(a.stdout, verdict)
	return err
}

// controlName is allowed in the self-test and resolves to a server of our own on loopback.
const controlName = "allowed.cofferdam.test"

// attempt is one act inside and how it went there.
type attempt struct {
	Name string `json:"name"`
	// Host, Address and Port say what to look for in the audit log.
	Host    string `json:"host,omitempty"`
	Address string `json:"address,omitempty"`
	Port    uint16 `json:"port,omitempty"`
	// Works says that the act is allowed: the positive control.
	Works bool   `json:"works,omitempty"`
	Error string `json:"error,omitempty"`
}

// attempts tries to get out, from inside. It is what the self-test's sandbox runs.
func attempts(port string) []attempt {
	n, _ := strconv.ParseUint(port, 10, 16) // our own caller wrote it; zero is refused
	list := []attempt{
		{Name: "HTTP to an allowed name", Host: controlName, Port: uint16(n), Works: true},
		{Name: "HTTP to another port of it", Host: controlName, Port: 81},
		{Name: "a name that no rule allows", Host: "secret-0123456789.example.com", Port: 443},
		{Name: "TCP to a public address", Address: "192.88.99.1", Port: 443},
		{Name: "TCP to the metadata service", Address: "169.254.169.254", Port: 80},
		{Name: "TCP over IPv6", Address: "2606:4700::1111", Port: 443},
		{Name: "UDP to a public address (QUIC)", Address: "192.88.99.2", Port: 443},
	}
	for i := range list {
		if err := list[i].try(); err != nil {
			list[i].Error = err.Error()
		}
	}
	return list
}

func (t attempt) try() error {
	target := net.JoinHostPort(t.Host+t.Address, strconv.Itoa(int(t.Port)))
	if strings.HasPrefix(t.Name, "UDP") {
		return sendDatagrams(target)
	}
	client := http.Client{Timeout: 5 * time.Second}
	answer, err := client.Get("http://" + target + "/")
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return errors.New(answer.Status)
	}
	return nil
}

// sendDatagrams sends until the first error comes back, which a refused datagram causes for the one after it.
func sendDatagrams(target string) error {
	conn, err := net.Dial("udp", target)
	if err != nil {
		return err
	}
	defer conn.Close()
	for range 5 {
		if _, err := conn.Write([]byte("x")); err != nil {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
	return nil
}

// selfTest makes a sandbox through the front door, tries to get out, and looks for each refusal in the audit log.
func (a *app) selfTest(ctx context.Context, level policy.Level, flags ...string) ([]check, error) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start the self-test's server: %w", err)
	}
	control := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "reached") })}
	go func() { _ = control.Serve(server) }() // ends with Close below
	defer control.Close()
	port := strconv.Itoa(server.Addr().(*net.TCPAddr).Port)
	tried, run, err := a.runInside(ctx, level, flags, port)
	if err != nil {
		return nil, err
	}
	events, err := a.events(run)
	if err != nil {
		return nil, err
	}
	var checks []check
	for _, t := range tried {
		checks = append(checks, t.judge(events))
	}
	if report, err := audit.Verify(a.auditDir()); err != nil {
		return nil, err
	} else if !report.OK() {
		checks = append(checks, check{"audit log", "BROKEN", "cofferdam audit verify says where"})
	} else {
		checks = append(checks, check{"audit log", "WORKS", fmt.Sprintf("%d records, each linked to the one before", report.Records)})
	}
	return checks, nil
}

// runInside runs this very program in a sandbox and returns what it tried and the run's name.
func (a *app) runInside(ctx context.Context, level policy.Level, flags []string, port string) ([]attempt, ident.Run, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, "", err
	}
	const inside = "/tmp/cofferdam"
	args := append([]string{"run", "--json", "--no-tty", "--isolation", level.String(), "--workspace", "none", "--mount", self + ":" + inside}, flags...)
	if level.HasOwnMachine() { // its root cannot be this machine's; this program needs nothing there
		root, err := os.MkdirTemp("", "cofferdam-doctor-")
		if err != nil {
			return nil, "", err
		}
		defer os.RemoveAll(root) // empty but for what is below
		if err := os.Mkdir(filepath.Join(root, "tmp"), 0o755); err != nil {
			return nil, "", err
		}
		args = append(args, "--rootfs", root)
	}
	cmd := exec.CommandContext(ctx, self, append(args,
		"--allow", controlName+":"+port, "--resolve", controlName+"=127.0.0.1", "--allow-network", "127.0.0.0/8", "--", inside, "doctor", "inside", port)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.Env = append(os.Environ(), "COFFERDAM_STATE="+a.state)
	out, err := cmd.Output()
	if err != nil {
		return nil, "", fault.New(fault.Unsupported, "the self-test's sandbox did not work").Because(fmt.Errorf("%w: %s", err, inert(stderr.String(), 2000)))
	}
	var tried []attempt
	if err := json.Unmarshal(out, &tried); err != nil {
		return nil, "", fmt.Errorf("read the self-test's answers: %w", err)
	}
	for line := range bytes.Lines(stderr.Bytes()) {
		var said struct{ Summary summary }
		if json.Unmarshal(line, &said) == nil && said.Summary.Run != "" {
			run, err := ident.ParseRun(said.Summary.Run)
			return tried, run, err
		}
	}
	return nil, "", errors.New("the self-test's sandbox said no summary")
}

// events reads a run's crossings.
func (a *app) events(run ident.Run) ([]audit.Event, error) {
	var events []audit.Event
	for e, err := range audit.Read(a.auditDir(), audit.Filter{Run: run}) {
		if err != nil {
			return nil, err
		}
		events = append(events, e)
	}
	return events, nil
}

// judge holds what happened inside against what is on record. A failure alone proves nothing: it must be found under the rule that made it.
func (t attempt) judge(events []audit.Event) check {
	c := check{Name: t.Name}
	event, found := t.find(events)
	switch {
	case t.Works && t.Error == "" && found:
		c.Outcome, c.Evidence = "WORKS", "allowed by rule "+event.Rule
	case t.Works:
		c.Outcome, c.Evidence = "BROKEN", "an allowed crossing failed: "+t.Error
	case t.Error == "":
		c.Outcome, c.Evidence = "OPEN", "it got through"
	case found:
		c.Outcome, c.Evidence = "BLOCKED", fmt.Sprintf("record %d, rule %s", event.Seq, event.Rule)
	default:
		c.Outcome, c.Evidence = "UNKNOWN", "it failed, but no record says why: "+t.Error
	}
	return c
}

func (t attempt) find(events []audit.Event) (audit.Event, bool) {
	verdict := "deny"
	if t.Works {
		verdict = "allow"
	}
	for _, e := range events {
		atPort := e.Port == t.Port || e.Protocol == "dns" && !t.Works
		if e.Kind == audit.CrossingDecided && e.Verdict == verdict && atPort && (t.Host != "" && e.Host == t.Host || t.Address != "" && e.Address == t.Address) {
			return e, true
		}
	}
	return audit.Event{}, false
}
