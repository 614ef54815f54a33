package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/confine"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/image"
	"github.com/cofferdam/cofferdam/internal/image/build"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// buildFlags are the flags of "image build" as typed.
type buildFlags struct {
	from       string
	packages   []string
	recipe     string
	env, cmd   []string
	workdir    string
	refresh    bool
	maxSize    string
	maxFiles   int64
	bestEffort []string
	quiet      bool
	json       bool
}

func (a *app) newImageBuildCommand() *cobra.Command {
	var f buildFlags
	cmd := &cobra.Command{
		Use:   "build NAME",
		Short: "Make an image here, without a container engine",
		Long: `Make an image from files or from packages of this machine's distribution. Nothing of the source is run: no script of a package, no program. Devices, pipes
and sockets are left out, set-id bits are taken off. Equal sources make equal images, with the same digest. Each image gets a bill of materials.

  cofferdam image build base --recipe default                a small Debian userland for agents: shell, git, curl, python3
  cofferdam image build tools --recipe default --packages make,gcc,libc6-dev
  cofferdam image build mine --recipe recipe.yaml            see docs/images.md for what a recipe says
  cofferdam image build app --from ./rootfs                  a directory with a root file system
  docker export box | cofferdam image build box --from - --cmd /bin/sh

Packages are fetched and verified by this machine's apt-get, from its own sources; neither its packages nor its records change.`,
		Args: oneImageName,
		RunE: func(cmd *cobra.Command, args []string) error { return a.buildImage(cmd.Context(), args[0], f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.from, "from", "", "a `PATH`: a directory, or a tar archive (plain, gzip or zstd); - is the standard input")
	flags.StringSliceVar(&f.packages, "packages", nil, "`PACKAGES` and what they depend on, such as bash,git; each NAME, NAME=VERSION or NAME/SUITE")
	flags.StringVar(&f.recipe, "recipe", "", "a recipe: a `FILE`, or default")
	flags.StringArrayVar(&f.env, "env", nil, "a variable that commands start with: `NAME=VALUE`")
	flags.StringArrayVar(&f.cmd, "cmd", nil, "the command that starts where none is given, one `WORD` each time: --cmd bash --cmd --login")
	flags.StringVar(&f.workdir, "workdir", "", "the `DIRECTORY` that commands start in where there is no workspace")
	flags.BoolVar(&f.refresh, "refresh", false, "fetch the package lists anew, for this build")
	flags.StringVar(&f.maxSize, "max-size", "16g", "the `SIZE` that the image may have")
	flags.Int64Var(&f.maxFiles, "max-files", 2_000_000, "how many files, `N`, it may have")
	flags.StringSliceVar(&f.bestEffort, "best-effort", nil, "go without `WHAT`: landlock, where this kernel has none")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "print the digest only")
	flags.BoolVar(&f.json, "json", false, "print JSON: the image, and what is in it")
	cmd.MarkFlagsMutuallyExclusive("quiet", "json")
	cmd.MarkFlagsMutuallyExclusive("from", "packages")
	cmd.MarkFlagsMutuallyExclusive("from", "recipe")
	cmd.MarkFlagsMutuallyExclusive("from", "refresh")
	_ = cmd.MarkFlagFilename("recipe", "yaml", "yml")                                                                                   // fails only for an unknown flag
	_ = cmd.RegisterFlagCompletionFunc("best-effort", cobra.FixedCompletions([]string{"landlock"}, cobra.ShellCompDirectiveNoFileComp)) // likewise
	return cmd
}

func oneImageName(c *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fault.New(fault.Invalid, "name the one image to build").WithHint("%s base --recipe default; %s --help has examples", c.CommandPath(), c.CommandPath())
	}
	ref, err := image.ParseReference(args[0])
	if err == nil && (ref.Registry != "" || ref.Digest != "") {
		err = fault.New(fault.Invalid, "%s names a registry or a digest, but the image is made here", inert(args[0], 300)).WithHint("leave it out: %s", ref.Repository)
	}
	return err
}

// buildImage makes an image and puts it into the store. Whatever ends it before that leaves nothing.
func (a *app) buildImage(ctx context.Context, name string, f buildFlags) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	b := &imageBuild{app: a, flags: f, name: name, began: time.Now()}
	err := b.run(ctx)
	if b.shown {
		fmt.Fprintln(a.stderr)
	}
	if err != nil && ctx.Err() != nil {
		fmt.Fprintln(a.stderr, "cofferdam: interrupted; nothing was kept")
		return status(128 + int(syscall.SIGINT))
	}
	return err
}

