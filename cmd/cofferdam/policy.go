package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// policyFile is where "policy init" writes if it is not told where.
const policyFile = "cofferdam.yaml"

func newPolicyCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Write, check and explain policy files",
		Long: `A policy file says what a sandbox may reach and use. Without one nothing is reachable.

  cofferdam policy init                        a commented file that allows nothing
  cofferdam policy init agent.yaml --from last the least policy that the last run needed
  cofferdam policy check agent.yaml            every mistake, with line, column and remedy
  cofferdam policy explain agent.yaml HOST:PORT`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newPolicyInitCommand(a), newPolicyCheckCommand(a), newPolicyExplainCommand(a), newPolicySchemaCommand(a))
	return cmd
}

func newPolicyInitCommand(a *app) *cobra.Command {
	var from string
	var force bool
	cmd := &cobra.Command{
		Use:   "init [FILE]",
		Short: "Write a policy file: one that allows nothing, or the least that a run needed",
		Long: `Write a policy file, cofferdam.yaml if no FILE is named; "-" writes to the standard output.
Without --from it allows nothing, and its comments show what could be written.
With --from RUN it allows what that run used, and lists what was refused as comments. RUN is a run's name, the beginning of one, or "last".`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			file := policyFile
			if len(args) > 0 {
				file = args[0]
			}
			return a.initPolicy(file, from, force)
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "allow what this run used, by its audit log")
	cmd.Flags().BoolVar(&force, "force", false, "replace the file if it exists")
	return cmd
}

func (a *app) initPolicy(file, from string, force bool) error {
	data := policy.Starter()
	if from != "" {
		var err error
		if data, err = a.leastPolicy(from); err != nil {
			return err
		}
	}
	if file == "-" {
		_, err := a.stdout.Write(data)
		return err
	}
	if err := writePolicy(file, data, force); err != nil {
		return err
	}
	_, err := fmt.Fprintf(a.stdout, "wrote %s; read it, then use it with: cofferdam run --policy %s -- COMMAND\n", file, file)
	return err
}

// leastPolicy makes the policy that a run needed. A damaged record stops it: what is missing from the log would be missing from the policy.
func (a *app) leastPolicy(text string) ([]byte, error) {
	run, err := a.auditRun(text)
	if err != nil {
		return nil, err
	}
	var events []audit.Event
	for e, err := range audit.Read(a.auditDir(), audit.Filter{Run: run, Kinds: []audit.Kind{audit.RunStarted, audit.CrossingDecided, audit.CrossingFinished}}) {
		if err != nil {
			return nil, fmt.Errorf("read the audit log of run %s: %w", run, err)
		}
		events = append(events, e)
	}
	if len(events) == 0 {
		return nil, fault.New(fault.NotFound, "the audit log has no events of run %s", run).WithHint("list runs with: cofferdam ps --all")
	}
	return policy.Least(events), nil
}

// writePolicy writes a new file, or with force replaces one at a stroke. It follows no link: what stands there in either case is the file itself.
func writePolicy(file string, data []byte, force bool) error {
	if force {
		return replacePolicy(file, data)
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return fault.New(fault.Conflict, "%s exists", file).WithHint("name another file, or replace it with: --force")
	}
	if err != nil {
		return unwritable(file, err)
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Close()); err != nil {
		return unwritable(file, errors.Join(err, os.Remove(file)))
	}
	return nil
}

