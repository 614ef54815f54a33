package e2e

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	wire "github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/client"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// plainName is a name of a server of the test's that speaks HTTP; apiName is that of one under TLS.
const plainName = "up.example.com"

// plain is that server. It counts what reaches it, by path; below /stream it talks until the client has gone.
type plainServer struct {
	port string
	mu   sync.Mutex
	hits map[string]int
}

func newPlainServer(t *testing.T) *plainServer {
	t.Helper()
	p := &plainServer{hits: map[string]int{}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.hits[r.Method+" "+r.URL.Path]++
		p.mu.Unlock()
		for until := time.Now().Add(20 * time.Second); strings.HasSuffix(r.URL.Path, "/stream") && r.Context().Err() == nil && time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
			_, _ = io.WriteString(w, "still here\n") // a client that is gone ends the loop
			_ = http.NewResponseController(w).Flush()
		}
		_, _ = io.WriteString(w, "hello\n")
	}))
	t.Cleanup(server.Close)
	p.port = server.URL[strings.LastIndexByte(server.URL, ':')+1:]
	return p
}

func (p *plainServer) count(what string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hits[what]
}

// outside is a service with servers that its sandboxes' gateways know by name.
type outside struct {
	*service
	plain  *plainServer
	secure *api
	admin  *client.Client
}

// newOutside starts a service in a mount namespace in which /etc/hosts names the test's servers.
func newOutside(h *house) *outside {
	h.t.Helper()
	testenv.Need(h.t, "root", "tool:curl", "tool:unshare", "tool:setpriv")
	secure, authority := newAPI(h.t)
	o := &outside{service: newService(h), plain: newPlainServer(h.t), secure: secure}
	h.trust, o.hosts = filepath.Join(h.home, "authority.pem"), filepath.Join(h.home, "hosts")
	for path, text := range map[string]string{h.trust: string(authority), o.hosts: "127.0.0.1 localhost " + plainName + " " + apiName + "\n"} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			h.t.Fatal(err)
		}
	}
	o.start("127.0.0.1:0")
	return o
}

// base is a policy under which names may be this machine's, and rules that know both servers and let nobody do what the tests try.
func (o *outside) base(more string) string {
	return network + fmt.Sprintf("%s  rules:\n    - {name: plain, hosts: [%s], ports: [%s], methods: [GET], paths: [/open]}\n    - {name: secure, hosts: [%s], ports: [%s], methods: [GET], paths: [/v1/open]}\n",
		more, plainName, o.plain.port, apiName, o.secure.port)
}

// fetch is a shell line that prints the status of a request: 403 or 000 for what did not pass.
func fetch(method, target string) string {
	return "curl -sS --max-time 20 -o /dev/null -w '%{http_code}' -X " + method + " '" + target + "' 2>/dev/null"
}

func (o *outside) http(path string) string  { return "http://" + plainName + ":" + o.plain.port + path }
func (o *outside) https(path string) string { return "https://" + apiName + ":" + o.secure.port + path }

// inbox waits for a denial, and returns how long after a moment it was there.
func (o *outside) inbox(agent, method, path string, since time.Time) (found wire.Denial) {
	o.t.Helper()
	o.await("the denial of "+method+" "+path+" is in the inbox", 10*time.Second, func() bool {
		page, err := o.admin.Denials(o.t.Context(), agent, []wire.DenialState{wire.Open}, client.Page{})
		if err != nil {
			o.t.Fatal(err)
		}
		for _, d := range page.Items {
			if d.Place.Method == method && d.Place.Path == path {
				found = d
				return true
			}
		}
		return false
	})
	took := time.Since(since)
	if o.t.Logf("%s %s: in the inbox %v after the attempt began", method, path, took.Round(time.Millisecond)); took > 2*time.Second {
		o.t.Errorf("%s %s: in the inbox after %v, 2 s are promised", method, path, took)
	}
	return found
}