// imageBuild is one call of "image build".
type imageBuild struct {
	app    *app
	flags  buildFlags
	name   string
	recipe build.Recipe
	config image.Config
	store  *image.Store
	began  time.Time
	shown  bool // a line of progress that has no end yet
}

func (b *imageBuild) run(ctx context.Context) error {
	o, err := b.settle()
	if err != nil {
		return err
	}
	if b.store, err = b.app.images(); err != nil {
		return err
	}
	built, err := b.source(ctx, o)
	if err != nil {
		return err
	}
	sbom, err := built.SBOM(b.name)
	if err != nil {
		return errors.Join(err, built.Close())
	}
	b.show(build.Step{What: "importing"})
	layer := built.Layer(ctx)
	const header = 4096 // of an entry in the archive with its padding, and more than that
	i, err := b.store.Import(ctx, b.name, layer, image.ImportOptions{
		Config: b.config, SBOM: sbom, Created: built.Newest, Bounds: image.Bounds{Unpacked: o.MaxBytes + b.flags.maxFiles*header, Files: b.flags.maxFiles},
	})
	if err := errors.Join(err, layer.Close(), built.Close()); err != nil {
		return err
	}
	return b.tell(i, built)
}

// settle reads what was typed, before anything is made.
func (b *imageBuild) settle() (o build.Options, err error) {
	f := b.flags
	if f.from == "" && f.recipe == "" && len(f.packages) == 0 {
		return o, fault.New(fault.Invalid, "nothing is named to make the image of").WithHint("--recipe default, --packages bash,git or --from DIRECTORY")
	}
	if o.MaxBytes, err = policy.ParseSize(f.maxSize); err != nil {
		return o, flagError("max-size", err)
	}
	if f.maxFiles < 1 || f.maxFiles > 1<<31 {
		return o, fault.New(fault.Invalid, "--max-files %d: a number from 1 to %d", f.maxFiles, 1<<31)
	}
	for _, what := range f.bestEffort {
		if what != "landlock" {
			return o, fault.New(fault.Invalid, "--best-effort %.40q: unknown", what).WithHint("--best-effort landlock")
		}
	}
	o.MaxFiles, o.Refresh, o.Tell, o.Confine = int(f.maxFiles), f.refresh, b.show, b.confine
	if b.recipe, err = readRecipe(f.recipe); err != nil {
		return o, err
	}
	b.recipe.Packages = append(b.recipe.Packages, f.packages...)
	b.config = image.Config{Env: mergeEnv(b.recipe.Env, f.env), WorkingDir: b.recipe.WorkingDir, Cmd: b.recipe.Cmd}
	if f.workdir != "" {
		b.config.WorkingDir = f.workdir
	}
	if len(f.cmd) > 0 {
		b.config.Cmd = f.cmd
	}
	b.config, err = image.HonourConfig(b.config)
	return o, err
}

// readRecipe reads a recipe from a file, or one that comes with this program.
func readRecipe(name string) (build.Recipe, error) {
	if name == "" {
		return build.Recipe{}, nil
	}
	if !strings.ContainsAny(name, "./") {
		return build.NamedRecipe(name)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return build.Recipe{}, fault.New(fault.Invalid, "the recipe %s cannot be read", name).Because(err)
	}
	return build.ParseRecipe(data)
}

// mergeEnv lets later variables take the place of earlier ones of the same name.
func mergeEnv(first, more []string) []string {
	merged := slices.Clone(first)
	for _, pair := range more {
		name, _, _ := strings.Cut(pair, "=")
		merged = slices.DeleteFunc(merged, func(old string) bool { return strings.HasPrefix(old, name+"=") })
		merged = append(merged, pair)
	}
	return merged
}

// source makes the layer.
func (b *imageBuild) source(ctx context.Context, o build.Options) (*build.Built, error) {
	from := b.flags.from
	switch from {
	case "":
		return build.FromPackages(ctx, b.recipe, o)
	case "-":
		if term.IsTerminal(int(b.app.stdin.Fd())) {
			return nil, fault.New(fault.Invalid, "the standard input is a terminal, not an archive").WithHint("docker export CONTAINER | cofferdam image build %s --from -", b.name)
		}
		f, stop := interruptible(ctx, b.app.stdin)
		defer stop()
		return build.FromTar(ctx, f, o)
	}
	f, err := os.Open(from)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%s cannot be opened", inert(from, 300)).Because(err)
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case info.IsDir():
		return build.FromDir(ctx, filepath.Clean(from), o)
	}
	return build.FromTar(ctx, f, o)
}