func replacePolicy(file string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(file), ".cofferdam-*")
	if err != nil {
		return unwritable(file, err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		return unwritable(file, errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}

func unwritable(file string, err error) error {
	return fault.New(fault.Invalid, "cannot write %s", file).WithHint("name a file in a folder that you can write").Because(err)
}

// checkedPolicy is what "policy check --json" says about one file.
type checkedPolicy struct {
	File     string           `json:"file"`
	OK       bool             `json:"ok"`
	Problems []policy.Problem `json:"problems"`
}

func newPolicyCheckCommand(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check FILE...",
		Short: "Report every mistake with line, column and remedy",
		Long: `Read policy files and report every mistake, one a line: FILE:LINE:COLUMN: PATH: what is wrong; what to write instead.
Warnings are reported too and are no mistakes. The exit code is 0 if all files are in order, 2 if not.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return a.checkPolicies(args, asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array with one object a file")
	return cmd
}

func (a *app) checkPolicies(files []string, asJSON bool) error {
	results := make([]checkedPolicy, len(files))
	var outcome error
	for i, file := range files {
		results[i] = checkPolicy(file)
		if !results[i].OK {
			outcome = status(exitUsage) // the problems are the words
		}
	}
	if err := a.printChecked(results, asJSON); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return outcome
}

func checkPolicy(file string) checkedPolicy {
	result := checkedPolicy{File: file, Problems: []policy.Problem{}}
	p, err := readPolicy(file)
	problems, isProblems := errors.AsType[*policy.Problems](err)
	switch {
	case isProblems:
		result.Problems = problems.List
	case err != nil:
		result.Problems = append(result.Problems, policy.Problem{Message: err.Error(), Remedy: fault.HintOf(err)})
	default:
		result.OK = true
		result.Problems = append(result.Problems, p.Warnings()...)
	}
	return result
}

func (a *app) printChecked(results []checkedPolicy, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(a.stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(results)
	}
	for _, r := range results {
		if len(r.Problems) > 0 {
			list := policy.Problems{File: r.File, List: r.Problems}
			if _, err := fmt.Fprintln(a.stdout, list.Error()); err != nil {
				return err
			}
		}
		if r.OK {
			if _, err := fmt.Fprintf(a.stdout, "%s: in order\n", r.File); err != nil {
				return err
			}
		}
	}
	return nil
}

func newPolicyExplainCommand(a *app) *cobra.Command {
	var asJSON bool
	var protocol string
	cmd := &cobra.Command{
		Use:   "explain FILE HOST:PORT|URL|ADDRESS:PORT|git:UPSTREAM/REPOSITORY [REF]",
		Short: "Say which rule decides about a destination, and why",
		Long: `Say what a policy decides about a destination, which rule decides, and what each other rule has to do with it. A HOST alone is the question for its name.
Nothing is resolved or contacted: where a name may lie is judged when it is dialled, by egress.networks.
With git:UPSTREAM/REPOSITORY it says whether the repository can be read and pushed to, and with a REF what a push may do to it.`,
		Example: `  cofferdam policy explain agent.yaml registry.example.com:443
  cofferdam policy explain agent.yaml git.example.com:22 --protocol tcp
  cofferdam policy explain agent.yaml 10.1.2.3:5432 --protocol tcp
  cofferdam policy explain agent.yaml git:github/acme/site refs/heads/main`,
		Args: cobra.RangeArgs(2, 3),
		RunE: func(_ *cobra.Command, args []string) error {
			if upstream, repository, ok := policy.ParseGitTarget(args[1]); ok {
				return a.explainGit(args[0], upstream, repository, args[2:], protocol, asJSON)
			}
			if len(args) > 2 {
				return fault.New(fault.Invalid, "%.80q is one argument too many", args[2]).WithHint("to ask about a ref, write git:UPSTREAM/REPOSITORY REF")
			}
			return a.explainPolicy(args[0], args[1], protocol, asJSON)
		},
	}
	cmd.Flags().StringVar(&protocol, "protocol", "", "what the program speaks: tls, http or tcp (default: http for port 80, else tls)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object, for git: an array of them")
	return cmd
}

func (a *app) explainGit(file, upstream, repository string, ref []string, protocol string, asJSON bool) error {
	p, err := readPolicy(file)
	if err != nil {
		return err
	}
	if protocol != "" {
		return fault.New(fault.Invalid, "--protocol says nothing about git:").WithHint("leave it out")
	}
	if !p.ServesGit() {
		return fault.New(fault.Invalid, "%s has no Git upstreams", file).WithHint("add a section git, as docs/policy.md shows")
	}
	all, err := p.ExplainGit(upstream, repository, strings.Join(ref, ""))
	if err != nil {
		return err
	}
	if asJSON {
		return json.NewEncoder(a.stdout).Encode(all)
	}
	for _, e := range all {
		if _, err := fmt.Fprint(a.stdout, e); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) explainPolicy(file, target, protocol string, asJSON bool) error {
	p, err := readPolicy(file)
	if err != nil {
		return err
	}
	c, err := policy.ParseTarget(target)
	if err != nil {
		return err
	}
	if protocol != "" {
		w, err := policy.ParseWire(protocol)
		if err != nil || w == policy.WireAuto {
			return fault.New(fault.Invalid, "--protocol %.40q is none", protocol).WithHint("write tls, http or tcp")
		}
		if c.Port == 0 {
			return fault.New(fault.Invalid, "%s names no port", target).WithHint("write %s:PORT, or leave --protocol out", target)
		}
		c.Protocol = map[policy.Wire]policy.Protocol{policy.WireTLS: policy.TLS, policy.WireHTTP: policy.HTTP, policy.WireTCP: policy.TCP}[w]
	}
	e := p.Explain(c)
	if asJSON {
		return json.NewEncoder(a.stdout).Encode(e)
	}
	_, err = fmt.Fprint(a.stdout, e)
	return err
}

func newPolicySchemaCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of policy files, for editors",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := a.stdout.Write(policy.Schema())
			return err
		},
	}
}
