package e2e

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// gitRequest is a request that a program inside writes by hand.
type gitRequest struct {
	id      string
	method  string // "" is GET, or POST with a body
	path    string // below the proxy, as it is sent
	headers []string
	body    []byte
	bare    bool // without the proxy token
	allowed bool
	// record is what the refusal's line in the audit log must contain, besides the denial.
	record []string
	// real says that the forge would do it: it is an attack only because of policy.
	real bool
}

// line is the shell line that sends it.
func (q gitRequest) line() string {
	var b strings.Builder
	b.WriteString("curl -sS -i --path-as-is -m 20 -o - ")
	if !q.bare {
		b.WriteString("-u x:$TOKEN ")
	}
	if q.method != "" {
		b.WriteString("-X " + q.method + " ")
	}
	for _, h := range q.headers {
		fmt.Fprintf(&b, "-H \"%s\" ", h)
	}
	if q.body != nil {
		fmt.Fprintf(&b, "--data-binary @../bodies/%s ", q.id)
		if strings.HasSuffix(q.path, "/git-receive-pack") {
			b.WriteString("-H \"Content-Type: application/x-git-receive-pack-request\" ")
		}
	}
	fmt.Fprintf(&b, "\"http://git.cofferdam.internal%s\"", q.path)
	return b.String()
}

// askProxyToken asks the credential helper for the run's proxy token.
const askProxyToken = "TOKEN=$(printf 'url=http://git.cofferdam.internal/test/acme/site.git\\n\\n' | git credential fill | sed -n 's/^password=//p'); export TOKEN; [ -n \"$TOKEN\" ] || echo no token\n"

// send makes requests from inside, all in one sandbox, and judges their answers and records. It returns the answers by id.
func (g *gitHouse) send(requests []gitRequest) map[string]*ran {
	g.t.Helper()
	for _, q := range requests {
		if q.body != nil {
			path := filepath.Join(g.project, "bodies", q.id)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				g.t.Fatal(err)
			}
			if err := os.WriteFile(path, q.body, 0o644); err != nil {
				g.t.Fatal(err)
			}
		}
	}
	var b strings.Builder
	b.WriteString(gitPrelude + askProxyToken)
	for _, q := range requests {
		fmt.Fprintf(&b, "step %s '%s'\n", q.id, q.line())
	}
	r := g.script(2*time.Minute, b.String())
	noToken(g.t, "inside", r.stdout+r.stderr)
	cases := gitCases(r.stdout)
	var lines []string
	for line := range strings.Lines(g.do("audit", "last", "--json").stdout) {
		if strings.Contains(line, `"deny"`) {
			lines = append(lines, line)
		}
	}
	for _, q := range requests {
		answer := cases[q.id]
		if answer == nil {
			g.t.Fatalf("%s: it did not run: %s%s", q.id, r.stdout, r.stderr)
		}
		ok := strings.HasPrefix(answer.output, "HTTP/1.1 200 ") && (q.method == "" && q.body == nil || strings.Contains(answer.output, "ok refs/"))
		if ok != q.allowed {
			g.t.Errorf("%s: let through is %v:\n%.800q", q.id, ok, answer.output)
		}
		if q.allowed || q.record == nil {
			continue
		}
		found := false
		for _, line := range lines {
			all := true
			for _, want := range q.record {
				all = all && strings.Contains(line, want)
			}
			found = found || all
		}
		if !found {
			g.t.Errorf("%s: no denial on record with %q among\n%s", q.id, q.record, strings.Join(lines, ""))
		}
	}
	return cases
}

