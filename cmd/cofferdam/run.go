package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// runFlags are the flags of "run" as typed.
type runFlags struct {
	policy           string
	ignoreRepository bool
	allow, deny      []string
	networks         []string
	ask              bool
	resolve          []string

	workspace string
	mounts    []string
	env       []string
	rootfs    string
	image     string
	isolation string
	platform  string
	snapshot  string
	from      string

	limits     limitFlags
	bestEffort []string

	tty, noTTY  bool
	json, quiet bool

	agent string // at a server
	local bool   // here, whatever server is logged in to
}

// newRunCommand is "cofferdam run".
func (a *app) newRunCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARG…]",
		Short: "Run a command in a sandbox on the current folder",
		Long: `Run a command in a throw-away sandbox. Inside it is root, sees this machine's system directories and the current folder,
and has no home directory of yours, no environment of yours, and no way out but the gateway, which refuses what policy does not allow.

The folder is an overlay: the command's changes are kept apart. Look at them with "cofferdam diff", take them with "cofferdam apply",
throw them away with "cofferdam drop".

With --workspace DIR:rw or --mount …:rw the host's programs see the same folder. One that listens there on a Unix socket must not be reached, so
programs inside then have none with names (socket: "Address family not supported by protocol"); pairs and pipes work. Use the overlay,
or, where whoever listens in the folder may be reached, --best-effort unix-sockets.

With --image the root is that image's instead, and nothing of this machine is seen but the folder; its variables, its working folder (without a folder of yours)
and, if you name none, its command are taken. An image is pulled or built first: cofferdam image.

Exit status: the command's own; 128+N if signal N ended it; 124 after --timeout; 125 if cofferdam itself failed;
126 if the command cannot be executed; 127 if there is no such command inside.

After "cofferdam login" the sandbox is made at that server, as one of the agent's that --agent names, under its policy: the folder is sent there, and the
changes come back as ever. --local stays on this machine.`,
		Example: `  cofferdam run -- npm install
  cofferdam run --allow @npm -- npm ci
  cofferdam run --allow @pip --allow files.example.org -- pip download requests
  cofferdam run --allow @go --allow-network 10.20.0.0/16 -- go build ./...
  cofferdam run --ask -- ./install.sh
  cofferdam run --policy agent.yaml --timeout 30m -- my-agent
  cofferdam run --image default --isolation gvisor -- python3 script.py
  cofferdam run --image default --isolation vm-emulated --snapshot ready --allow @npm -- npm ci
  cofferdam run --from ready -- npm test
  cofferdam run --agent builder -- make test`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.run(cmd.Context(), f, args) },
	}
	f.register(cmd)
	_ = cmd.RegisterFlagCompletionFunc("agent", a.completeAgents)   // the flag exists
	_ = cmd.RegisterFlagCompletionFunc("from", a.completeSnapshots) // likewise
	return cmd
}