// refuse makes one attempt that is denied, and returns the denial.
func (o *outside) refuse(b *box, method, target, path string) wire.Denial {
	o.t.Helper()
	began := time.Now()
	if r := b.sh(fetch(method, target)); r.Stdout == "200" || r.Stdout == "401" {
		o.t.Fatalf("%s %s: got through with %s", method, target, r.Stdout)
	}
	return o.inbox(b.Agent, method, path, began)
}

// decide answers a denial, having read its warnings.
func (o *outside) decide(c *client.Client, d wire.Denial, verdict string, scope wire.Scope) wire.Decision {
	o.t.Helper()
	out, err := c.DecideDenial(o.t.Context(), d.ID, wire.Decide{Verdict: verdict, Scope: scope, Widens: true})
	if err != nil {
		o.t.Fatalf("decide %s %s: %v", d.Operation, verdict, err)
	}
	return out
}

// TestService is a team's day: the server is set up, an agent works, what it is denied is reviewed.
func TestService(t *testing.T) {
	forEachUser(t, func(t *testing.T, h *house) {
		o := newOutside(h)
		person := o.setUpByLink()
		o.admin = person.client()
		t.Run("sandbox", func(t *testing.T) { o.within(t).sandbox() })
		t.Run("denials", func(t *testing.T) { o.within(t).denials() })
		t.Run("once", func(t *testing.T) { o.within(t).once() })
		t.Run("refused", func(t *testing.T) { o.within(t).refused() })
		t.Run("asks", func(t *testing.T) { o.within(t).asks() })
		t.Run("credential", func(t *testing.T) { o.within(t).credential() })
		t.Run("four eyes", func(t *testing.T) { o.within(t).fourEyes() })
		o.stop()
		o.gone()
		o.log()
	})
}

// within is the same with another test to report to.
func (o *outside) within(t *testing.T) *outside {
	h := *o.house
	h.t = t
	c := *o.crypt
	c.house = &h
	s := *o.service
	s.crypt = &c
	again := *o
	again.service = &s
	return &again
}

// setUpByLink opens the link as a person would, and finds it used up afterwards.
func (o *outside) setUpByLink() *browser {
	o.t.Helper()
	b := o.browser()
	page := b.ask("GET", strings.TrimPrefix(o.link, o.url), nil)
	if page.status != 200 || !strings.Contains(page.body, "<form") || !strings.Contains(page.body, `name="tenant"`) {
		o.t.Fatalf("the link leads to %d %.300s", page.status, page.body)
	}
	in := wire.Setup{Token: tokenOf(o.t, o.link), Email: "ada@example.com", Name: "Ada", Password: password, Tenant: "acme"}
	wrong := in
	wrong.Token = strings.Repeat("A", len(in.Token))
	if got := b.ask("POST", "/api/v1/auth/setup", wrong); got.status/100 != 4 {
		o.t.Errorf("set-up with a guessed token: %d", got.status)
	}
	person := o.setUp()
	in.Email, in.Tenant = "eve@example.com", "evil"
	if got := b.ask("POST", "/api/v1/auth/setup", in); got.status/100 != 4 {
		o.t.Errorf("the link was good twice: %d %s", got.status, got.body)
	}
	if got := b.ask("POST", "/setup", "token="+in.Token+"&email=eve@example.com&tenant=evil&password=watertight+walls+7&again=watertight+walls+7"); got.status == http.StatusSeeOther {
		o.t.Error("the link was good twice, on the page")
	}
	if got := b.ask("POST", "/api/v1/auth/sign-in", wire.SignIn{Email: in.Email, Password: password}); got.status != http.StatusUnauthorized {
		o.t.Errorf("the second administrator can sign in: %d", got.status)
	}
	return person
}