// interruptible returns a reader of an open file on which a read ends when ctx does, if it is a pipe. The pipe is opened once more, since how it is read is a
// matter of the open file, which we share with whoever gave it to us.
func interruptible(ctx context.Context, f *os.File) (*os.File, func()) {
	info, err := f.Stat()
	if err != nil || info.Mode()&fs.ModeNamedPipe == 0 {
		return f, func() {}
	}
	own, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return f, func() {} // another user's: what it writes is waited for
	}
	release := context.AfterFunc(ctx, func() { _ = own.SetReadDeadline(time.Unix(1, 0)) }) // a pipe that is not polled is waited for
	return own, func() {
		release()
		_ = own.Close() // it was only read
	}
}

// confine gives up what the rest of this process's life does not need. From here on it reads what a source made, and unpacks it.
func (b *imageBuild) confine() error {
	if _, err := b.store.Sweep(); err != nil {
		return err
	}
	write, place := b.store.Paths()
	err := confine.Image(confine.ImageConfig{WritePaths: write, PlacePath: place, BestEffort: slices.Contains(b.flags.bestEffort, "landlock")})
	if err != nil {
		return fault.New(fault.Unsupported, "this process cannot give up its rights, so it builds nothing").WithHint("%s", fault.HintOf(err)).Because(err)
	}
	return nil
}

// show tells a person what is going on: on a terminal in one line that changes, else a line for each part.
func (b *imageBuild) show(s build.Step) {
	if b.flags.quiet || b.flags.json {
		return
	}
	text := s.What
	switch {
	case s.FetchBytes > 0:
		text += fmt.Sprintf(" %s, %s", plural(s.Of, "package", "packages"), audit.SizeWords(s.FetchBytes))
	case s.Of > 0:
		text += fmt.Sprintf(" %d/%d %s", s.Done, s.Of, s.Detail)
	case s.Detail != "":
		text += " " + s.Detail
	}
	f, isFile := b.app.stderr.(*os.File)
	if isFile && term.IsTerminal(int(f.Fd())) {
		fmt.Fprintf(f, "\r\x1b[Kcofferdam: %s", inert(text, 70))
		b.shown = true
		return
	}
	if s.Done <= 1 {
		fmt.Fprintf(b.app.stderr, "cofferdam: %s\n", inert(text, 200))
	}
}

// tell says what there is now.
func (b *imageBuild) tell(i image.Image, built *build.Built) error {
	a := b.app
	if b.flags.quiet {
		_, err := fmt.Fprintln(a.stdout, i.Digest)
		return err
	}
	took := time.Since(b.began)
	if b.flags.json {
		return a.writeJSON(struct {
			Image    image.Image  `json:"image"`
			Counts   build.Counts `json:"counts"`
			Packages int          `json:"packages"`
			Seconds  float64      `json:"seconds"`
		}{i, built.Counts, len(built.Packages), took.Round(time.Millisecond).Seconds()})
	}
	if b.shown {
		fmt.Fprint(a.stderr, "\r\x1b[K")
		b.shown = false
	}
	what := plural(built.Counts.Files, "file", "files")
	if n := len(built.Packages); n > 0 {
		what = plural(n, "package", "packages") + ", " + what
	}
	fmt.Fprintf(a.stdout, "%s  %s  %s\n", strings.Join(i.Names, " "), i.Digest, audit.SizeWords(i.Size))
	fmt.Fprintf(a.stderr, "cofferdam: %s in %.1f s; start it with: cofferdam run --image %s -- COMMAND\n", what, took.Seconds(), b.name)
	for _, n := range []struct {
		count     int
		one, many string
	}{
		{built.Counts.Special, "device, pipe or socket was left out", "devices, pipes and sockets were left out"},
		{built.Counts.SetID, "file had its set-id bits taken off", "files had their set-id bits taken off"},
		{built.Counts.Other, "directory is empty: another file system is mounted there", "directories are empty: other file systems are mounted there"},
	} {
		if n.count > 0 {
			fmt.Fprintf(a.stderr, "  note: %s\n", plural(n.count, n.one, n.many))
		}
	}
	return nil
}
