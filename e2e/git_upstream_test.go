package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// TestGitUpstreams clones from and pushes to upstreams that are slow, broken, lying, or send elsewhere: what people read is clear, soon, and without the credential.
func TestGitUpstreams(t *testing.T) {
	testenv.Need(t, "tool:git", "tool:curl")
	forEachUser(t, func(t *testing.T, h *house) {
		f := newForge(t)
		for _, name := range []string{"slow", "500", "401", "403", "404", "429", "reset", "cut", "moved", "away", "away-post", "old", "echo", "echo-error", "echo-list", "html", "garbage"} {
			f.copy("acme/site.git", "acme/m-"+name+".git")
		}
		g := newGitHouse(h, f, "")
		g.law(fmt.Sprintf(`  upstreams:
    - {name: test, url: "https://%s:%s", credential: forge}
    - {name: expired, url: "https://%s:%s", credential: forge}
    - {name: wrong, url: "https://wrong.example.com:%s"}
    - {name: nobody, url: "https://%s:1"}
`, gitHost, f.port, expiredHost, f.port, f.port, otherHost)+gitProfiles+`  repositories:
    - {upstream: test, matching: "acme/.*", profile: worker}
    - {upstream: expired, matching: ".*", profile: worker}
    - {upstream: wrong, matching: ".*", profile: worker}
    - {upstream: nobody, matching: ".*", profile: worker}
`, "")
		echo := echoes()
		f.be("acme/m-slow.git", slow(400*time.Millisecond))
		f.be("acme/m-500.git", fails(500, "\x1b[31mfatal: it hurts\x1b[0m"))
		f.be("acme/m-401.git", fails(401, "who?"))
		f.be("acme/m-403.git", fails(403, "no"))
		f.be("acme/m-404.git", fails(404, "none"))
		f.be("acme/m-429.git", fails(429, "slowly"))
		f.be("acme/m-reset.git", resets())
		f.be("acme/m-cut.git/git-upload-pack", mood{cut: 600})
		f.be("acme/m-moved.git", mood{answer: func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, strings.Replace(r.URL.RequestURI(), "m-moved", "site", 1), http.StatusMovedPermanently)
			return true
		}})
		f.be("acme/m-away.git", redirects("https://"+otherHost+":"+f.port))
		f.be("acme/m-away-post.git/git-upload-pack", redirects("https://"+otherHost+":"+f.port))
		f.be("acme/m-away-post.git/git-receive-pack", mood{answer: func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "https://"+otherHost+":"+f.port+r.URL.RequestURI(), http.StatusTemporaryRedirect)
			return true
		}})
		f.be("acme/m-old.git", old())
		f.be("acme/m-echo.git", echo)
		f.be("acme/m-echo-error.git", mood{answer: func(w http.ResponseWriter, r *http.Request) bool {
			http.Error(w, "you sent "+r.Header.Get("Authorization")+" that is "+gitToken, http.StatusForbidden)
			return true
		}})
		f.git("acme/m-echo-list.git", "update-ref", "refs/heads/"+gitToken, "main") // a ref's name, in every list of refs
		f.be("acme/m-html.git", mood{answer: func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, "<html>please log in</html>")
			return true
		}})
		f.be("acme/m-garbage.git", mood{answer: func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Type", "application/x-"+r.URL.Query().Get("service")+"-advertisement")
			fmt.Fprint(w, "001e# service=git-upload-pack\n0000zzzz")
			return true
		}})
		at := func(path string) string { return gitInside[:len(gitInside)-len("test")] + path }
		script := gitPrelude + askProxyToken + "export commit\n"
		var ids []string
		add := func(id, line string) {
			ids = append(ids, id)
			script += fmt.Sprintf("step %s '%s'\n", id, line)
		}
		add("control", "git clone -q "+at("test/acme/site.git")+" a")
		for _, name := range []string{"slow", "500", "401", "403", "404", "429", "reset", "cut", "moved", "away", "away-post", "old", "echo", "echo-error", "echo-list", "html", "garbage"} {
			add(name, "git clone -q "+at("test/acme/m-"+name+".git")+" c-"+name+" && git -C c-"+name+" for-each-ref")
		}
		for _, name := range []string{"expired", "wrong", "nobody"} {
			add(name, "git clone -q "+at(name+"/acme/site.git")+" c-"+name)
		}
		script += "(cd a; git checkout -q -b work; git commit -q --allow-empty -m change)\n"
		for _, name := range []string{"slow", "away-post", "old", "echo", "echo-error"} {
			add("push-"+name, "git -C a push "+at("test/acme/m-"+name+".git")+" work:refs/heads/agent/one")
		}
		for _, name := range []string{"echo", "echo-error", "echo-list", "500", "away"} {
			for _, service := range []string{"upload", "receive"} {
				add("head-"+service+"-"+name, "curl -sS -i -u x:$TOKEN \""+at("test/acme/m-"+name+".git/info/refs?service=git-"+service+"-pack")+"\"")
			}
		}
		mark, began := f.mark(), time.Now()
		r := g.script(2*time.Minute, script, "--resolve", "wrong.example.com=127.0.0.1")
		if took := time.Since(began); took > 45*time.Second {
			t.Errorf("all together took %v", took)
		}
		cases := gitCases(r.stdout)
		noToken(t, "inside", r.stdout+r.stderr)
		works := map[string]bool{
			"control": true, "slow": true, "old": true, "echo": true, "echo-list": true, "push-slow": true, "push-echo": true,
			"head-upload-echo": true, "head-receive-echo": true, "head-upload-echo-list": true, "head-receive-echo-list": true,
		}
		for _, id := range ids {
			c := cases[id]
			if c == nil {
				t.Errorf("%s did not run: %s", id, r.stderr)
				continue
			}
			worked := c.code == 0 && (!strings.HasPrefix(id, "head-") || strings.Contains(c.output, "HTTP/1.1 200"))
			if worked != works[id] {
				t.Errorf("%s: exit %d\n%s", id, c.code, c.output)
			}
			if strings.Contains(c.output, "\x1b") {
				t.Errorf("%s: escape codes of the upstream's reach the terminal: %q", id, c.output)
			}
			if !worked && id != "cut" && id != "garbage" && !strings.Contains(c.output, "cofferdam: ") {
				t.Errorf("%s: the gateway says nothing:\n%s", id, c.output)
			}
			t.Logf("%s: exit %d\n%s", id, c.code, c.output)
		}
		lent := false
		for _, q := range f.requests(mark) {
			if q.host != gitHost+":"+f.port && q.host != f.objectsAuthority() {
				t.Errorf("a redirection was followed, or a certificate not looked at: %+v", q)
			}
			lent = lent || strings.Contains(q.authorization, "Basic ")
		}
		if !lent {
			t.Error("control: the upstream never got the credential")
		}
		g.searchTokens()
	})
}