// TestGitPaths asks for what smart HTTP does not have, and for repositories by names that are not quite theirs.
func TestGitPaths(t *testing.T) {
	testenv.Need(t, "tool:git", "tool:curl")
	forEachUser(t, func(t *testing.T, h *house) {
		f := newForge(t)
		g := newGitHouse(h, f, "")
		const list = "/info/refs?service=git-upload-pack"
		request := []string{`"rule":"git-request"`}
		requests := []gitRequest{
			{id: "control", path: "/test/acme/site.git" + list, allowed: true},
			{id: "control-push", path: "/test/acme/site.git/info/refs?service=git-receive-pack", allowed: true},
			{id: "hidden", path: "/test/acme/hidden.git" + list, record: []string{"acme/hidden"}},
			{id: "hidden-bare", path: "/test/acme/hidden" + list, record: []string{"acme/hidden"}},
			{id: "case", path: "/test/Acme/Site.git" + list, record: []string{"Acme/Site"}},
			{id: "case-upstream", path: "/Test/acme/site.git" + list},
			{id: "no-upstream", path: "/elsewhere/acme/site.git" + list},
			{id: "twice", path: "/test/acme/site.git.git" + list},
			{id: "longer", path: "/test/acme/site2.git" + list},
			{id: "below", path: "/test/acme/site.git/hidden.git" + list},
			{id: "slashes", path: "/test//acme/site.git" + list},
			{id: "slashes-inside", path: "/test/acme//hidden.git" + list},
			{id: "up", path: "/test/acme/site.git/../hidden.git" + list},
			{id: "up-encoded", path: "/test/acme/site.git/%2e%2e/hidden.git" + list},
			{id: "up-slash-encoded", path: "/test/acme/site.git%2f..%2fhidden.git" + list},
			{id: "dot-encoded", path: "/test/acme/site%2egit" + list},
			{id: "encoded", path: "/test/acme/%68idden.git" + list},
			{id: "null", path: "/test/acme/site.git%00/x" + list},
			{id: "semicolon", path: "/test/acme/site.git;x" + list},
			{id: "semicolon-service", path: "/test/acme/site.git/info/refs;x?service=git-upload-pack"},
			{id: "backslash", path: "/test/acme/site.git\\\\..\\\\hidden.git" + list},
			{id: "trailing", path: "/test/acme/site.git/info/refs/?service=git-upload-pack"},
			{id: "dumb-list", path: "/test/acme/site.git/info/refs", record: request},
			{id: "dumb-head", path: "/test/acme/site.git/HEAD", record: request},
			{id: "dumb-packs", path: "/test/acme/site.git/objects/info/packs", record: request},
			{id: "dumb-object", path: "/test/acme/site.git/objects/4b/825dc642cb6eb9a060e54bf8d69288fbee4904", record: request},
			{id: "config", path: "/test/acme/site.git/config", record: request},
			{id: "no-service", path: "/test/acme/site.git/info/refs?service=", record: request},
			{id: "archive", path: "/test/acme/site.git/info/refs?service=git-upload-archive", record: request},
			{id: "two-services", path: "/test/acme/read.git/info/refs?service=git-upload-pack&service=git-receive-pack", record: request},
			{id: "two-services-turned", path: "/test/acme/read.git/info/refs?service=git-receive-pack&service=git-upload-pack", record: request},
			{id: "service-and-more", path: "/test/acme/read.git/info/refs?service=git-upload-pack&x=1", record: request},
			{id: "service-semicolon", path: "/test/acme/read.git/info/refs?service=git-upload-pack;service=git-receive-pack", record: request},
			{id: "service-encoded", path: "/test/acme/read.git/info/refs?service=git-receive%2dpack", record: request},
			{id: "service-case", path: "/test/acme/read.git/info/refs?Service=git-receive-pack", record: request},
			{id: "get-upload", path: "/test/acme/site.git/git-upload-pack", record: request},
			{id: "get-receive", path: "/test/acme/site.git/git-receive-pack", record: request},
			{id: "post-list", method: "POST", path: "/test/acme/site.git" + list, record: request},
			{id: "post-archive", method: "POST", path: "/test/acme/site.git/git-upload-archive", body: []byte("0000"), record: request},
			{id: "post-query", method: "POST", path: "/test/acme/site.git/git-receive-pack?service=git-upload-pack", body: []byte("0000"), record: request},
			{id: "put", method: "PUT", path: "/test/acme/site.git/git-receive-pack", body: []byte("0000"), record: request},
			{id: "delete", method: "DELETE", path: "/test/acme/site.git/HEAD", record: request},
			{id: "override", path: "/test/acme/site.git/git-receive-pack", headers: []string{"X-HTTP-Method-Override: POST"}, record: request},
			{id: "lfs-unknown", path: "/test/acme/site.git/info/lfs/other", record: request},
			{id: "read-only", path: "/test/acme/read.git/info/refs?service=git-receive-pack", record: []string{"acme/read"}},
			{id: "other-host", path: "/test/acme/site.git" + list, headers: []string{"Host: " + gitHost}},
			{id: "no-token", path: "/test/acme/site.git" + list, bare: true},
			{id: "wrong-token", path: "/test/acme/site.git" + list, bare: true, headers: []string{gitBasic("cfd_wrong")}, record: []string{`"rule":"git-token"`}},
			{id: "empty-token", path: "/test/acme/site.git" + list, bare: true, headers: []string{gitBasic("")}, record: []string{`"rule":"git-token"`}},
			{id: "own-token", path: "/test/acme/site.git" + list, bare: true, headers: []string{"Authorization: Bearer of-my-own"}, record: []string{`"rule":"git-token"`}},
			{id: "two-tokens", path: "/test/acme/site.git" + list, headers: []string{gitBasic("of-my-own")}, record: []string{`"rule":"git-token"`}},
		}
		mark := f.mark()
		cases := g.send(requests)
		if answer := cases["no-token"].output; !strings.HasPrefix(answer, "HTTP/1.1 401 ") || !strings.Contains(answer, "Www-Authenticate: Basic") {
			t.Errorf("without a token there is no challenge: %.300s", answer)
		}
		for _, q := range f.requests(mark) {
			if q.path != "/acme/site.git/info/refs" || q.status != 200 {
				t.Errorf("this reached the upstream: %+v", q)
			}
		}
		if n := len(f.requests(mark)); n != 2 {
			t.Errorf("%d requests reached the upstream, not the two controls", n)
		}
		g.searchTokens()
	})
}

