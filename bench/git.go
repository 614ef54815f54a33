package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// How a client gets to the forge.
const (
	proxiedName   = "the Git proxy"
	unjudgedName  = "the Git proxy, nothing to judge"
	tunnelledName = "direct from a sandbox, by a tunnel"
)

// The owners of repositories at the forge: policy says of each what may be done there.
const (
	sourceOwner = "source" // read
	judgedOwner = "judged" // pushes go forward and leave the default list of protected files alone
	openOwner   = "open"   // pushes do as they like
)

// Where the sandboxes see what they need.
const (
	seenSelf   = "/tmp/bench"
	seenSource = "/tmp/bench-source.git"
	seenTrust  = "/tmp/bench-trust.pem"
)

// gitting is everything that takes part: the forge, a sandbox behind the Git proxy, one that gets to the forge through a tunnel, and a client outside.
type gitting struct {
	*serving
	b                       *bench
	root, trust             string
	proxied, tunnelled, out *worker
	copies                  int
	stop                    func()
}

// gitRows clones from and pushes to a forge, through the proxy and besides.
func gitRows(ctx context.Context, b *bench) ([]row, error) {
	if !b.have("git", "git") {
		return nil, nil
	}
	g, err := b.gitting(ctx, history200)
	if err != nil {
		return nil, err
	}
	var rows []row
	for _, measure := range []func(context.Context) ([]row, error){g.cloneRow, g.pushRow, g.fetchRow, g.commitRow} {
		more, err := measure(ctx)
		if err != nil {
			g.stop()
			return rows, err
		}
		rows = append(rows, more...)
	}
	g.stop()
	more, err := b.largePush(ctx)
	return append(rows, more...), err
}

// gitting makes a repository and starts all of it.
func (b *bench) gitting(ctx context.Context, h history) (_ *gitting, err error) {
	var undo []func()
	g := &gitting{b: b, root: filepath.Join(b.dir, "forge"), stop: func() {
		for _, f := range slices.Backward(undo) {
			f()
		}
	}}
	defer func() {
		if err != nil {
			g.stop()
		}
	}()
	undo = append(undo, func() { _ = os.RemoveAll(g.root) }) // scratch
	if err := h.make(ctx, g.repository(sourceOwner, 0)); err != nil {
		return nil, err
	}
	if err := historySmall.make(ctx, g.repository(sourceOwner, 1)); err != nil {
		return nil, err
	}
	if g.serving, err = b.host(ctx, g.root); err != nil {
		return nil, err
	}
	undo = append(undo, g.serving.stop)
	g.trust = filepath.Join(b.dir, "forge.pem")
	if err := os.WriteFile(g.trust, []byte(g.Certificate), 0o644); err != nil {
		return nil, err
	}
	if g.proxied, err = g.behindProxy(ctx); err != nil {
		return nil, err
	}
	undo = append(undo, g.proxied.stop)
	if g.tunnelled, err = g.behindTunnel(ctx); err != nil {
		return nil, err
	}
	undo = append(undo, g.tunnelled.stop)
	if g.out, err = b.outside(ctx); err != nil {
		return nil, err
	}
	undo = append(undo, g.out.stop)
	return g, nil
}

// repository is where the forge keeps one.
func (g *gitting) repository(owner string, n int) string {
	return filepath.Join(g.root, owner, fmt.Sprintf("r%d.git", n))
}

// behindProxy starts a client in a sandbox whose policy opens the forge's repositories, and to which the forge's token is lent.
func (g *gitting) behindProxy(ctx context.Context) (*worker, error) {
	b, port := g.b, strconv.Itoa(g.Git)
	credential := "forge-" + port
	add := exec.CommandContext(ctx, b.cofferdam, "credential", "add", credential, "--user", gitUser, "--host", name, "--port", port)
	add.Env, add.Stdin = b.environment(), strings.NewReader(realToken+"\n")
	if out, err := add.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("cofferdam credential add: %w: %s", err, firstLine(string(out)))
	}
	policy := filepath.Join(b.dir, credential+".yaml")
	if err := os.WriteFile(policy, fmt.Appendf(nil, `version: 1
egress:
  networks: [127.0.0.0/8]
git:
  upstreams:
    - {name: forge, url: "https://%s:%s", credential: %s}
  profiles:
    - name: judged
      access: write
      max-push: 2GiB
      rules:
        - {branches: ["**"], allow: [create, update]}
    - name: open
      access: write
      max-push: 2GiB
      protected-files: []
      rules:
        - {branches: ["**"], allow: [create, update, force]}
  repositories:
    - {upstream: forge, matching: "%s/.*", profile: read}
    - {upstream: forge, matching: "%s/.*", profile: judged}
    - {upstream: forge, matching: "%s/.*", profile: open}
`, name, port, credential, sourceOwner, judgedOwner, openOwner), 0o644); err != nil {
		return nil, err
	}
	return b.work(ctx, append(append([]string{"env", "SSL_CERT_FILE=" + g.trust, b.cofferdam, "run"}, g.sandboxed()...), "--policy", policy, "--", seenSelf, "client"))
}