// TestGitHangingUpstream clones from an upstream that accepts and says nothing: it ends by itself, and an interrupted client is let go at once.
func TestGitHangingUpstream(t *testing.T) {
	testenv.Need(t, "root", "tool:git")
	h := newHouse(t, users()[0])
	f := newForge(t)
	g := newGitHouse(h, f, "")
	f.be("acme/site.git", hangs())
	began := time.Now()
	r := g.script(2*time.Minute, gitPrelude+"step hang 'timeout 3 git clone -q "+gitInside+"/acme/site.git a'\n")
	if c := gitCases(r.stdout)["hang"]; c == nil || c.code == 0 || time.Since(began) > 20*time.Second {
		t.Errorf("after %v: %+v %s", time.Since(began), c, r.stderr)
	}
}

// TestGitEchoedReport pushes to and fetches from an upstream whose answers repeat the credential in every place that they have, and split at every place.
func TestGitEchoedReport(t *testing.T) {
	testenv.Need(t, "tool:git")
	forEachUser(t, func(t *testing.T, h *house) {
		f := newForge(t)
		f.copy("acme/site.git", "acme/report.git")
		g := newGitHouse(h, f, "")
		g.law(fmt.Sprintf("  upstreams:\n    - {name: test, url: \"https://%s:%s\", credential: forge}\n", gitHost, f.port)+gitProfiles+
			"  repositories:\n    - {upstream: test, matching: \"acme/.*\", profile: unchecked}\n", "")
		f.be("acme/report.git/git-receive-pack", mood{answer: func(w http.ResponseWriter, r *http.Request) bool {
			var all bytes.Buffer
			_, _ = all.ReadFrom(r.Body) // what it was does not matter
			head := r.Header.Get("Authorization")
			w.Header().Set("Content-Type", "application/x-git-receive-pack-result")
			band := func(n byte, text string) string { return pkt(string(n) + text) }
			for i := range gitToken { // split at every place over two messages
				fmt.Fprint(w, band(2, "token "+gitToken[:i])+band(2, gitToken[i:]+"\n"))
			}
			fmt.Fprint(w, band(2, head+"\n")+band(1, pkt("unpack ok\n")+pkt("ng refs/heads/agent/one you sent "+head+" "+gitToken+"\n")+"0000")+"0000")
			return true
		}})
		f.copy("acme/site.git", "acme/progress.git")
		f.be("acme/progress.git/git-upload-pack", mood{answer: func(w http.ResponseWriter, r *http.Request) bool {
			body, _ := io.ReadAll(r.Body) // what breaks off is no fetch
			r.Body = io.NopCloser(bytes.NewReader(body))
			if !bytes.Contains(body, []byte("command=fetch")) {
				return false
			}
			w.Header().Set("Content-Type", "application/x-git-upload-pack-result")
			fmt.Fprint(w, pkt("packfile\n"))
			for i := range gitToken {
				fmt.Fprint(w, pkt("\x02token "+gitToken[:i])+pkt("\x02"+gitToken[i:]+"\n"))
			}
			fmt.Fprint(w, pkt("\x03in vain: "+r.Header.Get("Authorization")+" "+gitToken))
			return true
		}})
		r := g.script(time.Minute, gitPrelude+"step fetch 'git clone "+gitInside+"/acme/progress.git p'\ngit clone -q "+gitInside+"/acme/report.git a\ncd a && git commit -q --allow-empty -m change; cd ..\nstep push 'git -C a push origin HEAD:refs/heads/agent/one'\n")
		c := gitCases(r.stdout)["push"]
		if c == nil || c.code == 0 || !strings.Contains(c.output, "! [remote rejected]") || !strings.Contains(c.output, "token ") {
			t.Fatalf("%+v %s%s", c, r.stdout, r.stderr)
		}
		noToken(t, "push", c.output)
		fetched := gitCases(r.stdout)["fetch"]
		if fetched.code == 0 || !strings.Contains(fetched.output, "in vain") || !strings.Contains(fetched.output, "remote: token ") {
			t.Errorf("fetch: %d %s", fetched.code, fetched.output)
		}
		noToken(t, "fetch", fetched.output)
		// Side-band messages are joined by whoever reads them.
		joined := strings.NewReplacer("remote: ", "", "\n", "", "        ", "").Replace(c.output)
		noToken(t, "push, joined", joined)
		g.searchTokens()
	})
}