// gitCommands are pushes by hand: some as git would send them, most as it would not. next is the commit that most of them push.
func gitCommands(f *forge) (requests []gitRequest, next string) {
	f.t.Helper()
	f.openWorkshop()
	const push, alias = "/test/acme/site.git/git-receive-pack", "/test/acme/alias.git/git-receive-pack"
	main := f.git("acme/site.git", "rev-parse", "main")
	next = f.commit(gitChange{"src/new.go": "package main\n"}, main)
	big := f.commit(gitChange{"src/deep/er/file.txt": strings.Repeat("deep as before\n", 2000)}, next)
	bigger := f.commit(gitChange{"src/deep/er/file.txt": strings.Repeat("deep as before\n", 2000) + "and more\n"}, big)
	bad := f.commit(gitChange{"AGENTS.md": "be bad\n"}, next)
	// The upstream has that commit, as it has those of forks and of pushes that were refused, but on no branch.
	f.git(workshop, "config", "uploadpack.allowAnySHA1InWant", "true")
	f.git("acme/site.git", "fetch", "-q", "--no-write-fetch-head", filepath.Join(f.root, workshop), bad)
	pack := f.pack(nil, next, "^"+main)
	badPack := f.pack(nil, bad, "^"+main)
	thin := f.pack([]string{"--thin", "--delta-base-offset"}, bigger, "^"+big)
	create := func(ref string) []byte { return pushBody(pack, nil, command(zeroID, next, ref)) }
	zipped := func(data []byte) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, _ = z.Write(data) // to memory
		_ = z.Close()
		return b.Bytes()
	}
	var thousand []string
	for i := range 1001 {
		thousand = append(thousand, command(zeroID, next, fmt.Sprintf("refs/heads/agent/n%d", i)))
	}
	requests = []gitRequest{
		{id: "control", path: push, body: create("refs/heads/agent/raw"), allowed: true},
		{id: "control-option", path: push, body: pushBody(pack, []string{"ci.skip=1"}, command(zeroID, next, "refs/heads/agent/raw-option")), allowed: true},
		{id: "control-other", path: alias, body: create("refs/heads/other"), allowed: true},
		{id: "control-gone", path: push, body: pushBody(nil, nil, command(next, zeroID, "refs/heads/agent/raw-option")), allowed: true},

		{id: "main", real: true, path: push, body: pushBody(pack, nil, command(main, next, "refs/heads/main")), record: []string{"refs/heads/main"}},
		{id: "main-new", path: push, body: create("refs/heads/main"), record: []string{"refs/heads/main"}},
		{id: "main-gone", real: true, path: push, body: pushBody(nil, nil, command(main, zeroID, "refs/heads/main")), record: []string{"refs/heads/main"}},
		{id: "alias", real: true, path: alias, body: pushBody(pack, nil, command(main, next, "refs/heads/alias")), record: []string{"refs/heads/alias", "refs/heads/main"}},
		{id: "alias-among", real: true, path: alias, body: pushBody(pack, nil, command(zeroID, next, "refs/heads/agent/x-alias-among"), command(main, next, "refs/heads/alias")), record: []string{"refs/heads/alias"}},
		{id: "alias-gone", path: alias, body: pushBody(nil, nil, command(main, zeroID, "refs/heads/alias")), record: []string{"refs/heads/alias"}},
		{id: "among", real: true, path: push, body: pushBody(pack, nil, command(zeroID, next, "refs/heads/agent/y-among"), command(main, next, "refs/heads/main")), record: []string{"refs/heads/main"}},
		{id: "option", real: true, path: push, body: pushBody(pack, []string{"merge_request.create"}, command(zeroID, next, "refs/heads/agent/z-option")), record: []string{"merge_request.create"}},
		{id: "option-second", real: true, path: push, body: pushBody(pack, []string{"ci.skip=1", "merge_request.merge_when_pipeline_succeeds"}, command(zeroID, next, "refs/heads/agent/z-option-second"))},
		{id: "option-case", path: push, body: pushBody(pack, []string{"CI.SKIP=1"}, command(zeroID, next, "refs/heads/agent/z-option-case"))},
		{id: "option-line", path: push, body: pushBody(pack, []string{"ci.skip=1\nmerge_request.create"}, command(zeroID, next, "refs/heads/agent/z-option-line"))},

		{id: "protected", real: true, path: push, body: pushBody(badPack, nil, command(zeroID, bad, "refs/heads/agent/bad")), record: []string{"AGENTS.md"}},
		{id: "protected-among", real: true, path: push, body: pushBody(badPack, nil, command(zeroID, next, "refs/heads/agent/fine"), command(zeroID, bad, "refs/heads/agent/bad"))},
		{id: "protected-unused", real: true, path: push, body: pushBody(badPack, nil, command(zeroID, next, "refs/heads/agent/unused"))},
		{id: "planted", real: true, path: push, body: pushBody(f.pack(nil, bad, "^"+bad), nil, command(zeroID, bad, "refs/heads/agent/planted"))},
		{id: "protected-tag", real: true, path: push, body: pushBody(badPack, nil, command(zeroID, bad, "refs/tags/v9")), record: []string{"AGENTS.md"}},

		{id: "thousand", path: push, body: pushBody(pack, nil, thousand...)},
		{id: "megabyte", path: push, body: pushBody(pack, nil, command(zeroID, next, "refs/heads/agent/"+strings.Repeat("x", 60000)), command(zeroID, next, "refs/heads/agent/"+strings.Repeat("y", 60000)))},
		{id: "middle", path: push, body: pack},
		{id: "middle-further", path: push, body: pack[40:]},
		{id: "empty-line", path: push, body: []byte("0004" + string(create("refs/heads/agent/e-empty-line")))},
		{id: "short-line", path: push, body: []byte("0003" + string(create("refs/heads/agent/e-short-line")))},
		{id: "no-hex", path: push, body: []byte("zzzz" + string(create("refs/heads/agent/e-no-hex")))},
		{id: "no-flush", path: push, body: []byte(pkt(command(zeroID, next, "refs/heads/agent/e-no-flush")))},
		{id: "delimiter", path: push, body: []byte(pkt(command(zeroID, next, "refs/heads/agent/e-delimiter")+"\x00report-status") + "0001" + string(pack))},
		{id: "newline", path: push, body: create("refs/heads/agent/e-newline\n" + command(main, next, "refs/heads/main"))},
		{id: "second-null", path: push, body: pushBody(pack, nil, command(zeroID, next, "refs/heads/agent/e-second-null"), command(zeroID, next, "refs/heads/agent/f-second-null\x00refs/heads/main"))},
		{id: "same-twice", path: push, body: pushBody(pack, nil, command(zeroID, next, "refs/heads/agent/e-same-twice"), command(zeroID, main, "refs/heads/agent/e-same-twice"))},
		{id: "short-id", path: push, body: create("refs/heads/agent/e-short-id")[4:]},
		{id: "upper-id", path: push, body: pushBody(pack, nil, command(zeroID, strings.ToUpper(next), "refs/heads/agent/e-upper-id"))},
		{id: "nothing", allowed: true, path: push, body: pushBody(nil, nil, command(zeroID, zeroID, "refs/heads/agent/e-nothing"))},
		{id: "certificate", path: push, body: []byte(pkt("push-cert\x00report-status") + pkt("certificate version 0.1\n") + pkt("\n") + pkt(command(main, next, "refs/heads/main")+"\n") + pkt("push-cert-end\n") + "0000" + string(pack))},
		{id: "shallow", path: push, body: []byte(pkt("shallow "+main) + pkt("shallow zzz") + string(create("refs/heads/agent/e-shallow")))},
		{id: "gzip", path: push, headers: []string{"Content-Encoding: gzip"}, body: zipped(create("refs/heads/agent/e-gzip")), record: []string{`"rule":"git-request"`}},
		{id: "deflate", path: push, headers: []string{"Content-Encoding: deflate"}, body: create("refs/heads/agent/e-deflate"), record: []string{`"rule":"git-request"`}},
		{id: "identity", path: push, headers: []string{"Content-Encoding: x, gzip"}, body: create("refs/heads/agent/e-identity"), record: []string{`"rule":"git-request"`}},

		{id: "thin", path: push, body: pushBody(thin, nil, command(zeroID, bigger, "refs/heads/agent/thin"))},
		{id: "truncated", path: push, body: pushBody(pack[:len(pack)-25], nil, command(zeroID, next, "refs/heads/agent/e-truncated"))},
		{id: "no-trailer", path: push, body: pushBody(pack[:len(pack)-20], nil, command(zeroID, next, "refs/heads/agent/e-no-trailer"))},
		{id: "wrong-trailer", path: push, body: pushBody(append(bytes.Clone(pack[:len(pack)-1]), pack[len(pack)-1]^1), nil, command(zeroID, next, "refs/heads/agent/e-wrong-trailer"))},
		{id: "two-packs", path: push, body: pushBody(append(bytes.Clone(pack), badPack...), nil, command(zeroID, bad, "refs/heads/agent/e-two-packs"))},
		{id: "trailing", path: push, body: pushBody(append(bytes.Clone(pack), "0000"...), nil, command(zeroID, next, "refs/heads/agent/e-trailing"))},
		{id: "trailing-long", path: push, body: pushBody(append(bytes.Clone(pack), bytes.Repeat([]byte("x"), 70000)...), nil, command(zeroID, next, "refs/heads/agent/e-trailing-long"))},
		{id: "more-objects", path: push, body: pushBody(countPack(pack, 1), nil, command(zeroID, next, "refs/heads/agent/e-more-objects"))},
		{id: "fewer-objects", path: push, body: pushBody(countPack(badPack, -1), nil, command(zeroID, bad, "refs/heads/agent/e-fewer-objects"))},
		{id: "no-pack", path: push, body: pushBody(nil, nil, command(zeroID, next, "refs/heads/agent/e2-no-pack"))},
		{id: "version-pack", path: push, body: pushBody(append([]byte("PACK\x00\x00\x00\x04"), pack[8:]...), nil, command(zeroID, next, "refs/heads/agent/e-version-pack"))},
		{id: "unknown-commit", path: push, body: pushBody(pack, nil, command(zeroID, strings.Repeat("ab", 20), "refs/heads/agent/e-unknown-commit"))},
		{id: "old-lie", path: push, body: pushBody(pack, nil, command(next, next, "refs/heads/steady/none"))},
		{id: "sha256-lie", path: push, body: bytes.Replace(create("refs/heads/agent/e-sha256-lie"), []byte("sha1"), []byte("sha2"), 1)},
	}
	for i, ref := range []string{
		"refs/for/main", "refs/for/main%topic=x", "refs/drafts/main", "refs/meta/config", "refs/pull/1/head", "refs/merge-requests/1/head", "refs/notes/commits", "refs/replace/" + main,
		"refs/remotes/origin/main", "refs/heads/Agent/x", "refs/heads/agent", "HEAD", "refs/heads/HEAD", "refs/heads/agent/../main", "refs/heads/agent//x", "refs/heads/agent/x/",
		"refs/heads/agent/x.lock", "refs/heads/agent/.x", "refs/heads/agent/x y", "refs/heads/agent/x~1", "refs/heads/agent/x^{}", "refs/heads/agent/@{1}", "refs/heads/agent/x\\\\y",
		"refs/heads/agent/x:y", "refs/heads/agent/\x1b[31m", "refs//heads/agent/x", "refs/heads/agent/x?", "refs/heads/agent/*", "heads/agent/x", "/refs/heads/agent/x", "refs/tags/agent/x", "refs/tags/w1",
		"refs/heads/agent/\u202Ex", "refs/stash", "refs/heads/MAIN", "refs/heads/main\u200b",
	} {
		if i == 32 { // a name that git allows and a rule opens: it may pass, but not as anything else
			continue
		}
		requests = append(requests, gitRequest{id: fmt.Sprintf("ref-%d", i), path: push, body: create(ref), real: i < 9})
	}
	return requests, next
}

