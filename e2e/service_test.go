package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	wire "github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/client"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// password is everybody's in these tests.
const password = "watertight walls 7"

// service is a running cofferdamd with a state directory of its own.
type service struct {
	*crypt
	hosts string   // a file that stands in the place of /etc/hosts for the service, if there is one
	env   []string // besides the usual
	cmd   *exec.Cmd
	out   *journal
	url   string
	link  string   // by which it is set up
	ada   *browser // of whoever has set it up
	ended chan struct{}
}

// journal keeps what a program says. It is safe for concurrent use.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(b)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// newService prepares a service for a house and ends, with the test, whatever it left running.
func newService(h *house) *service {
	h.t.Helper()
	s := &service{crypt: newCrypt(h)}
	s.adopt("cofferdamd")
	h.t.Cleanup(func() {
		s.kill()
		s.endKeepers()
		if h.t.Failed() && s.out != nil {
			h.t.Logf("the service said:\n%s", s.noteworthy())
		}
	})
	return s
}

// adopt copies one more program to those of the house.
func (s *service) adopt(name string) {
	s.t.Helper()
	from, err := os.Open(filepath.Join(testenv.Programs(s.t), name))
	if err != nil {
		s.t.Fatal(err)
	}
	defer from.Close()
	to, err := os.OpenFile(filepath.Join(s.bin, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		s.t.Fatal(err)
	}
	_, err = io.Copy(to, from)
	var st syscall.Stat_t
	if err := errors.Join(err, syscall.Fstat(int(to.Fd()), &st), to.Close()); err != nil {
		s.t.Fatal(err)
	}
	s.exes[[2]uint64{st.Dev, st.Ino}] = name
}

// noteworthy is what the service said less its lines about requests that went well.
func (s *service) noteworthy() string {
	var b strings.Builder
	for line := range strings.Lines(s.out.String()) {
		if !strings.Contains(line, "msg=request") || strings.Contains(line, "status=5") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// program prepares cofferdamd. With hosts, names inside the service and its sandboxes' gateways are what that file says.
func (s *service) program(ctx context.Context, args ...string) *exec.Cmd {
	cmd := s.command(ctx, args...)
	cmd.Path = filepath.Join(s.bin, "cofferdamd")
	cmd.Env = append(cmd.Env, s.env...)
	if s.hosts == "" {
		return cmd
	}
	// The shell replaces itself, so that the process is the service's own.
	line := `mount --bind "$1" /etc/hosts && shift && exec "$@"`
	words := []string{"unshare", "--mount", "sh", "-c", line, "sh", s.hosts}
	if s.as.uid != 0 {
		id := fmt.Sprint(s.as.uid)
		words = append(words, "setpriv", "--reuid", id, "--regid", id, "--clear-groups")
	}
	words = append(append(words, cmd.Path), args...)
	other := exec.CommandContext(ctx, words[0], words[1:]...)
	other.Dir, other.Env = cmd.Dir, cmd.Env
	return other
}

var (
	served  = regexp.MustCompile(`(?m)^cofferdam \S+ serves (\S+)$`)
	greeted = regexp.MustCompile(`(?m)^ +(http\S+/setup\?token=\S+)$`)
)

// start starts the service at an address, and returns when it answers.
func (s *service) start(listen string, args ...string) {
	s.t.Helper()
	s.out = &journal{}
	s.cmd = s.program(context.Background(), append([]string{"serve", "--listen", listen}, args...)...)
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.out
	s.cmd.WaitDelay = time.Second // keepers do not have its output, but what they start might
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	cmd, ended := s.cmd, make(chan struct{})
	s.ended = ended
	go func() {
		_ = cmd.Wait() // how it ended is looked at where that matters
		close(ended)
	}()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if at := served.FindStringSubmatch(s.out.String()); at != nil {
			s.url = at[1]
			if answer, err := http.Get(s.url + "/readyz"); err == nil {
				answer.Body.Close()
				if answer.StatusCode == http.StatusOK {
					if link := greeted.FindStringSubmatch(s.out.String()); link != nil {
						s.link = link[1]
					}
					return
				}
			}
		}
		select {
		case <-ended:
			s.t.Fatalf("the service ended: %v\n%s", cmd.ProcessState, s.out)
		default:
		}
	}
	s.t.Fatalf("the service does not answer\n%s", s.out)
}

// address is where it listens.
func (s *service) address() string {
	u, err := url.Parse(s.url)
	if err != nil {
		s.t.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", u.Port())
}

// kill ends the service without a word.
func (s *service) kill() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill() // it may have ended
	<-s.ended
	s.cmd = nil
}

// stop asks the service to end, and waits.
func (s *service) stop() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Error(err)
	}
	select {
	case <-s.ended:
		if code := s.cmd.ProcessState.ExitCode(); code != 0 {
			s.t.Errorf("the service ended with %d", code)
		}
	case <-time.After(20 * time.Second):
		s.t.Error("the service does not end")
	}
	s.kill()
}