// TestGitLFSElsewhere has an upstream that gives out places for large objects at which policy does not allow any.
func TestGitLFSElsewhere(t *testing.T) {
	testenv.Need(t, "tool:git", "tool:git-lfs", "tool:curl")
	forEachUser(t, func(t *testing.T, h *house) {
		f := newForge(t)
		g := newGitHouse(h, f, "")
		mark := f.mark()
		const oid = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
		hrefs := map[string]string{
			"other": "https://" + otherHost + ":" + f.port + "/objects/acme/site.git/" + oid, "metadata": "https://169.254.169.254/latest/meta-data/", "metadata-plain": "http://169.254.169.254/latest/meta-data/",
			"loopback": "https://127.0.0.1:" + f.port + "/objects/x", "plain": "http://" + objectsHost + ":" + f.port + "/objects/x", "file": "file:///etc/passwd",
			"user": "https://x:" + gitToken + "@" + objectsHost + ":" + f.port + "/objects/x", "inside": gitInside + "/acme/hidden.git/info/refs",
			"near": "https://" + objectsHost + ".example.org/objects/x", "userinfo-host": "https://" + objectsHost + ":" + f.port + "@" + otherHost + ":" + f.port + "/x",
		}
		// What is asked for says by its size which place is wanted.
		size := func(id string) int64 { return int64(len(id)*1000) + int64(id[0]) }
		f.be("acme/site.git/info/lfs/objects/batch", mood{answer: func(w http.ResponseWriter, r *http.Request) bool {
			var asked struct {
				Objects []lfsObject `json:"objects"`
			}
			_ = json.NewDecoder(r.Body).Decode(&asked) // what cannot be read has no objects
			for i, o := range asked.Objects {
				for id, href := range hrefs {
					if o.Size == size(id) {
						asked.Objects[i].Actions = map[string]lfsAction{"download": {Href: href, Header: map[string]string{"Authorization": "Bearer " + objectToken}}}
					}
				}
			}
			lfsAnswer(w, http.StatusOK, map[string]any{"transfer": "basic", "objects": asked.Objects})
			return true
		}})
		var script strings.Builder
		script.WriteString(gitPrelude + askProxyToken)
		for id := range hrefs {
			body := fmt.Sprintf(`{\"operation\":\"download\",\"transfers\":[\"basic\"],\"objects\":[{\"oid\":\"%s\",\"size\":%d}]}`, oid, size(id))
			fmt.Fprintf(&script, "step %s 'curl -sS -i -u x:$TOKEN -H \"Accept: application/vnd.git-lfs+json\" -H \"Content-Type: application/vnd.git-lfs+json\" -d \"%s\" %s/acme/site.git/info/lfs/objects/batch'\n", id, body, gitInside)
		}
		r := g.script(time.Minute, script.String())
		noToken(t, "inside", r.stdout+r.stderr)
		cases := gitCases(r.stdout)
		for id := range hrefs {
			if c := cases[id]; c == nil || !strings.Contains(c.output, "HTTP/1.1 200") || strings.Contains(c.output, `"href"`) || !strings.Contains(c.output, `"error"`) {
				t.Errorf("%s: %+v %s", id, c, r.stderr)
			}
		}
		for _, q := range f.requests(mark) {
			if !strings.HasSuffix(q.path, "/info/lfs/objects/batch") {
				t.Errorf("this was asked: %+v", q)
			}
		}
	})
}