// behindTunnel starts a client in a sandbox that may get to the forge and has to show a token of its own.
func (g *gitting) behindTunnel(ctx context.Context) (*worker, error) {
	flags := append(g.sandboxed(), "--mount", g.trust+":"+seenTrust, "--allow-network", "127.0.0.0/8", "--allow", fmt.Sprintf("%s:%d", name, g.Git))
	return g.b.work(ctx, append(append([]string{g.b.cofferdam, "run"}, flags...), "--", seenSelf, "client"))
}

// sandboxed are the flags that both sandboxes have.
func (g *gitting) sandboxed() []string {
	return []string{"-q", "--workspace", g.b.workspace(), "--mount", g.b.self + ":" + seenSelf, "--mount", g.repository(sourceOwner, 0) + ":" + seenSource, "--resolve", name + "=" + loopback}
}

// way is one way to the forge, with the task filled in that is carried out there.
type way struct {
	name  string
	via   *worker
	owner string // of the repositories that are pushed to
	task  gitTask
}

// ways are all of them: ours first, the direct one last.
func (g *gitting) ways(do string, count int) []way {
	ordinary := fmt.Sprintf("https://%s:%d/", name, g.Git)
	inside := func(url, trust string) gitTask {
		return gitTask{Do: do, Count: count, URL: url, Repository: seenSource, Trust: trust}
	}
	all := []way{{proxiedName, g.proxied, judgedOwner, inside(ordinary, "")}}
	if do == "push" || do == "commits" {
		all = append(all, way{unjudgedName, g.proxied, openOwner, inside(ordinary, "")})
	}
	withToken := func(host string) string { return fmt.Sprintf("https://%s:%s@%s:%d/", gitUser, realToken, host, g.Git) }
	direct := gitTask{Do: do, Count: count, URL: withToken(loopback), Repository: g.repository(sourceOwner, 0), Trust: g.trust, Dir: memoryDir()}
	return append(all, way{tunnelledName, g.tunnelled, judgedOwner, inside(withToken(name), seenTrust)}, way{directName, g.out, judgedOwner, direct})
}

// memoryDir is a folder in memory, as the sandboxes' are. Where there is none, it is the temporary one.
func memoryDir() string {
	dir, err := os.MkdirTemp("/dev/shm", "bench-")
	if err != nil {
		return ""
	}
	_ = os.Remove(dir) // it was there
	return "/dev/shm"
}

// reads has each way read from the forge.
func (g *gitting) reads(do string, source, count int) (all []subject) {
	for _, w := range g.ways(do, count) {
		w.task.URL += fmt.Sprintf("%s/r%d.git", sourceOwner, source)
		all = append(all, w.via.via(w.name, task{Git: &w.task}))
	}
	return all
}

// pushes has each way push to a repository that is new each time, and looks whether what was pushed is there.
func (g *gitting) pushes(do string, count int) (all []subject) {
	for _, w := range g.ways(do, count) {
		all = append(all, subject{w.name, func(ctx context.Context) ([]float64, error) {
			g.copies++
			dir := g.repository(w.owner, g.copies)
			defer os.RemoveAll(dir) // the next is another
			if err := g.prepare(ctx, do, dir); err != nil {
				return nil, err
			}
			t := w.task
			t.URL += fmt.Sprintf("%s/r%d.git", w.owner, g.copies)
			values, err := w.via.do(task{Git: &t})
			if err != nil {
				return nil, err
			}
			return values, forgeGit(ctx, dir, "rev-parse", "-q", "--verify", "main^{tree}")
		}})
	}
	return all
}

// prepare makes what is pushed to: an empty repository for much, a small one for single commits.
func (g *gitting) prepare(ctx context.Context, do, dir string) error {
	if do == "push" {
		return bare(ctx, dir)
	}
	return os.CopyFS(dir, os.DirFS(g.repository(sourceOwner, 1)))
}

