package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// The work that is done with files, in a folder that filesWork.make has filled.
const (
	treeFolders = 200
	treeFiles   = 20_000
	npmPackages = 20
	npmFiles    = 50 // of each package
)

// filesRows has the same work done with many files outside, in sandboxes, and in what they are compared with. Each has a client that stays, so that starts do not count.
func filesRows(ctx context.Context, b *bench) ([]row, error) {
	if !b.have("git", "git") {
		return nil, nil
	}
	f := &filesWork{b: b, dir: filepath.Join(b.dir, "files")}
	defer os.RemoveAll(f.dir) // scratch
	if err := f.make(ctx); err != nil {
		return nil, err
	}
	places, stop, err := f.places(ctx)
	defer stop()
	if err != nil {
		return nil, err
	}
	var rows []row
	for _, w := range f.work {
		var subjects []subject
		for _, p := range places {
			subjects = append(subjects, p.doing(w.task))
		}
		all, err := takeTurns(ctx, b.rounds(3), subjects)
		if err != nil {
			return rows, err
		}
		rows = append(rows, b.filesOf(w.what, all)...)
	}
	more, err := f.machineRow(ctx)
	return append(rows, more...), err
}

// The places.
const (
	insideContainer = "level container"
	insideGVisor    = "level gvisor"
	outsideName     = "outside"
)

// filesOf makes a row for each level, against what is like it.
func (b *bench) filesOf(what string, all []series) (rows []row) {
	all = slices.DeleteFunc(all, func(s series) bool {
		if s.err != nil {
			b.skip(what+", "+s.name, s.err.Error())
		}
		return s.err != nil
	})
	type beside struct {
		name string
		aim  aim
	}
	for _, level := range []struct {
		name    string
		besides []beside
	}{
		{insideContainer, []beside{{outsideName, atMost(1.11)}, {podmanName, noAim()}}}, // nine tenths of the speed
		{insideGVisor, []beside{{outsideName, noAim()}, {runscName, atMost(1)}}},
	} {
		ours, ok := find(all, level.name)
		if !ok {
			continue
		}
		r := row{what: what + ", inside " + level.name, unit: "ms", ours: ours}
		for _, x := range level.besides {
			if o, ok := find(all, x.name); ok {
				r.others = append(r.others, against(o, x.aim))
			}
		}
		rows = append(rows, r)
	}
	return rows
}

// filesWork is the work, and two folders alike to do it in: one for sandboxes, below whose overlays nothing may change, and one for those that write to it.
type filesWork struct {
	b    *bench
	dir  string
	work []filesTask
}

type filesTask struct {
	what string
	task func(folder string) runTask
}

func (f *filesWork) ours() string   { return filepath.Join(f.dir, "ours") }
func (f *filesWork) theirs() string { return filepath.Join(f.dir, "theirs") }

// environmentIn is what work is done with in a folder. Nothing of it reaches a network.
func environmentIn(folder, programs string) []string {
	return []string{"PATH=" + programs + "/usr/bin:/bin", "HOME=" + folder, "TMPDIR=" + folder, "GIT_CONFIG_NOSYSTEM=1", "GOCACHE=" + folder + "/gocache", "GOMODCACHE=" + folder + "/gomod",
		"GOPROXY=off", "GOSUMDB=off", "GOTOOLCHAIN=local", "GOTELEMETRY=off", "GOFLAGS=-trimpath", "CGO_ENABLED=0"}
}

// make fills the first folder and copies it.
func (f *filesWork) make(ctx context.Context) error {
	if err := f.makeTree(ctx); err != nil {
		return err
	}
	if err := f.makeProgram(ctx); err != nil {
		f.b.skip("go build", err.Error())
	}
	if err := f.makePackages(ctx); err != nil {
		f.b.skip("npm ci", err.Error())
	}
	return say(ctx, f.dir, nil, "cp", "-a", f.ours(), f.theirs())
}

// say runs a program that prepares something.
func say(ctx context.Context, dir string, env []string, argv ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Env = dir, env
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", argv[0], argv[1], err, firstLine(string(out)))
	}
	return nil
}

// treeTime is when the tree's files were changed: long ago, so that git does not look into them.
func treeTime() time.Time { return time.Unix(1_700_000_000, 0) }