// TestGitBesides goes around the proxy: with a credential of its own, straight to the forge where an egress rule allows its host, and over SSH.
func TestGitBesides(t *testing.T) {
	testenv.Need(t, "tool:git", "tool:curl")
	forEachUser(t, func(t *testing.T, h *house) {
		f := newForge(t)
		ssh := sshListener(t)
		g := newGitHouse(h, f, strings.ReplaceAll(`  rules:
    - {hosts: [`+gitHost+`], ports: [PORT, SSHPORT]}
    - {hosts: [`+otherHost+`], ports: [SSHPORT], protocol: tcp}
`, "SSHPORT", ssh))
		f.mount("/page", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "a page") }))
		direct := g.direct()
		script := gitPrelude + askProxyToken + `
curl='curl -sS -m 20 -o - -w %{http_code}'
step control "$curl ` + direct + `/page"
step settled 'git clone -q ` + direct + `/acme/site.git a'
step list "$curl -u x:of-my-own '` + direct + `/public/open.git/info/refs?service=git-upload-pack'"
step list-1.1 "$curl --http1.1 '` + direct + `/public/open.git/info/refs?service=git-upload-pack'"
step encoded "$curl --path-as-is '` + direct + `/public/open.git/info/%72efs?service=git-upload-pack'"
step dumb "$curl '` + direct + `/public/open.git/HEAD'"
step object "$curl '` + direct + `/public/open.git/objects/info/packs'"
step post "$curl -X POST -H 'Content-Type: application/x-git-upload-pack-request' --data-binary 0000 ` + direct + `/public/open.git/git-upload-pack"
step receive "$curl -X POST -H 'Content-Type: application/x-git-receive-pack-request' --data-binary 0000 ` + direct + `/acme/site.git/git-receive-pack"
step lfs "$curl -X POST -d {} ` + direct + `/acme/site.git/info/lfs/objects/batch"
step own-in-url 'git clone -q https://x:of-my-own@` + gitHost + `:` + f.port + `/acme/site.git b'
step own-header 'git -c http.extraHeader="Authorization: Basic eDpvZi1teS1vd24=" clone -q ` + direct + `/acme/site.git c'
step own-helper 'git -c credential.helper= -c credential.helper="!printf \"username=x\\npassword=of-my-own\\n\"; #" clone -q ` + direct + `/acme/site.git c2'
step unsettled 'env -u GIT_CONFIG_COUNT GIT_SSL_NO_VERIFY=1 git clone -q ` + direct + `/public/open.git d'
step ssh 'timeout 5 bash -c "exec 3<>/dev/tcp/` + gitHost + `/SSHPORT && echo SSH-2.0-x >&3 && read -r line <&3 && echo \$line"'
step ssh-control 'timeout 5 bash -c "exec 3<>/dev/tcp/` + otherHost + `/SSHPORT && echo SSH-2.0-x >&3 && read -r line <&3 && echo \$line"'
`
		mark := f.mark()
		r := g.script(time.Minute, strings.ReplaceAll(script, "SSHPORT", ssh))
		noToken(t, "inside", r.stdout+r.stderr)
		cases := gitCases(r.stdout)
		for _, id := range []string{"control", "settled", "ssh-control"} {
			if c := cases[id]; c == nil || c.code != 0 {
				t.Errorf("%s: %+v %s", id, c, r.stderr)
			}
		}
		for _, id := range []string{"list", "list-1.1", "encoded", "dumb", "object", "post", "receive", "lfs"} {
			if c := cases[id]; c == nil || strings.HasSuffix(strings.TrimSpace(c.output), "200") {
				t.Errorf("%s: %+v", id, c)
			}
		}
		for _, id := range []string{"own-in-url", "own-header", "own-helper", "unsettled", "ssh"} {
			if c := cases[id]; c == nil || c.code == 0 {
				t.Errorf("%s: %+v", id, c)
			}
		}
		for _, q := range f.requests(mark) {
			if strings.Contains(q.path, "public/open") || q.path != "/page" && !strings.HasPrefix(q.path, "/acme/site.git/") || strings.Contains(q.authorization, "eDpvZi1teS1vd24=") {
				t.Errorf("this reached the forge past the proxy: %+v", q)
			}
		}
		if _, ok := denied(g.events(), event{Rule: "git-through-proxy"}); !ok {
			t.Errorf("no denial by git-through-proxy on record: %+v", g.events())
		}
		for id, c := range cases {
			t.Logf("%s: exit %d %.400s", id, c.code, c.output)
		}
	})
}