// TestGitCommandsAlone sends the attacks to the forge without a gateway between. Those that are real succeed there.
func TestGitCommandsAlone(t *testing.T) {
	f := newForge(t)
	requests, _ := gitCommands(f)
	tried := 0
	for _, q := range requests {
		if !q.real && !strings.HasPrefix(q.id, "control") || q.id == "control-gone" {
			continue
		}
		tried++
		name := strings.TrimSuffix(strings.TrimPrefix(q.path, "/test/"), ".git/git-receive-pack")
		f.copy(name+".git", name+"-"+q.id+".git")
		before := f.refs(name + "-" + q.id + ".git")
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.plain.URL+"/"+name+"-"+q.id+".git/git-receive-pack", bytes.NewReader(q.body))
		if err != nil {
			t.Fatal(err)
		}
		r.SetBasicAuth("x", gitToken)
		r.Header.Set("Content-Type", "application/x-git-receive-pack-request")
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		said, err := io.ReadAll(answer.Body)
		_ = answer.Body.Close() // read to its end
		if err != nil || answer.StatusCode != http.StatusOK || maps.Equal(before, f.refs(name+"-"+q.id+".git")) {
			t.Errorf("%s: %s %v: %q", q.id, answer.Status, err, said)
		}
	}
	if tried < 22 {
		t.Errorf("only %d were tried", tried)
	}
}

