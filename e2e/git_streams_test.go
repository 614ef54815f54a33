package e2e

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// randomHistory makes a branch of one commit with random files of 16 MiB, in a repository below dir. Nothing of it can be compressed.
func (f *forge) randomHistory(dir, branch string, mebibytes int) {
	f.t.Helper()
	for _, setting := range [][2]string{{"core.compression", "0"}, {"core.bigFileThreshold", "1m"}} { // else git looks for differences between them for minutes
		if out, err := exec.Command("git", "-C", dir, "config", setting[0], setting[1]).CombinedOutput(); err != nil {
			f.t.Fatalf("git config: %v: %s", err, out)
		}
	}
	cmd := exec.Command("git", "fast-import", "--quiet", "--done")
	cmd.Dir, cmd.Env = dir, f.environment()
	in, err := cmd.StdinPipe()
	if err != nil {
		f.t.Fatal(err)
	}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	const piece = 16
	fmt.Fprintf(in, "commit refs/heads/%s\ncommitter Ada <ada@example.com> 1700002000 +0000\ndata 5\nlarge\n", branch)
	for i := range mebibytes / piece {
		fmt.Fprintf(in, "M 100644 inline large/%d.bin\ndata %d\n", i, piece<<20)
		if _, err := io.CopyN(in, rand.Reader, piece<<20); err != nil {
			f.t.Fatalf("%v: %s", err, errs.String())
		}
		fmt.Fprint(in, "\n")
	}
	fmt.Fprint(in, "\ndone\n")
	if err := in.Close(); err != nil {
		f.t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		f.t.Fatalf("fast-import: %v: %s", err, errs.String())
	}
}

// sent is how many bytes of answers to a path have left the forge.
func (f *forge) sent(path string) (n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, q := range f.seen {
		if q.path == path {
			n += q.wrote
		}
	}
	return n
}

// residentPeak watches a process until stop is closed, and returns the largest of its resident sets.
func residentPeak(pid int, stop <-chan struct{}) (peak int64) {
	for {
		peak = max(peak, resident(pid))
		select {
		case <-stop:
			return peak
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// resident returns a process's resident set, 0 if there is no such process.
func resident(pid int) int64 {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)) // gone: nothing is resident
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return n << 10
		}
	}
	return 0
}

// TestGitLargePush pushes 1 GiB whose every byte is looked at for protected files, and watches the gateway's memory meanwhile.
func TestGitLargePush(t *testing.T) {
	testenv.Need(t, "root", "tool:git")
	if testing.Short() {
		t.Skip("1 GiB")
	}
	h := newHouse(t, users()[0])
	f := newForge(t)
	f.copy("acme/site.git", "acme/huge.git")
	g := newGitHouse(h, f, "")
	g.law(fmt.Sprintf("  upstreams:\n    - {name: test, url: \"https://%s:%s\", credential: forge}\n", gitHost, f.port)+
		strings.ReplaceAll(gitProfiles, "      access: write\n", "      access: write\n      max-push: 2GiB\n")+"  repositories:\n    - {upstream: test, repository: acme/huge, profile: worker}\n", "")
	huge := filepath.Join(h.project, "huge")
	f.git("", "init", "-q", "-b", "work", huge)
	f.randomHistory(huge, "work", 1024)
	g.own(g.home)
	cmd := g.command(t.Context(), append(g.gitFlags(), "--", "sh", "-c", "echo ready; read line; cd huge && git push -q "+gitInside+"/acme/huge.git work:refs/heads/agent/huge && echo pushed; read line")...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }() // it has ended, unless the test failed
	said := func() string {
		line := make([]byte, 64)
		n, _ := out.Read(line) // nothing read is said by the comparison
		return string(line[:n])
	}
	if s := said(); s != "ready\n" {
		t.Fatalf("%q %s", s, errs.String())
	}
	time.Sleep(300 * time.Millisecond)
	idle, stop, peak, began := resident(cmd.Process.Pid), make(chan struct{}), make(chan int64), time.Now()
	go func() { peak <- residentPeak(cmd.Process.Pid, stop) }()
	_, _ = in.Write([]byte("\n")) // a run that is gone shows in what follows
	pushed := said()
	took := time.Since(began)
	close(stop)
	most := <-peak
	_, _ = in.Write([]byte("\n"))
	if err := cmd.Wait(); err != nil || pushed != "pushed\n" {
		t.Errorf("push: %q %v: %s", pushed, err, errs.String())
	}
	if f.refs("acme/huge.git")["refs/heads/agent/huge"] != f.git("../"+strings.TrimPrefix(huge, filepath.Dir(f.root)+"/"), "rev-parse", "work") {
		t.Error("the branch is not at the upstream")
	}
	t.Logf("1 GiB in %v (%.0f MiB/s); the gateway's resident set: %d MiB idle, %d MiB at most", took.Round(time.Millisecond), 1024/took.Seconds(), idle>>20, most>>20)
	if most-idle > 64<<20 || idle == 0 {
		t.Errorf("the gateway's memory grew from %d to %d bytes", idle, most)
	}
}