// makeTree makes a large work tree. Git is told to compare size and whole seconds only, since the rest differs between file systems and it would read every file.
func (f *filesWork) makeTree(ctx context.Context) error {
	tree := filepath.Join(f.ours(), "tree")
	for i := range treeFiles {
		dir := filepath.Join(tree, fmt.Sprintf("d%02d/e%02d", i%treeFolders/20, i%20))
		if i < treeFolders {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
		}
		path := filepath.Join(dir, fmt.Sprintf("file%d.txt", i))
		if err := os.WriteFile(path, []byte(strings.Repeat(fmt.Sprintf("line of file %d\n", i), 40)), 0o644); err != nil {
			return err
		}
		if err := os.Chtimes(path, treeTime(), treeTime()); err != nil {
			return err
		}
	}
	env := append(environmentIn(f.ours(), ""), "GIT_AUTHOR_NAME=bench", "GIT_AUTHOR_EMAIL=bench@example.com", "GIT_COMMITTER_NAME=bench", "GIT_COMMITTER_EMAIL=bench@example.com")
	for _, args := range [][]string{{"init", "-q", "-b", "main"}, {"config", "core.checkStat", "minimal"}, {"config", "core.trustctime", "false"}, {"config", "core.compression", "0"},
		{"config", "core.fsync", "none"}, {"config", "gc.auto", "0"}, {"add", "."}, {"commit", "-q", "-m", "all"}, {"repack", "-a", "-d", "-q"}} {
		if err := say(ctx, tree, env, append([]string{"git"}, args...)...); err != nil {
			return err
		}
	}
	f.work = append(f.work, filesTask{fmt.Sprintf("`git status` of %d files", treeFiles), status})
	return nil
}

// status is git's, which must find nothing changed.
func status(folder string) runTask {
	return runTask{Argv: []string{"/bin/sh", "-c", `test -z "$(git --no-optional-locks status --porcelain)"`}, Dir: filepath.Join(folder, "tree"), Env: append(environmentIn(folder, ""), "GIT_CEILING_DIRECTORIES="+folder)}
}

// places opens a client in each place. One that does not come up says so at its first task.
func (f *filesWork) places(ctx context.Context) (all []place, stop func(), err error) {
	stop = func() {
		for _, p := range all {
			p.via.stop()
		}
		f.b.afterRunsc()
	}
	add := func(p place, failed error) {
		if err == nil && failed == nil {
			all = append(all, p)
		}
		err = firstError(err, failed)
	}
	add(f.b.sandboxed(ctx, insideContainer, f.ours()))
	if f.b.haveGVisor() {
		add(f.b.sandboxed(ctx, insideGVisor, f.ours(), "--isolation", "gvisor"))
	}
	out, failed := f.b.outside(ctx)
	add(place{outsideName, f.theirs(), out}, failed)
	if os.Getuid() != 0 || !f.b.have("runc", "runc") {
		return all, stop, err
	}
	root := filepath.Join(f.dir, "bundle", "rootfs")
	if err := house(root); err != nil {
		return all, stop, err
	}
	binds := []bind{{"/usr", "/usr", "ro"}, {f.theirs(), f.theirs(), "rw"}, {f.b.self, seenSelf, "ro"}}
	if f.b.have("podman", "podman") {
		add(f.podman(ctx, root, binds))
	}
	if f.b.haveGVisor() {
		bundle := filepath.Dir(root)
		add(f.bareGVisor(ctx, bundle, binds))
	}
	return all, stop, err
}

// house is a root directory with nothing in it but places and links into /usr.
func house(root string) error {
	for _, dir := range []string{"usr", "proc", "sys", "dev", "tmp", "etc", "run"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	for _, link := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+link, filepath.Join(root, link)); err != nil {
			return err
		}
	}
	return nil
}

func (f *filesWork) podman(ctx context.Context, root string, binds []bind) (place, error) {
	argv := append(f.b.podman(), "run", "--rm", "-i", "--network", "none", "--ulimit", halved("nofile", syscall.RLIMIT_NOFILE), "--ulimit", "nproc=1024:1024")
	for _, m := range binds {
		argv = append(argv, "-v", m.source+":"+m.target+":"+m.mode)
	}
	w, err := f.b.work(ctx, append(argv, "--rootfs", root, seenSelf, "client"))
	return place{podmanName, f.theirs(), w}, err
}

func (f *filesWork) bareGVisor(ctx context.Context, bundle string, binds []bind) (place, error) {
	if err := specify(bundle, []string{seenSelf, "client"}, binds...); err != nil {
		return place{}, err
	}
	w, err := f.b.work(ctx, f.b.runscRun(bundle, "files"))
	return place{runscName, f.theirs(), w}, err
}

// machineRow asks git in a machine, whose folder is a disk.
func (f *filesWork) machineRow(ctx context.Context) ([]row, error) {
	m, err := f.b.emulated(ctx)
	if m == nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(m.root, machineGit)); err != nil {
		f.b.skip("git in level vm-emulated", "it is not at "+machineGit)
		return nil, nil
	}
	inside, err := f.b.work(ctx, m.run(f.b, filepath.Join(f.ours(), "tree"), "--mount", f.b.self+":"+seenSelf, "--", seenSelf, "client"))
	if err != nil {
		return nil, err
	}
	defer inside.stop()
	outside, err := f.b.outside(ctx)
	if err != nil {
		return nil, err
	}
	defer outside.stop()
	ours, others, err := f.b.settle(takeTurns(ctx, 1, []subject{place{"level vm-emulated", f.ours(), inside}.doing(status), place{outsideName, f.theirs(), outside}.doing(status)}))
	if err != nil {
		return nil, err
	}
	r := row{what: f.work[0].what + ", inside level vm-emulated", unit: "ms", ours: ours}
	for _, o := range others {
		r.others = append(r.others, against(o, noAim()))
	}
	return []row{r}, nil
}