// cloneRow clones everything.
func (g *gitting) cloneRow(ctx context.Context) ([]row, error) {
	size, err := sizeOfPacks(g.repository(sourceOwner, 0))
	if err != nil {
		return nil, err
	}
	mine, others, err := g.b.settle(takeTurns(ctx, g.b.rounds(5), g.reads("clone", 0, 1)))
	if err != nil {
		return nil, err
	}
	return []row{ratesRow(fmt.Sprintf("git clone of %s", mebibytes(size)), size, mine, others)}, nil
}

// pushRow pushes everything.
func (g *gitting) pushRow(ctx context.Context) ([]row, error) {
	size, err := sizeOfPacks(g.repository(sourceOwner, 0))
	if err != nil {
		return nil, err
	}
	judged, others, err := g.b.settle(takeTurns(ctx, g.b.rounds(5), g.pushes("push", 1)))
	if err != nil {
		return nil, err
	}
	what := "git push of " + mebibytes(size)
	rows := []row{ratesRow(what+", every commit judged", size, judged, without(others, unjudgedName))}
	if unjudged, ok := find(others, unjudgedName); ok {
		rows = append(rows, ratesRow(what+", nothing to judge", size, unjudged, without(others, unjudgedName)))
	}
	return rows, nil
}

// fetchRow asks for what is there already.
func (g *gitting) fetchRow(ctx context.Context) ([]row, error) {
	mine, others, err := g.b.settle(takeTurns(ctx, g.b.rounds(3), g.reads("fetch", 1, 5)))
	if err != nil {
		return nil, err
	}
	return []row{addsRow("git fetch with nothing new, whole command", mine, others)}, nil
}

// commitRow pushes one commit.
func (g *gitting) commitRow(ctx context.Context) ([]row, error) {
	mine, others, err := g.b.settle(takeTurns(ctx, g.b.rounds(3), g.pushes("commits", 5)))
	if err != nil {
		return nil, err
	}
	rows := []row{addsRow("git push of one commit, judged, whole command", mine, without(others, unjudgedName))}
	if unjudged, ok := find(others, unjudgedName); ok {
		rows = append(rows, addsRow("git push of one commit, nothing to judge, whole command", unjudged, without(others, unjudgedName)))
	}
	return rows, nil
}

// largePush pushes a gibibyte through a gateway that has done little before, and says how much that grew.
func (b *bench) largePush(ctx context.Context) ([]row, error) {
	g, err := b.gitting(ctx, history1024)
	if err != nil {
		return nil, err
	}
	defer g.stop()
	if _, err := g.reads("clone", 1, 1)[0].sample(ctx); err != nil { // whatever is made once is there before anything is called idle
		return nil, err
	}
	size, err := sizeOfPacks(g.repository(sourceOwner, 0))
	if err != nil {
		return nil, err
	}
	w := newWatch()
	judged := g.pushes("push", 1)[0]
	if _, err := w.over(judged, g.proxied.cmd.Process.Pid).sample(ctx); err != nil {
		return nil, fmt.Errorf("%s: %w", judged.name, err)
	}
	return []row{w.row(fmt.Sprintf("memory of the gateway above idle, peak during a push of %s, every commit judged", mebibytes(size)), 64)}, nil
}

func mebibytes(n int64) string { return fmt.Sprintf("%d MiB", (n+1<<19)>>20) }

func without(all []series, name string) []series {
	return slices.DeleteFunc(slices.Clone(all), func(s series) bool { return s.name == name })
}

// ratesRow turns milliseconds into megabytes a second. Ours is to reach 0.95 of what goes directly.
func ratesRow(what string, size int64, mine series, others []series) row {
	rate := func(s series) series {
		out := series{name: s.name}
		for _, ms := range s.values {
			out.values = append(out.values, float64(size)/1e3/cmp.Or(ms, 1))
		}
		return out
	}
	r := row{what: what, unit: "MB/s", higher: true, ours: rate(mine)}
	for _, o := range others {
		r.others = append(r.others, against(rate(o), atLeast(0.95)))
	}
	return r
}

// addsRow says how many milliseconds ours takes more.
func addsRow(what string, mine series, others []series) row {
	r := row{what: what, unit: "ms", ours: mine}
	for _, o := range others {
		r.others = append(r.others, against(o, onlyAdded()))
	}
	return r
}