// TestGitCut takes the credential away, or kills the run, in the middle of a clone of 200 MiB: it ends there.
func TestGitCut(t *testing.T) {
	testenv.Need(t, "root", "tool:git")
	h := newHouse(t, users()[0])
	f := newForge(t)
	f.copy("acme/site.git", "acme/big1.git")
	f.randomHistory(filepath.Join(f.root, "acme/big1.git"), "large", 200)
	f.be("acme/big1.git/git-upload-pack", mood{pace: 25 << 20})
	g := newGitHouse(h, f, "")
	for _, way := range []struct {
		name string
		cut  func(cmd *exec.Cmd)
	}{
		{"removal", func(*exec.Cmd) {
			if r := g.do("credential", "remove", "forge"); r.code != 0 {
				t.Errorf("remove: %s", r.stderr)
			}
		}},
		{"kill", func(cmd *exec.Cmd) { _ = cmd.Process.Signal(syscall.SIGTERM) }}, // a run that is gone shows in what follows
	} {
		before := f.sent("/acme/big1.git/git-upload-pack")
		cmd := g.command(t.Context(), append(g.gitFlags(), "--disk", "1g", "--", "sh", "-c", "git clone "+gitInside+"/acme/big1.git a; echo clone ended with $?")...)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		for deadline := time.Now().Add(20 * time.Second); f.sent("/acme/big1.git/git-upload-pack")-before < 20<<20 && time.Now().Before(deadline); {
			time.Sleep(20 * time.Millisecond)
		}
		way.cut(cmd)
		at, when := f.sent("/acme/big1.git/git-upload-pack")-before, time.Now()
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			t.Fatalf("%s: the run is not over: %v", way.name, <-ended)
		}
		time.Sleep(200 * time.Millisecond)
		rest := f.sent("/acme/big1.git/git-upload-pack") - before - at
		t.Logf("%s: cut at %d MiB, over %v and %d MiB later\n%s", way.name, at>>20, time.Since(when).Round(time.Millisecond), rest>>20, out.String())
		if at < 20<<20 || rest > 100<<20 || strings.Contains(out.String(), "ended with 0") {
			t.Errorf("%s: cut at %d bytes, %d more were sent\n%s", way.name, at, rest, out.String())
		}
		failed := false
		for _, e := range g.records() {
			failed = failed || e["kind"] == "crossing.finished" && e["error"] != nil && e["repository"] == "test/acme/big1"
		}
		if !failed {
			t.Errorf("%s: no crossing is on record as failed", way.name)
		}
		if way.name == "removal" {
			g.addCredential()
		}
	}
	f.be("acme/big1.git/git-upload-pack", mood{})
	if r := g.script(time.Minute, "git clone -q "+gitInside+"/acme/big1.git a && git -C a log --format=%s -1 origin/large", "--disk", "1g"); r.code != 0 || !strings.Contains(r.stdout, "large") {
		t.Errorf("control: %s%s", r.stdout, r.stderr)
	}
}

