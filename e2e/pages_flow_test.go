package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/webauthn"

	wire "github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/client"
)

// TestPages goes through the pages in a real browser as a new person would: from the link of the set-up to a sandbox whose denial is reviewed, and on
// through everything that a team does.
func TestPages(t *testing.T) {
	h := newHouse(t, users()[0])
	o := newOutside(h)
	w := o.open()
	w.calm = true
	f := &flow{outside: o, w: w}
	for _, step := range []struct {
		name string
		run  func()
	}{
		{"set up", f.setUp}, {"agent", f.agent}, {"terminal", f.terminal}, {"review", f.review}, {"output", f.output}, {"policy", f.policy}, {"credential", f.credential}, {"audit", f.audit},
		{"people", f.people}, {"passkey", f.passkey}, {"leave", f.leave},
	} {
		ok := t.Run(step.name, func(t *testing.T) {
			if f.outside, w.t = o.within(t), t; f.box != nil {
				f.box.s = f.service
			}
			step.run()
			w.quiet(step.name)
		})
		if w.t = t; !ok && f.box == nil {
			return // nothing else can be tried
		}
	}
	f.box.s = o.service
	f.box.stop()
	o.stop()
	o.gone()
}

// flow is where the person is.
type flow struct {
	*outside
	w       *window
	admin   *client.Client // the person's own token
	sandbox string         // address of its page
	box     *box
}

// setUp follows the link that the server printed. The person is signed in then.
func (f *flow) setUp() {
	w := f.w
	w.visit(f.setupLink())
	w.fill("#f-email", "ada@example.com")
	w.fill("#f-name", "Ada")
	w.fill("#f-tenant", "acme")
	w.fill("#f-password", password)
	w.fill("#f-again", "something else")
	w.click("[data-test=submit]")
	w.shows("#f-again-error", "not the same")
	w.fill("#f-password", password)
	w.fill("#f-again", password)
	w.click("[data-test=submit]")
	w.at("/")
	w.shows(".who", "ada@example.com")
	if w.js(`document.querySelectorAll("[data-test=first-steps]").length`) != "1" {
		w.t.Error("a new person is not told what to do first")
	}
	w.visit(f.link)
	w.shows("[data-test=problem]", "link")
}

// setupLink is what the server printed, perhaps a moment after it began to answer.
func (o *outside) setupLink() string {
	o.t.Helper()
	o.await("the link of the set-up is printed", 5*time.Second, func() bool {
		if at := greeted.FindStringSubmatch(o.out.String()); at != nil {
			o.link = at[1]
		}
		return o.link != ""
	})
	return o.link
}

// agent makes one with a policy that knows the test's server and lets it have one path, and starts a sandbox that waits.
func (f *flow) agent() {
	w := f.w
	w.visit("/agents/new")
	w.fill("#f-name", "scout")
	w.fill("#f-description", "Looks around")
	w.click("#policy-text")
	w.fill("#policy-editor", f.base(""))
	w.shows("#policy-check", "valid")
	w.click("[data-test=save]")
	w.shows("h1", "scout")
	w.click("#f-hold + span")
	w.js(`document.getElementById("f-hold").checked || document.getElementById("f-hold").click()`)
	w.click("[data-test=start-button]")
	w.until(`/^\/sandboxes\/[^/]+\/terminal$/.test(location.pathname) && document.readyState === "complete"`)
	w.shows("[data-test=state]", "running")
	f.sandbox = strings.TrimSuffix(w.js("location.pathname"), "/terminal")
	// What programs do beside the person goes by the API, with a token that the account's page made.
	w.visit("/account")
	w.fill("#f-name", "test")
	w.js(`document.querySelectorAll("[name=scope]").forEach((e) => { e.checked = true; })`)
	w.click("[data-test=new-token-form] button")
	w.until(`document.getElementById("new-token")`)
	var err error
	if f.admin, err = client.New(f.url, w.js(`document.getElementById("new-token").value`)); err != nil {
		w.t.Fatal(err)
	}
	made, err := f.admin.Sandbox(w.t.Context(), strings.TrimPrefix(f.sandbox, "/sandboxes/"))
	if err != nil {
		w.t.Fatal(err)
	}
	f.box = &box{f.service, f.admin, made}
}

