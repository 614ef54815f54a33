package e2e

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// gitClient is a program that speaks Git: "git" itself, or a small one around a library. All are called in the same way; see testdata/git.
type gitClient struct {
	name    string
	command string // shell words; $CLIENTS is where the programs lie
	// settled says that it takes addresses and credentials from Git's settings; the others are told.
	settled bool
	// lacks names what it cannot do.
	lacks []string
}

func (c gitClient) can(what string) bool { return !slices.Contains(c.lacks, what) }

// gitClients lists them. What each lacks is what its library says of itself, or what it showed against a forge without a gateway between.
func gitClients() []gitClient {
	return []gitClient{
		{name: "git", command: "sh $CLIENTS/git.sh", settled: true},
		{name: "go-git", command: "$CLIENTS/gogit", lacks: []string{"partial", "lfs", "sha256"}},
		{name: "isomorphic-git", command: "node $CLIENTS/isomorphic.cjs", lacks: []string{"partial", "many", "option", "lfs", "sha256"}},
		{name: "dulwich", command: "/usr/bin/python3 $CLIENTS/client_dulwich.py", lacks: []string{"partial", "option", "lfs", "sha256"}},
		{name: "libgit2", command: "/usr/bin/python3 $CLIENTS/client_libgit2.py", lacks: []string{"shallow", "partial", "option", "lfs", "sha256"}},
	}
}

// needClient skips the test unless the client can be had here.
func needClient(t *testing.T, c gitClient) {
	t.Helper()
	switch c.name {
	case "isomorphic-git":
		testenv.Need(t, "tool:node", "tool:npm", "network")
	case "go-git":
		testenv.Need(t, "tool:go", "network")
	case "dulwich", "libgit2":
		testenv.Need(t, "tool:python3")
		module := map[string]string{"dulwich": "dulwich", "libgit2": "pygit2"}[c.name]
		if out, err := exec.Command("/usr/bin/python3", "-c", "import "+module).CombinedOutput(); err != nil {
			t.Skipf("needs the system's python3 with %s (make tools): %s", module, lastLine(string(out)))
		}
	}
}

// clientsOnce are the clients' programs, in a folder outside the tree that every user can read: made once, quick to make again.
var clientsOnce = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("cofferdam-test-git-clients-%d", os.Getuid()))
	source := filepath.Join(testenv.Module(), "e2e", "testdata")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	scripts, err := os.ReadDir(filepath.Join(source, "git"))
	if err != nil {
		return "", err
	}
	for _, s := range scripts {
		data, err := os.ReadFile(filepath.Join(source, "git", s.Name()))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, s.Name()), data, 0o755)
		}
		if err != nil {
			return "", err
		}
	}
	var problems []error
	if _, err := exec.LookPath("npm"); err == nil && os.Getenv("OFFLINE") == "" {
		if _, err := os.Stat(filepath.Join(dir, "node_modules", "isomorphic-git", "package.json")); err != nil {
			cmd := exec.Command("npm", "install", "--no-audit", "--no-fund", "--no-save", "--no-package-lock", "--loglevel=error", "isomorphic-git@1.44.11")
			cmd.Dir = dir
			if out, err := cmd.CombinedOutput(); err != nil {
				problems = append(problems, fmt.Errorf("npm install isomorphic-git: %w: %s", err, out))
			}
		}
	}
	if os.Getenv("OFFLINE") == "" {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "gogit"), ".")
		cmd.Dir, cmd.Env = filepath.Join(source, "gogit"), append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=mod", "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			problems = append(problems, fmt.Errorf("build the go-git client: %w: %s", err, out))
		}
	}
	return dir, errors.Join(problems...)
})