// sandbox makes an agent that may nothing, and a sandbox of it; commands run, files go both ways.
func (o *outside) sandbox() {
	a := o.agent(o.admin, "quiet", "")
	if text, err := o.admin.EffectivePolicy(o.t.Context(), a.ID); err != nil || strings.Contains(text, "hosts") {
		o.t.Errorf("an agent without a policy has %q, %v", text, err)
	}
	b := o.box(o.admin, wire.NewSandbox{Agent: "quiet", Environment: map[string]string{"GREETING": "good day"}})
	if r := b.sh(`echo "$GREETING"; pwd; echo oh >&2; exit 7`); r.ExitCode != 7 || r.Stdout != "good day\n/work\n" || r.Stderr != "oh\n" || r.Run == "" {
		o.t.Errorf("a command came to %+v", r)
	}
	var out bytes.Buffer
	exit, err := o.admin.Exec(o.t.Context(), b.ID, wire.Exec{Command: []string{"sh", "-c", "tr a-z A-Z; exit 3"}}, client.Streams{Stdin: strings.NewReader("spoken"), Stdout: &out})
	if err != nil || exit.Code != 3 || out.String() != "SPOKEN" {
		o.t.Errorf("over a WebSocket: %q, %+v, %v", out.String(), exit, err)
	}
	data := make([]byte, 3<<20+17)
	_, _ = rand.Read(data) // it does not fail
	if err := o.admin.WriteFile(o.t.Context(), b.ID, "/work/blob", "600", client.Plain, bytes.NewReader(data)); err != nil {
		o.t.Fatal(err)
	}
	if r := b.sh("stat -c '%s %a' /work/blob && cp /work/blob /tmp/copy"); r.Stdout != fmt.Sprintf("%d 600\n", len(data)) {
		o.t.Errorf("the file inside: %+v", r)
	}
	content, err := o.admin.ReadFile(o.t.Context(), b.ID, "/tmp/copy", client.Plain)
	if err != nil {
		o.t.Fatal(err)
	}
	back, err := io.ReadAll(content)
	if err := content.Close(); err != nil {
		o.t.Error(err)
	}
	if err != nil || !bytes.Equal(back, data) {
		o.t.Errorf("the file came back with %d bytes, %v", len(back), err)
	}
	for _, target := range []string{o.http("/x"), o.https("/x")} {
		if r := b.sh(fetch("GET", target)); r.Stdout != "000" {
			o.t.Errorf("an agent that may nothing got %s from %s", r.Stdout, target)
		}
	}
	end := b.stop()
	if end.State != wire.Ended || !strings.Contains(end.How, "enough") || len(end.Problems) > 0 || len(end.Erased) == 0 {
		o.t.Errorf("the end: %+v", end)
	}
	if _, err := o.admin.ExecWait(o.t.Context(), b.ID, wire.Exec{Command: []string{"true"}}); err == nil {
		o.t.Error("a sandbox that has ended runs a command")
	}
}

// denials are denied, reviewed and allowed, over HTTP and HTTPS; what is revoked is cut.
func (o *outside) denials() {
	b := o.box(o.admin, wire.NewSandbox{Agent: o.agent(o.admin, "worker", o.base("")).ID})
	defer b.stop()
	if r := b.sh(fetch("GET", o.http("/open")) + "; echo; " + fetch("GET", o.https("/v1/open"))); r.Stdout != "200\n401" {
		o.t.Fatalf("control: what is allowed came to %q", r.Stdout)
	}
	for _, c := range []struct{ method, target, path, passed string }{
		{"GET", o.http("/stream"), "/stream", ""},
		{"POST", o.http("/data"), "/data", "200"},
		{"PUT", o.https("/v1/data"), "/v1/data", "401"},
	} {
		d := o.refuse(b, c.method, c.target, c.path)
		if d.Suggestion == nil || d.Sandbox != b.ID || d.AgentName != "worker" || d.Rule == "" {
			o.t.Errorf("the denial: %+v", d)
		}
		began := time.Now()
		made := o.decide(o.admin, d, "allow", wire.ForAgent)
		if len(made.InForce) != 1 || made.InForce[0] != b.ID || made.Rule == nil || made.Rule.State != "active" {
			o.t.Fatalf("the decision: %+v", made)
		}
		if c.passed == "" {
			o.cut(b, c.target, *made.Rule)
			continue
		}
		r := b.sh(fetch(c.method, c.target))
		if took := time.Since(began); r.Stdout != c.passed || took > time.Second {
			o.t.Errorf("%s %s: %q, %v after the decision", c.method, c.target, r.Stdout, took)
		} else {
			o.t.Logf("%s %s: passes, %v after the decision was sent", c.method, c.target, took.Round(time.Millisecond))
		}
		refused, was := recorded(o.log(), record{Host: d.Place.Host, Path: c.path, Verdict: "deny", Run: b.ID})
		passed, is := recorded(o.log(), record{Host: d.Place.Host, Path: c.path, Verdict: "allow", Run: b.ID})
		if !was || !is || refused.Rule == passed.Rule || passed.Rule == "" || !strings.Contains(made.Rule.Rule, passed.Rule) {
			o.t.Errorf("on record: denied by %q, allowed by %q; the rule is\n%s", refused.Rule, passed.Rule, made.Rule.Rule)
		}
	}
	if o.plain.count("POST /data") != 1 || !o.secure.got("PUT /v1/data") {
		o.t.Error("the servers did not get what passed, once")
	}
}