// TestGitCommands pushes by hand what git itself would not send.
func TestGitCommands(t *testing.T) {
	testenv.Need(t, "tool:git", "tool:curl")
	forEachUser(t, func(t *testing.T, h *house) {
		f := newForge(t)
		g := newGitHouse(h, f, "")
		requests, next := gitCommands(f)
		before := map[string]map[string]string{}
		for _, name := range []string{"acme/site.git", "acme/alias.git"} {
			before[name] = f.refs(name)
		}
		before["acme/site.git"]["refs/heads/agent/raw"] = next
		before["acme/alias.git"]["refs/heads/other"] = next
		cases := g.send(requests)
		for name, want := range before {
			if now := f.refs(name); !maps.Equal(now, want) {
				t.Errorf("%s: refs are\n%v\nshould be\n%v", name, now, want)
			}
		}
		if now := f.git("acme/alias.git", "symbolic-ref", "refs/heads/alias"); now != "refs/heads/main" {
			t.Errorf("the alias points to %s", now)
		}
		for id, answer := range cases {
			if strings.Contains(answer.output, "HTTP/1.1 500") {
				t.Errorf("%s: %.500q", id, answer.output)
			}
		}
		for _, q := range f.requests(0) {
			if bytes.Contains(q.head, []byte("push-cert")) || q.encoding != "" && strings.HasSuffix(q.path, "git-receive-pack") {
				t.Errorf("this reached the upstream: %+v", q)
			}
		}
		g.searchTokens()
	})
}