// layClients puts the clients' programs into a folder.
func layClients(t *testing.T, into string) {
	t.Helper()
	dir, err := clientsOnce()
	if err == nil {
		err = os.CopyFS(into, os.DirFS(dir))
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"gogit", "git.sh"} {
		if err := os.Chmod(filepath.Join(into, name), 0o755); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
}

// gitStep is one thing that a client does, in a script of many.
type gitStep struct {
	id string // unique; an operation, a dot, allowed or denied
	// prepare runs before, with git itself, and must succeed.
	prepare string
	// line is the act: $C is the client, $BASE the address that repositories lie below.
	line string
	// why is the reason that a person reads when the step is denied, and push the ref that it is about; empty where it is the repository that is not open.
	why, push string
	// sets and deletes are what becomes of refs of acme/site when the step is allowed; what is set is set to the commit that work points to.
	sets, deletes []string
}

func (s gitStep) operation() string {
	operation, _, _ := strings.Cut(s.id, ".")
	return operation
}

// denied says that the step is one that policy denies.
func (s gitStep) denied() bool { return strings.HasSuffix(s.id, ".denied") }

// refusal returns the texts by which a client tells a person that a step was denied.
func (c gitClient) refusal(s gitStep) []string {
	_, ref, push := strings.Cut(s.push, " ")
	short := strings.TrimPrefix(strings.TrimPrefix(ref, "refs/heads/"), "refs/tags/")
	switch {
	case c.name == "git" && s.operation() == "lfs":
		return []string{"batch response: cofferdam: " + s.why}
	case c.name == "git" && push:
		return []string{"remote: cofferdam: " + s.why, " ! [remote rejected] ", " " + short + " (" + s.why + ")\n", "error: failed to push some refs to "}
	case c.name == "git":
		return []string{"remote: cofferdam: " + s.why + "\nfatal: unable to access 'http://git.cofferdam.internal/test/", "The requested URL returned error: 403"}
	case c.name == "go-git" && s.operation() == "many": // it tells of one ref, the first
		return []string{"cofferdam: " + s.why + "\n", "command error on refs/heads/agent/many/0: not tried: " + s.why + "\n"}
	case c.name == "go-git" && push:
		return []string{"cofferdam: " + s.why + "\n", "command error on " + ref + ": " + s.why + "\n"}
	case c.name == "go-git":
		return []string{"authorization failed: cofferdam: " + s.why + "\n"}
	case c.name == "isomorphic-git" && push:
		return []string{"message: cofferdam: " + s.why + "\n", "GitPushError: One or more branches were not updated: \n  - " + ref + ": " + s.why + " "}
	case c.name == "isomorphic-git":
		return []string{"HttpError: HTTP Error: 403 Forbidden ", "\"response\":\"cofferdam: " + s.why + "\\n\""}
	case c.name == "dulwich" && push:
		return []string{"cofferdam: " + s.why + "\n", "Push of ref " + ref + " failed: " + s.why + "\n"}
	case c.name == "dulwich":
		return []string{"GitProtocolError: cofferdam: " + s.why + "\n"}
	case c.name == "libgit2" && push:
		return []string{"remote: cofferdam: " + s.why + "\n", "push_update_reference: " + ref + ": " + s.why + "\n"}
	}
	return []string{"GitError: remote error: cofferdam: " + s.why + "\n"} // libgit2
}

// gitPrelude begins each script: no settings of this machine's, a way to run a step, a way to make a commit.
const gitPrelude = `
export GIT_AUTHOR_NAME=Ada GIT_AUTHOR_EMAIL=ada@example.com GIT_COMMITTER_NAME=Ada GIT_COMMITTER_EMAIL=ada@example.com GIT_TERMINAL_PROMPT=0
export CLIENTS=$PWD/clients CLIENT_MODULES=$PWD/clients/node_modules PYTHONDONTWRITEBYTECODE=1
mkdir -p work && cd work
step() { id=$1; shift; sh -c "$*" >../out 2>&1; code=$?; printf '\n@@ %s %s\nwork is %s\n' "$id" $code "$(git -C a rev-parse -q --verify refs/heads/work 2>/dev/null)"; cat ../out; }
prepare() { sh -ec "$*" >../out 2>&1 || { printf '\n@@ prepare 1\n%s\n' "$*"; cat ../out; }; }
commit='cd a && git checkout -q -B work && date +%N > $FILE && git add . && git commit -q -m $FILE; cd ..'
`

// gitScript writes the script of steps for a client.
func gitScript(c gitClient, base string, steps []gitStep) string {
	var b strings.Builder
	b.WriteString(gitPrelude)
	if !c.settled {
		// Who does not ask Git's credential helper is given what it says.
		b.WriteString("[ -n \"${CLIENT_PASSWORD:-}\" ] || { filled=$(printf 'url=%s\\n\\n' " + base + " | git credential fill); export CLIENT_USER=$(printf %s \"$filled\" | sed -n 's/^username=//p') CLIENT_PASSWORD=$(printf %s \"$filled\" | sed -n 's/^password=//p'); }\n")
	} else {
		b.WriteString("export CLIENT_USER=x CLIENT_PASSWORD=x\n")
	}
	fmt.Fprintf(&b, "export C=%q BASE=%q commit\n", strings.ReplaceAll(c.command, "$CLIENTS", "'$CLIENTS'"), base)
	s := strings.ReplaceAll(b.String(), "'$CLIENTS'", "$CLIENTS")
	b.Reset()
	b.WriteString(s)
	for _, s := range steps {
		if s.prepare != "" {
			fmt.Fprintf(&b, "prepare '%s'\n", s.prepare)
		}
		fmt.Fprintf(&b, "step %s '%s'\n", s.id, s.line)
	}
	return b.String()
}

// gitSteps are the rows of the matrix that a client can do.
func gitSteps(c gitClient) (steps []gitStep) {
	var many, manyMade []string
	for i := range 40 {
		many = append(many, fmt.Sprintf("refs/heads/work:refs/heads/agent/many/%d", i))
		manyMade = append(manyMade, fmt.Sprintf("refs/heads/agent/many/%d", i))
	}
	commit := func(file string) string { return "FILE=" + file + "; eval \"$commit\"" }
	for _, s := range []gitStep{
		{id: "clone.allowed", line: "$C clone a $BASE/acme/site.git && test -f a/src/main.go"},
		{id: "clone.denied", line: "$C clone b $BASE/acme/hidden.git", why: "acme/hidden at test is not open here"},
		{id: "shallow.allowed", line: "$C shallow s $BASE/acme/site.git && test -f s/src/main.go && test $(git -C s rev-list --count HEAD) = 1"},
		{id: "shallow.denied", line: "$C shallow sb $BASE/acme/hidden.git", why: "acme/hidden at test is not open here"},
		{id: "partial.allowed", line: "$C partial p $BASE/acme/site.git && test -f p/src/main.go"},
		{id: "partial.denied", line: "$C partial pb $BASE/acme/hidden.git", why: "acme/hidden at test is not open here"},
		{id: "fetch.allowed", prepare: "git -C a update-ref -d refs/remotes/origin/topic", line: "$C fetch a && git -C a rev-parse refs/remotes/origin/topic"},
		{id: "fetch.denied", prepare: "git init -q d && git -C d remote add origin $BASE/acme/hidden.git && git -C d config remote.origin.fetch +refs/heads/*:refs/remotes/origin/*", line: "$C fetch d", why: "acme/hidden at test is not open here"},
		{id: "push.allowed", prepare: commit("one"), line: "$C push a refs/heads/work:refs/heads/agent/one", sets: []string{"refs/heads/agent/one"}},
		{id: "push.denied", line: "$C push a refs/heads/work:refs/heads/main", why: "main is protected here; push to agent/… instead", push: "update refs/heads/main"},
		{id: "create.allowed", line: "$C push a refs/heads/work:refs/heads/steady/one", sets: []string{"refs/heads/steady/one"}},
		{id: "create.denied", line: "$C push a refs/heads/work:refs/heads/free/one", why: "free/one is protected here; push to agent/… instead", push: "create refs/heads/free/one"},
		{id: "update.allowed", prepare: commit("two"), line: "$C push a refs/heads/work:refs/heads/steady/one", sets: []string{"refs/heads/steady/one"}},
		{id: "update.denied", line: "$C push a refs/heads/work:refs/heads/topic", why: "topic is protected here; push to agent/… instead", push: "update refs/heads/topic"},
		{id: "force.allowed", prepare: "cd a && git commit -q --amend -m amended", line: "$C push a +refs/heads/work:refs/heads/agent/one", sets: []string{"refs/heads/agent/one"}},
		{id: "force.denied", line: "$C push a +refs/heads/work:refs/heads/steady/one", why: "force-pushing steady/one is not allowed here", push: "force refs/heads/steady/one"},
		{id: "tag.allowed", prepare: "git -C a tag v1.0 work && git -C a tag nightly work", line: "$C push a refs/tags/v1.0:refs/tags/v1.0", sets: []string{"refs/tags/v1.0"}},
		{id: "tag.denied", line: "$C push a refs/tags/nightly:refs/tags/nightly", why: "tag nightly is not allowed here", push: "create refs/tags/nightly"},
		{id: "many.allowed", line: "$C push a " + strings.Join(many, " "), sets: manyMade},
		{id: "many.denied", prepare: commit("three"), line: "$C push a " + strings.Join(many[:3], " ") + " refs/heads/work:refs/heads/main", why: "main is protected here; push to agent/… instead", push: "update refs/heads/main"},
		{id: "delete.allowed", line: "$C push a :refs/heads/agent/one", deletes: []string{"refs/heads/agent/one"}},
		{id: "delete.denied", line: "$C push a :refs/heads/steady/one", why: "deleting steady/one is not allowed here", push: "delete refs/heads/steady/one"},
		{id: "option.allowed", line: "$C push a -o ci.skip=1 refs/heads/work:refs/heads/agent/option", sets: []string{"refs/heads/agent/option"}},
		{id: "option.denied", line: "$C push a -o merge_request.create=1 refs/heads/work:refs/heads/agent/worse", why: "the push option merge_request.create=1 is not allowed here", push: "create refs/heads/agent/worse"},
		{id: "readonly.allowed", line: "$C clone r $BASE/acme/read.git"},
		{id: "readonly.denied", prepare: "git -C r branch work origin/main", line: "$C push r refs/heads/work:refs/heads/agent/one", why: "acme/read is read-only here"},
		{id: "sha256.allowed", line: "$C clone n $BASE/acme/new.git && cd n && git checkout -q -b work && git commit -q --allow-empty -m new && cd .. && $C push n refs/heads/work:refs/heads/agent/one"},
		{id: "sha256.denied", line: "$C push n refs/heads/work:refs/heads/main", why: "main is protected here; push to agent/… instead", push: "update refs/heads/main"},
		{
			id: "lfs.allowed", prepare: "cp -r a l && cd l && git lfs install --local && git lfs track \"*.bin\" && head -c 300000 /dev/urandom > big.bin && git add . && git commit -q -m large",
			line: "$C push l refs/heads/work:refs/heads/agent/lfs && git lfs install && git clone -q -b agent/lfs $BASE/acme/site.git l2 && cmp l/big.bin l2/big.bin && git -C l2 lfs lock big.bin && git -C l2 lfs locks && git -C l2 lfs unlock big.bin",
		},
		{id: "lfs.denied", prepare: "git -C l remote set-url origin $BASE/acme/read.git", line: "git -C l lfs push origin work", why: "acme/read is read-only here"},
	} {
		if c.can(s.operation()) {
			steps = append(steps, s)
		}
	}
	return steps
}

// gitCases reads what a script's steps printed.
func gitCases(printed string) map[string]*ran {
	cases := parseCases(printed)
	for id, r := range cases {
		if id != "prepare" {
			_, r.output, _ = strings.Cut(r.output, "\n") // the line about work
		}
	}
	return cases
}

// judgeSteps compares what a script printed with what should have been. Where nothing stands between (direct), all is allowed.
// It returns what each step printed.
func judgeSteps(t *testing.T, f *forge, c gitClient, steps []gitStep, before map[string]string, printed string, direct bool) map[string]*ran {
	t.Helper()
	cases := parseCases(printed)
	if p := cases["prepare"]; p != nil {
		t.Errorf("a preparation failed:\n%s", p.output)
	}
	refs := map[string]string{}
	maps.Copy(refs, before)
	for _, s := range steps {
		r := cases[s.id]
		if r == nil {
			t.Errorf("%s %s: it did not run\n%s", c.name, s.id, printed)
			continue
		}
		work, text, _ := strings.Cut(strings.TrimPrefix(r.output, "work is "), "\n")
		r.output = text
		if (r.code != 0) != (s.denied() && !direct) {
			t.Errorf("%s %s: exit %d\n%s", c.name, s.id, r.code, text)
		}
		if s.denied() && !direct {
			continue
		}
		for _, ref := range s.sets {
			refs[ref] = work
		}
		for _, ref := range s.deletes {
			delete(refs, ref)
		}
	}
	if direct {
		return cases
	}
	now := f.refs("acme/site.git")
	delete(now, "refs/heads/agent/lfs") // of another clone
	for ref, id := range refs {
		if now[ref] != id {
			t.Errorf("%s: %s is %q, should be %q", c.name, ref, now[ref], id)
		}
		delete(now, ref)
	}
	for ref, id := range now {
		t.Errorf("%s: %s is %s, should not be", c.name, ref, id)
	}
	return cases
}

// TestGitClientsAlone runs the clients against the forge without a gateway between: everything works there, so that what is refused later is the gateway's doing.
func TestGitClientsAlone(t *testing.T) {
	testenv.Need(t, "tool:git-lfs")
	for _, c := range gitClients() {
		t.Run(c.name, func(t *testing.T) {
			needClient(t, c)
			f := newForge(t)
			dir := t.TempDir()
			layClients(t, filepath.Join(dir, "clients"))
			base, steps := f.plain.URL, gitSteps(c)
			settings := fmt.Sprintf("[credential]\n\thelper = \"!printf 'username=x\\\\npassword=%s\\\\n' #\"\n[safe]\n\tdirectory = *\n", gitToken)
			if err := os.WriteFile(filepath.Join(dir, ".gitconfig"), []byte(settings), 0o644); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), "sh", "-c", gitScript(c, base, steps))
			cmd.Dir = dir
			cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "GIT_CONFIG_NOSYSTEM=1", "CLIENT_USER=x", "CLIENT_PASSWORD=" + gitToken, "LANG=C.UTF-8"}
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			judgeSteps(t, f, c, steps, nil, string(out), true)
		})
	}
}