// cut revokes the rule by which a connection is open.
func (o *outside) cut(b *box, target string, rule wire.Rule) {
	o.t.Helper()
	reader, writer := io.Pipe()
	var over atomic.Bool
	done := make(chan error, 1)
	go func() {
		_, err := o.admin.Exec(o.t.Context(), b.ID, wire.Exec{Command: []string{"sh", "-c", "curl -sN '" + target + "'; echo over"}}, client.Streams{Stdout: writer})
		over.Store(true)
		_ = writer.Close()
		done <- err
	}()
	first := make([]byte, len("still here\n"))
	if _, err := io.ReadFull(reader, first); err != nil || string(first) != "still here\n" || over.Load() {
		o.t.Fatalf("control: the connection says %q, %v", first, err)
	}
	began := time.Now()
	if _, err := o.admin.RevokeRule(o.t.Context(), rule.ID); err != nil {
		o.t.Fatal(err)
	}
	rest, _ := io.ReadAll(reader)
	if took := time.Since(began); !strings.HasSuffix(string(rest), "over\n") || strings.Contains(string(rest), "hello") || took > time.Second {
		o.t.Errorf("the open connection ended with %.100q, %v after it was revoked", rest, took)
	} else {
		o.t.Logf("cut %v after the rule was revoked", took.Round(time.Millisecond))
	}
	if err := <-done; err != nil {
		o.t.Error(err)
	}
	if r := b.sh(fetch("GET", target)); r.Stdout == "200" {
		o.t.Error("what was revoked passes again")
	}
}

// once lets one crossing through, of ten at a time.
func (o *outside) once() {
	b := o.box(o.admin, wire.NewSandbox{Agent: o.agent(o.admin, "hasty", o.base("")).ID})
	defer b.stop()
	d := o.refuse(b, "POST", o.http("/once"), "/once")
	if n := o.plain.count("POST /once"); n != 0 {
		o.t.Fatalf("%d passed before the decision", n)
	}
	made := o.decide(o.admin, d, "allow", wire.Once)
	r := b.sh("for i in 1 2 3 4 5 6 7 8 9 10; do { " + fetch("POST", o.http("/once")) + "; echo; } & done; wait")
	if n := o.plain.count("POST /once"); n != 1 || strings.Count(r.Stdout, "200") != 1 {
		o.t.Errorf("%d passed: %q", n, r.Stdout)
	}
	o.await("the rule is used", 3*time.Second, func() bool {
		page, err := o.admin.Rules(o.t.Context(), b.Agent, []string{"used"}, client.Page{})
		return err == nil && len(page.Items) == 1 && page.Items[0].ID == made.Rule.ID
	})
	if _, ok := recorded(o.log(), record{Host: plainName, Path: "/once", Verdict: "allow", Rule: "approved:" + made.Rule.ID}); !ok {
		o.t.Error("the crossing is not on record with its rule")
	}
	if r := b.sh(fetch("POST", o.http("/once"))); r.Stdout == "200" {
		o.t.Error("it passes once more")
	}
}