// TestGitProtectedFiles changes protected files in each way in which git can.
func TestGitProtectedFiles(t *testing.T) {
	testenv.Need(t, "tool:git", "tool:curl")
	forEachUser(t, func(t *testing.T, h *house) {
		f := newForge(t)
		f.openWorkshop()
		main := f.git(workshop, "rev-parse", "main")
		// At the upstream, by somebody's hand: a branch whose workflow was changed.
		evil := f.commit(gitChange{".github/workflows/ci.yml": "on: [push]\nrun: steal\n"}, main)
		f.git(workshop, "push", "-q", filepath.Join(f.root, "acme/site.git"), evil+":refs/heads/evil")
		g := newGitHouse(h, f, "")
		script := gitPrelude + "BASE=" + g.direct() + `
export commit BASE
git clone -q $BASE/acme/site.git a
try() { id=$1; shift; rm -rf c; cp -r a c; cd c; git checkout -q -B work origin/main; eval "$*" || echo PREPARATION FAILED $id; cd ..; step $id "git -C c push origin work:refs/heads/agent/$id"; }
save='git add -A && git commit -qm change'
try control-file 'echo more >> src/main.go && eval "$save"'
try control-near 'mkdir -p .github/other && echo x > .github/other/ci.yml && echo y > AGENTS.md.txt && mkdir -p x && echo z > x/AGENTS.txt && eval "$save"'
try control-merge 'git checkout -q -b side && echo s > side.txt && eval "$save" && git checkout -q work && echo w > w.txt && eval "$save" && git merge -q --no-edit side'
try control-main-on 'git commit -q --allow-empty -m empty'
try edit 'echo "run: steal" >> .github/workflows/ci.yml && eval "$save"'
try new 'echo "on: push" > .github/workflows/other.yml && eval "$save"'
try deep 'mkdir -p .github/workflows/a/b && echo x > .github/workflows/a/b/c && eval "$save"'
try gone 'git rm -q AGENTS.md && eval "$save"'
try moved 'git mv AGENTS.md OTHER.md && eval "$save"'
try moved-in 'git mv README.md .github/workflows/README.md && eval "$save"'
try mode 'chmod +x AGENTS.md && eval "$save"'
try link 'ln -sf src/main.go AGENTS.md && eval "$save"'
try link-folder 'git mv .github/workflows .github/kept && ln -s kept .github/workflows && eval "$save"'
try link-above 'git mv .github elsewhere && ln -s elsewhere .github && eval "$save"'
try file-for-folder 'git rm -rq .github && echo x > .github && eval "$save"'
try submodule 'git rm -rq .github/workflows && git update-index --add --cacheinfo 160000,$(git rev-parse HEAD),.github/workflows && git commit -qm change'
try case 'mkdir -p .GitHub/Workflows && echo x > .GitHub/Workflows/x.yml && eval "$save"'
try case-file 'echo x > agents.md && eval "$save"'
try reverted 'echo x >> AGENTS.md && eval "$save" && git revert --no-edit HEAD'
try hidden-parent 'echo x >> AGENTS.md && eval "$save" && git commit -q --allow-empty -m second && echo y > y && eval "$save"'
try trees-known 'git commit -q --allow-empty -m base && git reset -q --hard $(git commit-tree -p HEAD -m change origin/evil^{tree})'
try merge-odd 'git checkout -q -b side && echo s > s && eval "$save" && git checkout -q work && git merge -q --no-commit --no-ff side && echo x >> AGENTS.md && eval "$save"'
try root 'git checkout -q --orphan fresh && git add -A && git commit -qm root && git branch -qf work && git checkout -q work'
# What is at the upstream already can be stood upon: the merge takes a file as one parent has it.
try upstream-merge 'git merge -q --no-edit origin/evil'
rm -rf c; cp -r a c; cd c; git checkout -q -B work origin/main; echo one > one; eval "$save"; echo x >> AGENTS.md; eval "$save"; cd ..
step second-first 'git -C c push origin work~1:refs/heads/agent/second'
step second 'git -C c push origin work:refs/heads/agent/second'
step tag 'git -C c push origin work:refs/tags/v7'
`
		before := f.refs("acme/site.git")
		r := g.script(2*time.Minute, script, "--disk", "1g")
		cases := gitCases(r.stdout)
		if strings.Contains(r.stdout, "PREPARATION") || len(cases) != 27 {
			t.Fatalf("%d cases: %s%s", len(cases), r.stdout, r.stderr)
		}
		now := f.refs("acme/site.git")
		for id, c := range cases {
			ref := "refs/heads/agent/" + id
			open := strings.HasPrefix(id, "control-") || id == "upstream-merge"
			switch id {
			case "second-first":
				open, ref = true, "refs/heads/agent/second"
			case "second":
				ref = ""
			case "tag":
				ref = "refs/tags/v7"
			}
			if open != (c.code == 0) || ref != "" && open != (now[ref] != "") {
				t.Errorf("%s: exit %d, %s is %q\n%s", id, c.code, ref, now[ref], c.output)
			}
			if !open && !strings.Contains(c.output, "remote: cofferdam: ") {
				t.Errorf("%s: no reason is told:\n%s", id, c.output)
			}
		}
		for ref := range before {
			if now[ref] != before[ref] {
				t.Errorf("%s was moved", ref)
			}
		}
		if got := f.git("acme/site.git", "log", "-1", "--format=%s", "refs/heads/agent/second"); got != "change" || f.git("acme/site.git", "ls-tree", "refs/heads/agent/second", "AGENTS.md") != f.git("acme/site.git", "ls-tree", "main", "AGENTS.md") {
			t.Errorf("agent/second has another AGENTS.md")
		}
	})
}