// sshListener greets as an SSH server does, and returns its port.
func sshListener(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() }) // what waits, ends
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, "SSH-2.0-forge\r\n")
			time.AfterFunc(5*time.Second, func() { _ = c.Close() }) // the client is gone by then
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// TestGitDoors asks for the names at which large forges speak SSH on the port of HTTPS, with and without the forge as an upstream.
func TestGitDoors(t *testing.T) {
	testenv.Need(t, "userns")
	h := newHouse(t, users()[len(users())-1])
	const rule = "version: 1\negress:\n  rules:\n    - {hosts: [ssh.github.com, altssh.gitlab.com], ports: [443, 22]}\n"
	const ask = "getent ahostsv4 ssh.github.com; getent ahostsv4 altssh.gitlab.com; true"
	h.write("../agent.yaml", rule)
	if r := h.sh(ask, "--policy", "../agent.yaml"); strings.Count(r.stdout, "STREAM") != 2 {
		t.Errorf("control: %s%s", r.stdout, r.stderr)
	}
	h.write("../agent.yaml", rule+"git:\n  upstreams:\n    - {name: gh, type: github, url: \"https://github.com\"}\n    - {name: gl, type: gitlab, url: \"https://gitlab.com\"}\n  repositories:\n    - {upstream: gh, repository: a/b, profile: read}\n")
	if r := h.sh(ask, "--policy", "../agent.yaml"); r.code != 0 || strings.Contains(r.stdout, "STREAM") {
		t.Errorf("%d %s%s", r.code, r.stdout, r.stderr)
	}
	for _, door := range []string{"ssh.github.com", "altssh.gitlab.com"} {
		if _, ok := denied(h.events(), event{Host: door, Rule: "git-through-proxy"}); !ok {
			t.Errorf("%s: no denial on record: %+v", door, h.events())
		}
	}
}