// endKeepers ends what a test that failed has left.
func (s *service) endKeepers() {
	for range 100 {
		left := s.processes()
		if len(left) == 0 {
			return
		}
		for _, p := range left {
			_ = syscall.Kill(p.pid, syscall.SIGKILL) // it may have ended
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// browser is an HTTP client with cookies, as one person has it.
type browser struct {
	s    *service
	http *http.Client
}

func (s *service) browser() *browser {
	jar, err := cookiejar.New(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return &browser{s, &http.Client{Jar: jar, Timeout: time.Minute, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   string
}

// ask sends one request. A body that is no string is sent as JSON; a string as a form.
func (b *browser) ask(method, path string, body any, header ...string) answer {
	b.s.t.Helper()
	var content io.Reader
	media := ""
	switch body := body.(type) {
	case nil:
	case string:
		content, media = strings.NewReader(body), "application/x-www-form-urlencoded"
	default:
		text, err := json.Marshal(body)
		if err != nil {
			b.s.t.Fatal(err)
		}
		content, media = bytes.NewReader(text), "application/json"
	}
	r, err := http.NewRequestWithContext(context.Background(), method, b.s.url+path, content)
	if err != nil {
		b.s.t.Fatal(err)
	}
	if media != "" {
		r.Header.Set("Content-Type", media)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
		if header[i] == "Host" {
			r.Host = header[i+1]
		}
	}
	got, err := b.http.Do(r)
	if err != nil {
		b.s.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer got.Body.Close()
	if got.StatusCode == http.StatusSwitchingProtocols {
		return answer{got.StatusCode, got.Header, ""}
	}
	text, _ := io.ReadAll(io.LimitReader(got.Body, 16<<20)) // a stream that is cut is what came
	return answer{got.StatusCode, got.Header, string(text)}
}

// api is ask below the API's prefix, for success; out is filled from the answer.
func (b *browser) api(method, path string, body, out any) {
	b.s.t.Helper()
	got := b.ask(method, "/api/v1"+path, body)
	if got.status/100 != 2 {
		b.s.t.Fatalf("%s %s: %d %s", method, path, got.status, got.body)
	}
	if out != nil {
		if err := json.Unmarshal([]byte(got.body), out); err != nil {
			b.s.t.Fatalf("%s %s: %v: %s", method, path, err, got.body)
		}
	}
}

// tokenOf is the secret in a link.
func tokenOf(t *testing.T, link string) string {
	t.Helper()
	u, err := url.Parse(link)
	if err != nil || u.Query().Get("token") == "" {
		t.Fatalf("the link %q: %v", link, err)
	}
	return u.Query().Get("token")
}

// setUp makes the first tenant and its administrator, who is signed in then.
func (s *service) setUp() *browser {
	s.t.Helper()
	b := s.browser()
	b.api("POST", "/auth/setup", wire.Setup{Token: tokenOf(s.t, s.link), Email: "ada@example.com", Name: "Ada", Password: password, Tenant: "acme"}, nil)
	b.signIn("ada@example.com")
	s.ada = b
	return b
}

func (b *browser) signIn(email string) {
	b.s.t.Helper()
	b.api("POST", "/auth/sign-in", wire.SignIn{Email: email, Password: password}, nil)
}

// join accepts an invitation and signs in.
func (s *service) join(i wire.Invitation) *browser {
	s.t.Helper()
	b := s.browser()
	b.api("POST", "/auth/invitation", wire.NewPassword{Token: tokenOf(s.t, i.Link), Password: password}, nil)
	b.signIn(i.User.Email)
	return b
}

// client makes a token with all that the person may do, and a client that shows it.
func (b *browser) client() *client.Client {
	b.s.t.Helper()
	var me wire.Me
	b.api("GET", "/me", nil, &me)
	var token wire.Token
	b.api("POST", "/tokens", wire.NewToken{Name: "test", Scopes: me.Scopes}, &token)
	c, err := client.New(b.s.url, token.Secret)
	if err != nil {
		b.s.t.Fatal(err)
	}
	return c
}

// member has the first administrator invite a person of a role, in person, and signs them in.
func (s *service) member(email string, role wire.Role) *browser {
	s.t.Helper()
	var i wire.Invitation
	(&browser{s, s.ada.http}).api("POST", "/users", wire.NewUser{Email: email, Role: role}, &i)
	return s.join(i)
}

// box is a sandbox of the service's.
type box struct {
	s *service
	c *client.Client
	wire.Sandbox
}

// box makes a sandbox that waits for commands.
func (s *service) box(c *client.Client, in wire.NewSandbox) *box {
	s.t.Helper()
	in.Hold = true
	made, err := c.CreateSandbox(s.t.Context(), in)
	if err != nil {
		s.t.Fatal(err)
	}
	if made.State != wire.Running {
		s.t.Fatalf("the sandbox is %s: %s", made.State, made.How)
	}
	return &box{s, c, made}
}

// agent makes an agent under a policy.
func (s *service) agent(c *client.Client, name, policy string) wire.Agent {
	s.t.Helper()
	a, err := c.CreateAgent(s.t.Context(), wire.NewAgent{Name: name, PolicyText: policy})
	if err != nil {
		s.t.Fatal(err)
	}
	return a
}

// sh runs a shell line inside.
func (b *box) sh(line string) wire.ExecResult {
	b.s.t.Helper()
	r, err := b.c.ExecWait(b.s.t.Context(), b.ID, wire.Exec{Command: []string{"sh", "-c", line}})
	if err != nil {
		b.s.t.Fatalf("exec %q: %v", line, err)
	}
	return r
}

// stop ends the sandbox and waits until nothing of it is left.
func (b *box) stop() wire.Sandbox {
	b.s.t.Helper()
	if _, err := b.c.StopSandbox(b.s.t.Context(), b.ID, "enough"); err != nil {
		b.s.t.Fatal(err)
	}
	var now wire.Sandbox
	b.s.await("the sandbox ends", 15*time.Second, func() bool {
		var err error
		if now, err = b.c.Sandbox(b.s.t.Context(), b.ID); err != nil {
			b.s.t.Fatal(err)
		}
		return !now.State.Live()
	})
	return now
}

// await waits until something holds, and returns how long that took.
func (s *service) await(what string, limit time.Duration, holds func() bool) time.Duration {
	s.t.Helper()
	began := time.Now()
	for !holds() {
		if time.Since(began) > limit {
			s.t.Fatalf("%s: not within %v", what, limit)
		}
		time.Sleep(25 * time.Millisecond)
	}
	return time.Since(began)
}
