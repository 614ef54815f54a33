package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/image"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/pool"
	"github.com/cofferdam/cofferdam/internal/sandbox"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// poolFlags are the flags of the commands of a pool, as typed.
type poolFlags struct {
	isolation, image, rootfs string
	size                     int
	ttl                      time.Duration
	foreground               bool
}

// newPoolCommand is "cofferdam pool".
func (a *app) newPoolCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pool",
		Short: "Keep sandboxes ready, so that runs start sooner",
		Long: `Keep sandboxes ready. They are started and nobody's: they see no folder and nothing gets out of them. "cofferdam run" takes one by itself when there
is one of its level and root, and starts one of the same level when there is none. What a run may do does not depend on it, and its record says which it was.

A run gets one only where it would have inherited the same: user, limits, control groups, namespaces. So start the pool where the runs are started.`,
	}
	cmd.AddCommand(a.newPoolStartCommand(), a.newPoolStatusCommand(), a.newPoolStopCommand())
	return cmd
}

// which registers the flags that name a pool.
func (f *poolFlags) which(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.isolation, "isolation", "", "how strong the wall is, a `LEVEL`: container (default), gvisor, vm or vm-emulated")
	cmd.Flags().StringVar(&f.image, "image", "", "use the image `REF` as root instead of this machine's system directories")
	cmd.Flags().StringVar(&f.rootfs, "rootfs", "", "use the directory tree `DIR` as root instead of this machine's")
	cmd.MarkFlagsMutuallyExclusive("image", "rootfs")
	_ = cmd.MarkFlagDirname("rootfs")                               // fails only for an unknown flag
	_ = cmd.RegisterFlagCompletionFunc("isolation", completeLevels) // likewise
}

func (a *app) newPoolStartCommand() *cobra.Command {
	var f poolFlags
	cmd := &cobra.Command{
		Use:   "start",
		Short: "Start a pool, which stays until it is stopped",
		Example: `  cofferdam pool start --size 4
  cofferdam pool start --isolation gvisor --image default`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.poolStart(cmd.Context(), f) },
	}
	f.which(cmd)
	cmd.Flags().IntVar(&f.size, "size", pool.DefaultSize, "keep `N` sandboxes ready")
	cmd.Flags().DurationVar(&f.ttl, "ttl", pool.DefaultTTL, "replace one that nobody took for `DURATION`")
	cmd.Flags().BoolVar(&f.foreground, "foreground", false, "do not go into the background, for a service manager")
	return cmd
}

func (a *app) newPoolStatusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the pools",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := a.pools(cmd.Context())
			return show(a, cmd, all, err, a.printPools)
		},
	}
	jsonFlag(cmd)
	return cmd
}

func (a *app) newPoolStopCommand() *cobra.Command {
	var f poolFlags
	cmd := &cobra.Command{
		Use:   "stop",
		Short: "Stop the pools, or one of them; sandboxes that were taken go on",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.poolStop(cmd.Context(), f) },
	}
	f.which(cmd)
	return cmd
}

// key says which pool the flags name, and the image of its root, if that is one. The caller lets go of that.
func (a *app) key(f poolFlags) (k pool.Key, r root, err error) {
	level := policy.Container
	if f.isolation != "" {
		if level, err = policy.ParseLevel(f.isolation); err != nil {
			return k, r, flagError("isolation", err)
		}
	}
	k.Level = level.String()
	switch {
	case level.HasOwnMachine() && f.image == "":
		return k, r, fault.New(fault.Invalid, "level %s needs an image, which is what its machines have on their disk", level).WithHint("name the one that the runs use: --image default")
	case f.rootfs != "":
		k.RootFS, err = filepath.Abs(f.rootfs)
	case f.image != "":
		var images *image.Store
		if images, err = image.Open(a.imagesDir()); err != nil {
			return k, r, err
		}
		if r.image, err = images.Find(f.image); err != nil {
			return k, r, err
		}
		k.RootFS = r.image.Tree
		r.held, err = r.image.Hold()
	}
	return k, r, err
}