// TestGitStolenToken uses a run's proxy token from another run while the first lives, after it has ended, and from the host.
func TestGitStolenToken(t *testing.T) {
	testenv.Need(t, "tool:git", "tool:curl")
	forEachUser(t, func(t *testing.T, h *house) {
		f := newForge(t)
		g := newGitHouse(h, f, "")
		g.write("first.sh", askProxyToken+"echo $TOKEN; read line; curl -s -o /dev/null -w '%{http_code}\\n' -u x:$TOKEN '"+gitInside+"/acme/site.git/info/refs?service=git-upload-pack'\n")
		first := g.command(t.Context(), append(g.gitFlags(), "-q", "--", "sh", "first.sh")...)
		in, err := first.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := first.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := first.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = first.Process.Kill() }() // it has ended, unless the test failed
		line := make([]byte, 4096)
		n, err := out.Read(line)
		stolen := strings.TrimSpace(string(line[:n]))
		if err != nil || len(stolen) < 16 {
			t.Fatalf("token %q: %v", stolen, err)
		}
		use := "curl -s -o /dev/null -w '%{http_code}\\n' -u x:" + stolen + " '" + gitInside + "/acme/site.git/info/refs?service=git-upload-pack'\n"
		if r := g.script(time.Minute, use, "-q"); r.stdout != "403\n" {
			t.Errorf("another run's token, while that lives: %q%s", r.stdout, r.stderr)
		}
		if _, ok := denied(g.events(), event{Rule: "git-token"}); !ok {
			t.Errorf("not on record: %+v", g.events())
		}
		for _, target := range []string{f.plain.URL, "http://git.cofferdam.internal/test"} {
			if out, err := exec.Command("curl", "-sS", "-m", "5", "-f", "-u", "x:"+stolen, target+"/acme/site.git/info/refs?service=git-upload-pack").CombinedOutput(); err == nil {
				t.Errorf("from the host, at %s: %s", target, out)
			}
		}
		_, _ = in.Write([]byte("\n")) // a run that is gone shows in what follows
		n, _ = out.Read(line)
		if string(line[:n]) != "200\n" {
			t.Errorf("control: the first run's own token: %q", line[:n])
		}
		_ = first.Wait()
		if r := g.script(time.Minute, use, "-q"); r.stdout != "403\n" {
			t.Errorf("an ended run's token: %q%s", r.stdout, r.stderr)
		}
		r := g.do("audit", "--json")
		if strings.Contains(r.stdout, stolen) {
			t.Error("the proxy token is in the audit log")
		}
	})
}