// terminal types a command and sees what comes of it, also after the window has changed its size.
func (f *flow) terminal() {
	w := f.w
	w.visit(f.sandbox + "/terminal")
	w.click("#term-start")
	w.shows("#term-state", "connected")
	w.until(`document.activeElement.classList.contains("xterm-helper-textarea")`)
	w.keys("echo $((6*7))-seen; stty size\r")
	w.shows(".xterm-rows", "42-seen")
	size := func() string {
		return w.js(`[...document.querySelectorAll(".xterm-rows > div")].map((e) => e.textContent.trim()).filter((s) => /^\d+ \d+$/.test(s)).at(-1)`)
	}
	w.until(`[...document.querySelectorAll(".xterm-rows > div")].some((e) => /^\d+ \d+$/.test(e.textContent.trim()))`)
	wide := size()
	w.look(700, "light")
	w.js(`new Promise((r) => setTimeout(r, 300))`)
	w.keys("clear; stty size\r")
	began := time.Now()
	for size() == wide || size() == "undefined" {
		if time.Since(began) > 5*time.Second {
			w.t.Errorf("the terminal inside stays at %s", wide)
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	w.look(1280, "light")
	w.keys("exit 3\r")
	w.shows("#term-state", "exit code 3")
}

// review sees a denial come in, reads what allowing it widens, allows it, and revokes the rule.
func (f *flow) review() {
	w := f.w
	w.visit("/review")
	w.shows("#inbox", "Nothing to review")
	began := time.Now()
	ask := fetch("POST", f.http("/wanted"))
	if r := f.box.sh(ask); r.Stdout == "200" {
		w.t.Fatalf("it was not denied: %+v", r)
	}
	w.shows("[data-entry]", "/wanted")
	if took := time.Since(began); took > 2*time.Second {
		w.t.Errorf("in the inbox after %v, 2 s are promised", took)
	}
	w.click("[data-entry] [data-open]")
	w.until(`document.querySelector("[data-test=decide]")`)
	rule := w.js(`document.querySelector("[data-entry] textarea").value`)
	w.fill("[data-entry] textarea", strings.Replace(rule, "methods", "metods", 1))
	w.shows("[data-test=rule-problem]", `unknown key "metods"`)
	w.fill("[data-entry] textarea", rule)
	w.until(`document.querySelector("[data-test=warnings]")`)
	w.click("[data-test=decide] [value=agent]")
	w.shows("[data-entry]", "tick that you have")
	w.click("[data-entry] [name=widens]")
	began = time.Now()
	w.click("[data-test=decide] [value=agent]")
	w.until(`document.querySelector("[data-test=decided]")`)
	if r := f.box.sh(ask); r.Stdout != "200" {
		w.t.Errorf("after the decision: %+v", r)
	}
	if took := time.Since(began); took > time.Second {
		w.t.Errorf("allowed %v after the click, 1 s is promised", took)
	}
	w.visit("/rules")
	w.shows("[data-test=rule]", "scout")
	w.click("[data-test=rule] details summary")
	w.click("[data-test=rule] details .danger")
	w.until(`document.readyState === "complete" && !document.querySelector("[data-test=rule]")`)
	if r := f.box.sh(ask); r.Stdout == "200" {
		w.t.Error("what was revoked still passes")
	}
	w.visit("/rules?show=ended")
	w.shows("[data-test=rule]", "revoked")
}

// output watches what a main command writes while it writes it.
func (f *flow) output() {
	w := f.w
	w.visit("/sandboxes/new")
	w.fill("#f-agent", "scout")
	w.fill("#f-title", "talker")
	w.fill("#f-command", `sh -c 'i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo "line $i"; sleep 0.1; done; exit 5'`)
	w.click("[data-test=save]")
	w.shows("#output", "line 3")
	if w.js(`document.getElementById("output").textContent.includes("line 40")`) == "true" {
		w.t.Error("the output is shown at its end only")
	}
	w.shows("#output", "line 40")
	w.shows("#output-state", "complete")
	w.shows("[data-test=state]", "exit 5")
	w.visit(f.sandbox + "/trace")
	w.shows("table", "/wanted")
	w.visit(f.sandbox + "/runs")
	w.shows("table", "/bin/sh")
}

// policy makes a mistake, which is marked, mends it, stores it, and looks at what changed.
func (f *flow) policy() {
	w := f.w
	good := f.base("")
	w.visit("/policies/new")
	w.fill("#f-name", "team")
	w.fill("#text", strings.Replace(good, "methods: [GET]", "metods: [GET]", 1))
	w.shows("#policy-check .problems", "metods")
	w.until(`document.querySelector("#policy-check [data-goto='5']") && document.querySelectorAll(".gutter .mark").length === 1 && document.querySelector(".gutter .mark").textContent === "5"`)
	w.click("[data-test=save]")
	w.shows("[data-test=problem]", "missing or wrong")
	w.fill("#text", good)
	w.shows("#policy-check", "valid")
	w.click("[data-test=save]")
	w.shows("h1", "team")
	id := w.js("location.pathname")
	w.fill("#text", good+"    - {name: more, hosts: [more.example.com]}\n")
	w.fill("#f-comment", "more to reach")
	w.shows("#policy-check", "valid")
	w.click("[data-test=save]")
	w.shows(".sub", "Version 2")
	w.fill("#target", "more.example.com:443")
	w.click("[hx-post='/policies/explain'] button")
	w.shows("#explained", "more")
	w.visit(id + "/versions")
	w.shows("[data-test=diff] .add, [data-test=diff] .ok, [data-test=diff] span", "more.example.com")
	w.shows("table", "more to reach")
	agent, err := f.admin.Agent(w.t.Context(), f.box.Agent)
	if err != nil {
		w.t.Fatal(err)
	}
	w.visit("/policies/" + agent.Policy)
	w.fill("#text", strings.Replace(good, "methods: [GET], paths: [/open]", "paths: [/wanted]", 1))
	w.click("#h-replay ~ .body button, [aria-labelledby=h-replay] button")
	w.shows("#replayed", "/wanted")
}

// credential is added, and its value is nowhere afterwards.
func (f *flow) credential() {
	w := f.w
	const value = "ghp_0123456789PagesCanary"
	w.visit("/credentials/new")
	w.until(`document.querySelector("main")`)
	if w.js(`!!document.querySelector("[data-test=save]")`) != "true" {
		w.visit("/credentials/new?kind=static")
	}
	w.fill("#f-name", "forge")
	w.fill("[name='secret.value']", value)
	w.fill("#f-hosts", "api.github.com")
	w.click("[data-test=save]")
	w.until(`!location.pathname.endsWith("/new") && document.readyState === "complete" && !document.querySelector("[data-test=save]")`)
	for _, address := range []string{"", "/credentials", "/credentials/forge", "/audit"} {
		if address != "" {
			w.visit(address)
		}
		w.shows("main", "forge")
		if w.js(`document.documentElement.outerHTML.includes("`+value+`") || [...document.querySelectorAll("input, textarea")].some((e) => e.value.includes("`+value+`"))`) != "false" {
			w.t.Errorf("the value is in %s", w.js("location.href"))
		}
	}
}

// audit finds what was denied, and shows its record.
func (f *flow) audit() {
	w := f.w
	w.visit("/audit")
	w.fill("#f-host", plainName)
	w.js(`(() => { const e = document.getElementById("f-verdict"); e.value = "deny"; e.dispatchEvent(new Event("change", { bubbles: true })); })()`)
	w.click("[data-test=audit-search] .primary")
	w.until(`location.search.includes("verdict=deny") && document.readyState === "complete"`)
	w.shows("[data-test=event]", "/wanted")
	if w.js(`[...document.querySelectorAll("[data-test=event] .chip")].every((e) => e.textContent === "deny" || e.textContent === "denied")`) != "true" {
		w.t.Error("there are others than denials")
	}
	w.click("[data-test=event] summary")
	w.shows("[data-test=event] .record", `"crossing.decided"`)
}

// people are invited; a viewer sees everything and can change nothing.
func (f *flow) people() {
	w := f.w
	w.visit("/users/new")
	w.fill("#f-email", "vera@example.com")
	w.click("#role-viewer")
	w.click("[data-test=user-form] .primary")
	w.until(`document.getElementById("invitation-link")`)
	link := w.js(`document.getElementById("invitation-link").value`)
	other := w.other()
	other.visit(link)
	other.fill("#f-password", password)
	other.fill("#f-again", password)
	other.click("[data-test=new-password] .primary")
	other.until(`location.pathname === "/sign-in" && document.readyState === "complete"`)
	other.signIn("vera@example.com")
	agent := "/agents/" + f.box.Agent
	for _, address := range []string{"/", "/agents", agent, "/sandboxes", f.sandbox, "/review", "/rules", "/policies", "/credentials", "/credentials/forge", "/git", "/workspaces", "/users", "/settings"} {
		other.visit(address)
		if at := other.js("location.pathname"); at != address {
			w.t.Errorf("a viewer at %s is led to %s", address, at)
		}
		left := other.js(`[...document.querySelectorAll("main form[method=post] button, main .button.primary, main button.danger")].map((e) => e.textContent.trim()).join(", ")`)
		if left != "" {
			w.t.Errorf("a viewer at %s can do: %s", address, left)
		}
	}
	if left := other.js(`[...document.querySelectorAll(".tabs a")].map((e) => e.textContent).join()`); strings.Contains(left, "Terminal") {
		w.t.Error("a viewer is offered the terminal")
	}
	other.quiet("viewer")
}

// passkey registers one with an authenticator of the browser's own, and signs in with nothing else.
func (f *flow) passkey() {
	w := f.w
	tell(w, webauthn.Enable, webauthn.EnableParams{})
	tell(w, webauthn.AddVirtualAuthenticator, webauthn.AddVirtualAuthenticatorParams{Options: &webauthn.VirtualAuthenticatorOptions{
		Protocol: webauthn.AuthenticatorProtocolCtap2, Transport: webauthn.AuthenticatorTransportInternal,
		HasResidentKey: true, HasUserVerification: true, IsUserVerified: true, AutomaticPresenceSimulation: true,
	}})
	w.visit("/account")
	w.fill("#passkey-label", "test key")
	w.fill("#passkey-password", password)
	w.click("[data-add-passkey] button")
	w.until(`document.querySelector("[data-add-passkey] ~ .codes, .codes")`)
	w.visit("/account")
	w.shows("[aria-labelledby=h-passkeys]", "test key")
	w.click("#sign-out")
	w.until(`location.pathname === "/sign-in" && document.readyState === "complete"`)
	w.click("[data-passkey='/sign-in/passkey/first']")
	w.at("/")
	w.shows(".who", "ada@example.com")
	// With a passkey the password alone is no longer enough.
	w.click("#sign-out")
	w.until(`location.pathname === "/sign-in" && document.readyState === "complete"`)
	w.fill("#f-email", "ada@example.com")
	w.fill("#f-password", password)
	w.click("[data-test=sign-in] [data-test=submit]")
	w.until(`location.pathname === "/sign-in/code" && document.readyState === "complete"`)
	w.click("[data-passkey='/sign-in/passkey/second']")
	w.at("/")
}

// leave revokes a session from another browser, whose page goes to the door; then this one signs out.
func (f *flow) leave() {
	w := f.w
	vera := w.other()
	vera.signIn("vera@example.com")
	vera.js(`(() => { window.ended = false; const s = new EventSource("/api/v1/events"); s.addEventListener("end", () => { window.ended = true; s.close(); }); return new Promise((r) => { s.onopen = () => { window.live = s; r(); }; }); })()`)
	again := w.other()
	again.signIn("vera@example.com")
	again.visit("/account")
	again.click("form[action='/account/sessions/others/revoke'] button")
	again.until(`document.readyState === "complete" && document.querySelectorAll("[aria-labelledby=h-sessions] tbody tr").length === 1`)
	time.Sleep(time.Second) // a stream looks once in a second at most
	if _, err := f.admin.CreateAgent(w.t.Context(), wire.NewAgent{Name: "bystander"}); err != nil {
		w.t.Fatal(err)
	}
	if took := vera.until(`location.pathname === "/sign-in"`); took > 3*time.Second {
		w.t.Errorf("a page of the ended session stays for %v", took)
	}
	again.visit("/agents")
	again.shows("main", "bystander")

	w.visit("/agents")
	w.click("#sign-out")
	w.until(`location.pathname === "/sign-in" && document.readyState === "complete"`)
	w.visit("/agents")
	w.until(`location.pathname === "/sign-in"`)
}