// poolPatience is how long a pool may take to have its first sandbox ready, or to end: a virtual machine that is imitated comes up in seconds, on a machine
// under heavy load in a minute.
const poolPatience = 3 * time.Minute

// poolStart starts a pool, and returns when it has a first sandbox, or cannot make one.
func (a *app) poolStart(ctx context.Context, f poolFlags) error {
	k, r, err := a.key(f)
	if err != nil {
		return err
	}
	defer r.letGo()
	if f.foreground {
		return a.poolServe(ctx, k, r.image.Disk, f)
	}
	if status, err := pool.Ask(ctx, a.state, k); err == nil {
		return fault.New(fault.Conflict, "there is a pool of level %s already, process %d", k.Level, status.PID).WithHint("see it with: cofferdam pool status; end it with: cofferdam pool stop")
	}
	cmd, err := a.poolLaunch(k, f)
	if err != nil {
		return err
	}
	gone := make(chan struct{})
	go func() { // ends with the pool, or with this process
		_ = cmd.Wait() // the log says why
		close(gone)
	}()
	for end := time.After(poolPatience); ; {
		status, err := pool.Ask(ctx, a.state, k)
		switch {
		case err == nil && status.PID == cmd.Process.Pid && status.Ready > 0:
			_, err := fmt.Fprintf(a.stderr, "cofferdam: a pool of %d at level %s is kept by process %d\n", status.Size, k.Level, status.PID)
			return err
		case err == nil && status.PID == cmd.Process.Pid && status.Failed > 0:
			err := fault.New(fault.Unsupported, "no sandbox of level %s can be kept ready: %s", k.Level, status.Trouble).WithHint("see %s", pool.LogPath(a.state, k))
			return errors.Join(err, a.stopOne(ctx, k))
		}
		select {
		case <-gone:
			return fault.New(fault.Unavailable, "the pool ended at once").WithHint("see %s", pool.LogPath(a.state, k))
		case <-end:
			return fault.New(fault.Unavailable, "the pool has no sandbox ready after %v", poolPatience).WithHint("see %s", pool.LogPath(a.state, k))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// poolLaunch starts the pool's process, which outlives this one and its session.
func (a *app) poolLaunch(k pool.Key, f poolFlags) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	path := pool.LogPath(a.state, k)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fault.New(fault.Unavailable, "cannot make %s", filepath.Dir(path)).Because(err)
	}
	log, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	args := []string{"pool", "start", "--foreground", "--isolation", k.Level, "--size", strconv.Itoa(f.size), "--ttl", f.ttl.String()}
	if f.image != "" {
		args = append(args, "--image", f.image)
	} else if k.RootFS != "" {
		args = append(args, "--rootfs", k.RootFS)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = poolEnvironment(a.state)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the pool: %w", err)
	}
	return cmd, nil
}

// poolEnvironment is what the pool needs of this process's environment, in which there may be secrets that it would keep beyond the session.
func poolEnvironment(state string) []string {
	env := []string{"COFFERDAM_STATE=" + state}
	for _, name := range []string{"PATH", "HOME", "LANG", "TZ"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// poolServe is the pool. disk is where a disk made of its root is kept, empty if it is no image's.
func (a *app) poolServe(ctx context.Context, k pool.Key, disk string, f poolFlags) error {
	if insideSandbox() {
		return fault.New(fault.Unsupported, "already inside a sandbox: none can be made in another")
	}
	if _, err := sandbox.OpenStore(a.state); err != nil { // which looks whose it is
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	log := slog.New(slog.NewTextHandler(a.stderr, nil))
	server, err := pool.New(pool.Config{
		State: a.state, Key: k, Size: f.size, TTL: f.ttl, Programs: sandboxPrograms(), Log: log, Reap: a.reapWaiting,
		Start: func(ctx context.Context, name ident.Run, mark *os.File) (pool.Warm, error) {
			return a.warmUp(ctx, k, disk, name, mark)
		},
	})
	if err != nil {
		return err
	}
	return server.Run(ctx, func(err error) {
		if err == nil {
			log.Info("the pool is open", "level", k.Level, "size", f.size)
		}
	})
}

// printPools prints what each pool says of itself.
func (a *app) printPools(all []pool.Status) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(a.stderr, "cofferdam: there is no pool; start one with: cofferdam pool start")
		return err
	}
	here, err := pool.Surroundings(sandboxPrograms()...)
	if err != nil {
		return err
	}
	w := newTable(a.stdout)
	fmt.Fprintln(w, "LEVEL\tREADY\tCLAIMED\tMISSED\tFAILED\tSINCE\tPROCESS\tROOT")
	for _, s := range all {
		root := "this machine's"
		if s.RootFS != "" {
			root = s.RootFS
		}
		fmt.Fprintf(w, "%s\t%d of %d\t%d\t%d\t%d\t%s\t%d\t%s\n", s.Level, s.Ready, s.Size, s.Claimed, s.Missed, s.Failed, since(s.Since), s.PID, inert(root, 80))
		if s.Trouble != "" {
			defer fmt.Fprintln(a.stderr, "cofferdam: level", s.Level+", last trouble:", inert(s.Trouble, 400))
		}
		if s.Surroundings != here {
			defer fmt.Fprintln(a.stderr, "cofferdam: level", s.Level+": "+strangeHere)
		}
	}
	return w.Flush()
}

// pools asks every pool of the person's.
func (a *app) pools(ctx context.Context) ([]pool.Status, error) {
	keys, err := pool.Keys(a.state)
	if err != nil {
		return nil, err
	}
	all := []pool.Status{}
	for _, k := range keys {
		s, err := pool.Ask(ctx, a.state, k)
		if fault.KindOf(err) == fault.NotFound {
			continue // it died; the next of its kind, and stop, clean up
		}
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// strangeHere is why runs that are started where this process was get nothing of a pool.
const strangeHere = "runs started here get none, for this process's limits, control groups, rights, namespaces or programs are not those of the pool"

// poolFeatures is what doctor says of the person's pools.
func (a *app) poolFeatures(ctx context.Context) ([]call.Feature, error) {
	all, err := a.pools(ctx)
	if err != nil {
		return nil, err
	}
	here, err := pool.Surroundings(sandboxPrograms()...)
	var features []call.Feature
	for _, s := range all {
		f := call.Feature{Name: "pool " + s.Level, OK: s.Ready > 0, Detail: fmt.Sprintf("%d of %d wait, kept by process %d", s.Ready, s.Size, s.PID), Remedy: "see " + pool.LogPath(a.state, s.Key)}
		switch {
		case s.Surroundings != here:
			f.OK, f.Detail, f.Remedy = false, strangeHere, "start it where the runs are started: cofferdam pool stop; cofferdam pool start"
		case !f.OK && s.Trouble != "":
			f.Detail = "none waits: " + inert(s.Trouble, 400)
		}
		features = append(features, f)
	}
	return features, err
}

// poolStop ends the pool that the flags name, or all of them.
func (a *app) poolStop(ctx context.Context, f poolFlags) error {
	keys, err := pool.Keys(a.state)
	if err != nil {
		return err
	}
	if f.isolation != "" || f.image != "" || f.rootfs != "" {
		k, r, err := a.key(f)
		if err != nil {
			return err
		}
		defer r.letGo()
		if _, err := pool.Ask(ctx, a.state, k); fault.KindOf(err) == fault.NotFound {
			return err
		}
		keys = []pool.Key{k}
	}
	if len(keys) == 0 {
		_, err := fmt.Fprintln(a.stderr, "cofferdam: there is no pool")
		return err
	}
	for _, k := range keys {
		if err := a.stopOne(ctx, k); err != nil {
			return err
		}
	}
	return pool.Sweep(a.state, a.reapWaiting)
}

func (a *app) stopOne(ctx context.Context, k pool.Key) error {
	ctx, cancel := context.WithTimeout(ctx, poolPatience)
	defer cancel()
	if err := pool.Stop(ctx, a.state, k); err != nil {
		return err
	}
	if err := os.Remove(pool.LogPath(a.state, k)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