func (f *runFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.SetInterspersed(false) // what follows the command's name belongs to it
	flags.StringVar(&f.policy, "policy", "", "read what is allowed from `FILE`; flags come on top of it")
	flags.BoolVar(&f.ignoreRepository, "ignore-repository-policy", false, "do not narrow by the folder's own cofferdam.yaml")
	flags.StringArrayVar(&f.allow, "allow", nil, "allow `HOST[:PORT]`, *.HOST, tcp:HOST:PORT, ADDRESS:PORT, or a preset: @npm @go @pip @cargo @apt @git")
	flags.StringArrayVar(&f.deny, "deny", nil, "deny `HOST[:PORT]`, whatever else allows it")
	flags.StringArrayVar(&f.networks, "allow-network", nil, "let allowed names resolve into the special-purpose network `CIDR`, for mirrors on private addresses")
	flags.StringArrayVar(&f.resolve, "resolve", nil, "take `HOST=ADDRESS` instead of asking the resolver; policy judges the address as any other")
	flags.BoolVar(&f.ask, "ask", false, "ask at the terminal about destinations that no rule names: once, never in this run, or with --policy always, which is written there")
	flags.StringVar(&f.workspace, "workspace", "", "`DIR[:overlay|rw|ro]` to work on, or none (default: the current folder, overlay)")
	flags.StringArrayVar(&f.mounts, "mount", nil, "show `SOURCE:TARGET[:ro|rw]` inside")
	flags.StringArrayVar(&f.env, "env", nil, "set `NAME=VALUE` inside; NAME alone copies it from here")
	flags.StringVar(&f.rootfs, "rootfs", "", "use the directory tree `DIR` as root instead of this machine's")
	flags.StringVar(&f.image, "image", "", "use the image `REF` as root instead of this machine's system directories; see cofferdam image")
	flags.StringVar(&f.isolation, "isolation", "", "how strong the wall is, a `LEVEL`: container (default), vm-emulated, gvisor or vm; a policy's minimum holds")
	flags.StringVar(&f.platform, "gvisor-platform", "", "at level gvisor, how its kernel has programs run, a `PLATFORM`: systrap (default), or kvm on the processor's virtualisation where that works")
	flags.StringVar(&f.snapshot, "snapshot", "", "keep the virtual machine as `NAME` when the command has ended with 0; see cofferdam snapshot")
	flags.StringVar(&f.from, "from", "", "continue the snapshot `NAME`, as a copy of its own")
	f.limits.register(flags)
	flags.StringSliceVar(&f.bestEffort, "best-effort", nil, "go without `WHAT`: memory, cpus or landlock, where this host cannot enforce it, or unix-sockets, which are refused where they would lead out; the run is labelled")
	flags.BoolVarP(&f.tty, "tty", "t", false, "give the command a terminal (default: if all three streams are one)")
	flags.BoolVarP(&f.noTTY, "no-tty", "T", false, "give the command pipes")
	flags.BoolVar(&f.json, "json", false, "print denials and the summary as JSON lines on standard error")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "print nothing of our own but errors")
	flags.StringVar(&f.agent, "agent", "", "at a server: the agent whose policy is in force, a `NAME`")
	flags.BoolVar(&f.local, "local", false, "on this machine, also where a server is logged in to")
	cmd.MarkFlagsMutuallyExclusive("tty", "no-tty")
	cmd.MarkFlagsMutuallyExclusive("image", "rootfs")
	_ = cmd.MarkFlagFilename("policy", "yaml", "yml")                        // fails only for an unknown flag
	_ = cmd.MarkFlagDirname("rootfs")                                        // likewise
	_ = cmd.RegisterFlagCompletionFunc("allow", completePresets)             // likewise
	_ = cmd.RegisterFlagCompletionFunc("isolation", completeLevels)          // likewise
	_ = cmd.RegisterFlagCompletionFunc("gvisor-platform", completePlatforms) // likewise
	_ = cmd.RegisterFlagCompletionFunc("best-effort", completeLimits)        // likewise
	_ = cmd.RegisterFlagCompletionFunc("scratch", completeScratch)           // likewise
}

func completePresets(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return []string{
		"@npm\tthe registry that npm uses", "@go\tthe module proxy that go uses", "@pip\tthe index that pip uses",
		"@cargo\tthe registry that cargo uses", "@apt\tthe package sources of apt", "@git\tthe remotes of this repository",
	}, cobra.ShellCompDirectiveNoFileComp
}