// refused denies for good: nobody is asked again, and what else is allowed of the host goes on.
func (o *outside) refused() {
	b := o.box(o.admin, wire.NewSandbox{Agent: o.agent(o.admin, "bold", o.base("")).ID})
	defer b.stop()
	made := o.decide(o.admin, o.refuse(b, "POST", o.http("/never"), "/never"), "deny", "")
	if made.Denial == nil || made.Denial.State != wire.Refused || made.Rule == nil {
		o.t.Fatalf("the decision: %+v", made)
	}
	if r := b.sh(fetch("POST", o.http("/never"))); r.Stdout != "403" {
		o.t.Errorf("what was denied for good came to %q", r.Stdout)
	}
	if r := b.sh(fetch("GET", o.http("/open"))); r.Stdout != "200" {
		o.t.Errorf("control: what is allowed of the same host came to %q", r.Stdout)
	}
	o.await("the next attempt is counted", 3*time.Second, func() bool {
		d, err := o.admin.Denial(o.t.Context(), made.Denial.ID)
		return err == nil && d.State == wire.Refused && d.Count == made.Denial.Count+1
	})
	if page, err := o.admin.Denials(o.t.Context(), b.Agent, []wire.DenialState{wire.Open}, client.Page{}); err != nil || len(page.Items) != 0 {
		o.t.Errorf("people are bothered again: %+v, %v", page.Items, err)
	}
	last := record{}
	for _, r := range o.log() {
		if r.Run == b.ID && r.Path == "/never" {
			last = r
		}
	}
	if last.Verdict != "deny" || !strings.Contains(last.Reason, "denied by rule") {
		o.t.Errorf("the next attempt is on record as %+v", last)
	}
}

// asks holds a crossing until a person has decided.
func (o *outside) asks() {
	b := o.box(o.admin, wire.NewSandbox{Agent: o.agent(o.admin, "polite", o.base("  default: ask\n")).ID})
	defer b.stop()
	for _, c := range []struct {
		verdict, path string
		passes        bool
	}{{"allow", "/please", true}, {"deny", "/maybe", false}} {
		said := make(chan wire.ExecResult, 1)
		go func() {
			r, _ := o.admin.ExecWait(o.t.Context(), b.ID, wire.Exec{Command: []string{"sh", "-c", fetch("POST", o.http(c.path))}}) // an empty result is not what is wanted
			said <- r
		}()
		var waiting wire.Approval
		took := o.await("the question is there", 5*time.Second, func() bool {
			page, err := o.admin.Approvals(o.t.Context(), true, client.Page{})
			if err != nil || len(page.Items) != 1 {
				return false
			}
			waiting = page.Items[0]
			return true
		})
		o.t.Logf("asked %v after the attempt began", took.Round(time.Millisecond))
		select {
		case r := <-said:
			o.t.Fatalf("nobody had decided, and it came to %q", r.Stdout)
		case <-time.After(300 * time.Millisecond):
		}
		if n := o.plain.count("POST " + c.path); n != 0 || waiting.Place.Path != c.path {
			o.t.Errorf("before the decision %d passed; asked about %+v", n, waiting.Place)
		}
		if _, err := o.admin.DecideApproval(o.t.Context(), waiting.ID, wire.Decide{Verdict: c.verdict, Scope: wire.Once}); err != nil {
			o.t.Fatal(err)
		}
		began := time.Now()
		r := <-said
		if n := o.plain.count("POST " + c.path); (r.Stdout == "200") != c.passes || (n == 1) != c.passes || time.Since(began) > time.Second {
			o.t.Errorf("%s: %q, %d at the server, after %v", c.verdict, r.Stdout, n, time.Since(began))
		}
		if _, ok := recorded(o.log(), record{Host: plainName, Path: c.path, Verdict: c.verdict, Rule: "approved:" + waiting.ID}); !ok {
			o.t.Errorf("%s: not on record", c.verdict)
		}
	}
}