// TestGitTogether pushes twice at once, slowly, too much, and hangs up in the middle.
func TestGitTogether(t *testing.T) {
	testenv.Need(t, "tool:git", "tool:curl")
	forEachUser(t, func(t *testing.T, h *house) {
		f := newForge(t)
		f.openWorkshop()
		f.copy("acme/site.git", "acme/small.git")
		g := newGitHouse(h, f, "")
		g.law(fmt.Sprintf("  upstreams:\n    - {name: test, url: \"https://%s:%s\", credential: forge}\n", gitHost, f.port)+gitProfiles+`
    - name: small
      access: write
      max-push: 1MiB
      max-refs: 3
      rules: [{branches: ["agent/**"], allow: [create]}]
`+gitRepositories+"    - {upstream: test, repository: acme/small, profile: small}\n", "")
		main := f.git(workshop, "rev-parse", "main")
		f.randomHistory(filepath.Join(f.root, workshop), "slow", 16)
		pack := f.pack(nil, "slow")
		slowly := f.git(workshop, "rev-parse", "slow")
		g.write("bodies/slow", string(pushBody(pack, nil, command(zeroID, slowly, "refs/heads/agent/slow"))))
		g.write("bodies/gone", string(pushBody(pack, nil, command(zeroID, slowly, "refs/heads/agent/gone"))))
		post := "curl -sS -u x:$TOKEN -H \"Content-Type: application/x-git-receive-pack-request\" --data-binary @../bodies/"
		script := gitPrelude + askProxyToken + `
git clone -q ` + gitInside + `/acme/site.git a
for i in 1 2 3; do cp -r a a$i; (cd a$i; git checkout -q -B work; head -c 3000000 /dev/urandom > $i.bin; git add .; git commit -q -m $i); done
git -C a1 push -q origin work:refs/heads/agent/one >one 2>&1 & one=$!
git -C a2 push -q origin work:refs/heads/agent/two >two 2>&1 & two=$!
wait $one; one=$?; wait $two; two=$?
step both "test $one$two = 00 || { cat one two; false; }"
git -C a1 push origin work:refs/heads/steady/one >one 2>&1 & one=$!
git -C a2 push origin work:refs/heads/steady/one >two 2>&1 & two=$!
wait $one; one=$?; wait $two; two=$?
step race "cat one two; test $((one + two)) = 1"
step slow '` + post + `slow --limit-rate 6M ` + gitInside + `/acme/site.git/git-receive-pack'
step gone 'timeout -s KILL 1 ` + post + `gone --limit-rate 6M ` + gitInside + `/acme/site.git/git-receive-pack'
step large 'git -C a3 push ` + gitInside + `/acme/small.git work:refs/heads/agent/large'
step refs 'git -C a push ` + gitInside + `/acme/small.git main:refs/heads/agent/1 main:refs/heads/agent/2 main:refs/heads/agent/3 main:refs/heads/agent/4'
step small 'git -C a push ` + gitInside + `/acme/small.git main:refs/heads/agent/small'
`
		before := f.refs("acme/site.git")
		r := g.script(2*time.Minute, script, "--disk", "1g")
		cases := gitCases(r.stdout)
		for id, ok := range map[string]bool{"both": true, "race": true, "slow": true, "gone": false, "large": false, "refs": false, "small": true} {
			c := cases[id]
			if c == nil || (c.code == 0) != ok {
				t.Fatalf("%s: %+v %s%s", id, c, r.stdout, r.stderr)
			}
			if (id == "large" || id == "refs") && !strings.Contains(c.output, "remote: cofferdam: ") {
				t.Errorf("%s: no reason is told: %s", id, c.output)
			}
			t.Logf("%s: exit %d %.600s", id, c.code, c.output)
		}
		now := f.refs("acme/site.git")
		for _, ref := range []string{"refs/heads/agent/one", "refs/heads/agent/two", "refs/heads/agent/slow", "refs/heads/steady/one"} {
			if now[ref] == "" {
				t.Errorf("%s is not there", ref)
			}
			delete(now, ref)
		}
		if !maps.Equal(now, before) || now["refs/heads/main"] != main {
			t.Errorf("refs are %v, were %v", now, before)
		}
		failed := false
		for _, e := range g.records() {
			refs := fmt.Sprint(e["refs"])
			failed = failed || e["kind"] == "crossing.finished" && e["error"] != nil && (strings.Contains(refs, "agent/gone") || refs == "<nil>" && strings.Contains(fmt.Sprint(e["path"]), "git-receive-pack"))
		}
		if !failed {
			t.Errorf("the push that was broken off is not on record as failed: %v", g.records())
		}
		if small := f.refs("acme/small.git"); small["refs/heads/agent/small"] != main || small["refs/heads/agent/large"] != "" || small["refs/heads/agent/1"] != "" {
			t.Errorf("acme/small: %v", small)
		}
	})
}