func completeLevels(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	var names []string
	for _, l := range policy.Levels() {
		names = append(names, l.String())
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func completeLimits(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return dispensable(), cobra.ShellCompDirectiveNoFileComp
}

func completeScratch(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return []string{policy.ScratchMemory.String(), policy.ScratchEncrypted.String()}, cobra.ShellCompDirectiveNoFileComp
}

// dispensable lists what --best-effort can go without.
func dispensable() []string { return []string{"memory", "cpus", "landlock", "unix-sockets"} }

// flagError puts the flag's name before what is wrong with its value.
func flagError(flag string, err error) error {
	text := strings.TrimPrefix(fault.Public(err), "--"+flag+" ")
	return fault.New(fault.Invalid, "--%s: %s", flag, text).WithHint("%s", fault.HintOf(err))
}

// workspaceChoice is the folder to work on.
type workspaceChoice struct {
	dir    string // absolute, links resolved; empty for none
	inside string // where it is seen inside; empty: at the same path, so that messages and caches mean the same in both
	mode   *policy.WorkspaceMode
	alone  bool // no program of this machine works in it
}

// path is where the folder is seen inside, empty if there is none.
func (w workspaceChoice) path() string { return cmp.Or(w.inside, w.dir) }

// chooseWorkspace parses --workspace. The mode is nil where the flag does not say one.
func (f *runFlags) chooseWorkspace() (workspaceChoice, error) {
	if f.workspace == "none" {
		return workspaceChoice{}, nil
	}
	text := f.workspace
	var w workspaceChoice
	if i := lastColon(text); i >= 0 {
		mode, err := policy.ParseWorkspaceMode(text[i+1:])
		if err != nil {
			return w, flagError("workspace", err)
		}
		w.mode, text = &mode, text[:i]
	}
	if text == "" {
		text = "."
	}
	dir, err := filepath.Abs(text)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return w, fault.New(fault.Invalid, "cannot use the folder %s", text).WithHint("name another with --workspace DIR, or --workspace none").Because(err)
	}
	info, err := os.Stat(dir)
	if err != nil || !info.IsDir() {
		return w, fault.New(fault.Invalid, "%s is not a folder", text).WithHint("name another with --workspace DIR").Because(err)
	}
	if _, err := os.ReadDir(dir); err != nil {
		return w, fault.New(fault.Invalid, "the folder %s cannot be read", text).WithHint("name another with --workspace DIR").Because(err)
	}
	if !utf8.ValidString(dir) {
		return w, fault.New(fault.Unsupported, "the folder's name %q is not valid UTF-8", dir).WithHint("rename it, or name another with --workspace DIR")
	}
	w.dir = dir
	return w, nil
}

// lastColon finds the colon before a mode.
func lastColon(s string) int {
	for i := len(s) - 1; i >= 0 && s[i] != '/'; i-- {
		if s[i] == ':' {
			return i
		}
	}
	return -1
}

// checkFolder refuses folders that hold more than work: a home, the root, our own records.
func (a *app) checkFolder(dir string) error {
	for _, reserved := range []struct{ path, what string }{
		{"/", "the whole machine"}, {a.home, "your home directory"}, {a.state, "cofferdam's own records"},
	} {
		if reserved.path == "" {
			continue
		}
		path := reserved.path
		if real, err := filepath.EvalSymlinks(path); err == nil {
			path = real
		}
		if within(dir, path) {
			return fault.New(fault.Invalid, "the folder %s holds %s", dir, reserved.what).
				WithHint("change to a project's folder, or name one with --workspace DIR, or use --workspace none")
		}
	}
	if within(a.state, dir) {
		return fault.New(fault.Invalid, "the folder %s lies in cofferdam's own records", dir)
	}
	return nil
}

// within says whether path is dir or lies below it.
func within(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && (rel == "." || filepath.IsLocal(rel))
}

// run is "cofferdam run" with parsed flags.
func (a *app) run(ctx context.Context, f runFlags, args []string) error {
	began := time.Now()
	if os.Getenv("COFFERDAM_RUN") != "" && os.Getpid() > 1 && insideSandbox() {
		return fault.New(fault.Unsupported, "already inside a sandbox: one cannot be made in another").WithHint("run the command itself")
	}
	there, err := a.server(f.local)
	if err != nil {
		return err
	}
	if there != nil {
		if len(args) == 0 {
			return noCommand()
		}
		return a.runThere(ctx, there, f, args)
	}
	if f.agent != "" {
		return fault.New(fault.Invalid, "--agent names an agent of a server, and this runs on this machine").WithHint("cofferdam login https://SERVER; here --policy FILE says what is allowed")
	}
	k, err := a.openSnapshot(&f)
	if err != nil {
		return err
	}
	w, err := f.chooseWorkspace()
	if k.from != nil {
		w, err = k.workspace()
	}
	if err != nil {
		return err
	}
	if w.dir != "" {
		if err := a.checkFolder(w.dir); err != nil {
			return err
		}
	}
	s, err := a.settle(ctx, f, w)
	if err != nil {
		return err
	}
	if err := k.checkPolicy(s, a.imagesDir()); err != nil {
		return err
	}
	e := &execution{app: a, flags: f, settled: s, args: args, began: began, keepsake: k}
	if err := e.openImage(); err != nil {
		return err
	}
	if len(args) == 0 {
		e.args = e.root.command()
	}
	if len(e.args) == 0 {
		return noCommand()
	}
	code, err := e.run(ctx)
	if err != nil {
		return fmt.Errorf("run: %w", err)
	}
	if code != 0 {
		return status(code)
	}
	return nil
}

func noCommand() error {
	return fault.New(fault.Invalid, "no command").WithHint("cofferdam run -- COMMAND ARGS…")
}

// insideSandbox says whether our own runner is process 1.
func insideSandbox() bool {
	_, err := os.Stat("/run/cofferdam/runner")
	return err == nil
}