// credential is lent to a sandbox by a placeholder, which is worth nothing once that has ended.
func (o *outside) credential() {
	port, err := strconv.ParseUint(o.secure.port, 10, 16)
	if err != nil {
		o.t.Fatal(err)
	}
	made, err := o.admin.CreateCredential(o.t.Context(), wire.NewCredential{Name: "api", Hosts: []string{apiName}, Ports: []uint16{uint16(port)}, Paths: []string{"/v1/"}, Values: map[string]string{"value": canary}})
	if err != nil {
		o.t.Fatal(err)
	}
	noCanary(o.t, "the answer", fmt.Sprint(made))
	a := o.agent(o.admin, "borrower", network+fmt.Sprintf("  rules:\n    - {hosts: [%s], ports: [%s]}\ncredentials:\n  - {use: api, hosts: [%s], ports: [%s], paths: [/v1/], header: Authorization, env: API_TOKEN}\n",
		apiName, o.secure.port, apiName, o.secure.port))
	use := func(token string) string {
		return "curl -sS --max-time 20 -o /dev/null -w '%{http_code}' -H \"Authorization: Bearer " + token + "\" '" + o.https("/v1/lent") + "'"
	}
	first := o.box(o.admin, wire.NewSandbox{Agent: a.ID})
	stolen := strings.TrimSpace(first.sh("echo $API_TOKEN").Stdout)
	if r := first.sh(use("$API_TOKEN")); r.Stdout != "200" || len(stolen) < 20 || !o.secure.got("Bearer "+canary) {
		o.t.Fatalf("control: the placeholder %q came to %+v", stolen, r)
	}
	r := first.sh("env; cat /proc/*/environ; grep -rl CANARY /work /tmp 2>/dev/null; true")
	noCanary(o.t, "inside", r.Stdout+r.Stderr)
	first.stop()
	second := o.box(o.admin, wire.NewSandbox{Agent: a.ID})
	defer second.stop()
	if r := second.sh(use(stolen)); r.Stdout == "200" {
		o.t.Error("the placeholder of a sandbox that has ended works in another")
	}
	if r := second.sh(use("$API_TOKEN")); r.Stdout != "200" {
		o.t.Errorf("control: the sandbox's own placeholder came to %+v", r)
	}
	if _, ok := recorded(o.log(), record{Host: apiName, Verdict: "deny", Rule: "foreign-credential", Run: second.ID}); !ok {
		o.t.Error("the foreign placeholder is not on record")
	}
	if err := o.admin.DeleteCredential(o.t.Context(), "api"); err == nil {
		if r := second.sh(use("$API_TOKEN")); r.Stdout == "200" {
			o.t.Error("a credential that was removed is still lent")
		}
	} else {
		o.t.Logf("a credential in use is not removed: %v", err)
	}
	noCanary(o.t, "the service's output", o.out.String())
}

// fourEyes lets nobody widen alone.
func (o *outside) fourEyes() {
	settings, err := o.admin.Settings(o.t.Context())
	if err != nil {
		o.t.Fatal(err)
	}
	settings.FourEyes = true
	if _, err := o.admin.ChangeSettings(o.t.Context(), settings); err != nil {
		o.t.Fatal(err)
	}
	second := o.member("bea@example.com", wire.Reviewer).client()
	b := o.box(o.admin, wire.NewSandbox{Agent: o.agent(o.admin, "watched", o.base("")).ID})
	defer b.stop()
	made := o.decide(o.admin, o.refuse(b, "POST", o.http("/eyes"), "/eyes"), "allow", wire.ForAgent)
	if made.Rule == nil || made.Rule.State != "proposed" || len(made.InForce) != 0 {
		o.t.Fatalf("the decision: %+v", made)
	}
	if r := b.sh(fetch("POST", o.http("/eyes"))); r.Stdout == "200" {
		o.t.Error("it passes with one person's yes")
	}
	if _, err := o.admin.ApproveRule(o.t.Context(), made.Rule.ID); err == nil {
		o.t.Error("a person approves their own rule")
	}
	began := time.Now()
	if rule, err := second.ApproveRule(o.t.Context(), made.Rule.ID); err != nil || rule.State != "active" {
		o.t.Fatalf("the second yes: %+v, %v", rule, err)
	}
	if r := b.sh(fetch("POST", o.http("/eyes"))); r.Stdout != "200" || time.Since(began) > time.Second {
		o.t.Errorf("with two: %q after %v", r.Stdout, time.Since(began))
	}
}
