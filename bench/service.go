package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	wire "github.com/cofferdam/cofferdam/api"
	remote "github.com/cofferdam/cofferdam/client"
)

// serviceRows measures the service: first as it is set up, then with ten thousand agents and a long audit log.
func serviceRows(ctx context.Context, b *bench) (rows []row, err error) {
	s, err := b.service(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close(ctx)) }()
	for _, part := range []func(context.Context, *service) ([]row, error){createRows, forceRows, viewerRows, appendRows, fullRows} {
		more, err := part(ctx, s)
		rows = append(rows, more...)
		if err != nil {
			return rows, err
		}
	}
	return rows, nil
}

// The people of the measured service.
const (
	servicePassword = "nine watertight doors 4"
	operatorEmail   = "operator@bench.example.com"
)

// breath is how long to wait before a request of a long series, so that no limit for callers is met: it allows 600 requests in 20 seconds.
const breath = 40 * time.Millisecond

// service is a cofferdamd of our own, on loopback, with its state in scratch.
type service struct {
	b        *bench
	state    string
	cmd      *exec.Cmd
	greeting <-chan string // lines of its output
	said     *os.File      // its log
	url      string
	admin    *person
}

// person is somebody with an account: browser has the cookie of a session, api a token.
type person struct {
	browser *http.Client
	token   string
	api     *remote.Client
}

// service starts one and sets it up.
func (b *bench) service(ctx context.Context) (_ *service, err error) {
	s := &service{b: b, state: filepath.Join(b.dir, "service")}
	if s.said, err = os.Create(filepath.Join(b.dir, "service.log")); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close(ctx))
		}
	}()
	if err := s.start(ctx); err != nil {
		return s, err
	}
	link, err := s.greeted(ctx, "token=")
	if err != nil {
		return s, err
	}
	token, err := tokenOf(strings.TrimSpace(link))
	if err != nil {
		return s, err
	}
	p, err := newPerson()
	if err != nil {
		return s, err
	}
	in := wire.Setup{Token: token, Email: operatorEmail, Name: "Bench", Password: servicePassword, Tenant: "bench"}
	if err := s.post(ctx, p, "/auth/setup", in, nil); err != nil {
		return s, err
	}
	if err := s.signIn(ctx, p, operatorEmail); err != nil {
		return s, err
	}
	s.admin = p
	return s, nil
}

// start starts the program and returns when it listens.
func (s *service) start(ctx context.Context) error {
	cmd := exec.Command(filepath.Join(filepath.Dir(s.b.cofferdam), "cofferdamd"), "serve", "--listen", loopback+":0")
	cmd.Env, cmd.Dir, cmd.Stderr = append(s.b.environment(), "COFFERDAM_STATE="+s.state), s.b.dir, s.said
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%w: build it first: make build", err)
	}
	lines := make(chan string, 100)
	s.cmd, s.greeting = cmd, lines
	go func() { // ends with the program's output
		defer close(lines)
		for text := bufio.NewScanner(out); text.Scan(); {
			select {
			case lines <- text.Text():
			default: // nobody reads any more
			}
		}
	}()
	line, err := s.greeted(ctx, " serves ")
	_, s.url, _ = strings.Cut(line, " serves ")
	return err
}

// greeted returns the next line with some words in it that the program says when it starts.
func (s *service) greeted(ctx context.Context, words string) (string, error) {
	patience := time.After(30 * time.Second)
	for {
		select {
		case line, ok := <-s.greeting:
			if !ok {
				return "", errors.New("the service ended: " + s.lastWords())
			}
			if strings.Contains(line, words) {
				return line, nil
			}
		case <-patience:
			return "", errors.New("the service does not begin: " + s.lastWords())
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

func (s *service) lastWords() string {
	text, _ := os.ReadFile(s.said.Name()) // only for the message
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return firstLine(lines[len(lines)-1])
}

// stop ends the program.
func (s *service) stop() error {
	if s.cmd == nil {
		return nil
	}
	cmd := s.cmd
	s.cmd = nil
	_ = cmd.Process.Signal(syscall.SIGTERM) // one that has ended has ended
	late := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("the service ended badly: %w: %s", err, s.lastWords())
	}
	return nil
}

// restart ends the program and starts it again.
func (s *service) restart(ctx context.Context) error {
	if err := s.stop(); err != nil {
		return err
	}
	if err := s.start(ctx); err != nil {
		return err
	}
	return s.reconnect(s.admin)
}

// close ends every sandbox, which would outlive the service, and the service.
func (s *service) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	var err error
	if s.admin != nil && s.cmd != nil {
		err = s.endAll(ctx)
	}
	return errors.Join(err, s.stop(), s.said.Close())
}

func (s *service) endAll(ctx context.Context) error {
	page, err := s.admin.api.Sandboxes(ctx, "", true, remote.Page{Limit: 500})
	for _, box := range page.Items {
		err = errors.Join(err, s.end(ctx, box.ID))
	}
	return err
}

// end stops a sandbox, unless it ends by itself, and returns when nothing is left of it.
func (s *service) end(ctx context.Context, id string) error {
	if _, err := s.admin.api.StopSandbox(ctx, id, "measured"); err != nil && ctx.Err() != nil {
		return err
	}
	return s.gone(ctx, id)
}

func (s *service) gone(ctx context.Context, id string) error {
	for {
		box, err := s.admin.api.Sandbox(ctx, id)
		if err != nil || !box.State.Live() {
			return err
		}
		select {
		case <-time.After(2 * breath):
		case <-ctx.Done():
			return fmt.Errorf("sandbox %s does not end: %w", id, ctx.Err())
		}
	}
}

func newPerson() (*person, error) {
	jar, err := cookiejar.New(nil)
	return &person{browser: &http.Client{Jar: jar, Timeout: time.Minute}}, err
}

// signIn gets a session and a token for all that the person may do.
func (s *service) signIn(ctx context.Context, p *person, email string) error {
	if err := s.post(ctx, p, "/auth/sign-in", wire.SignIn{Email: email, Password: servicePassword}, nil); err != nil {
		return err
	}
	var me wire.Me
	if err := s.get(ctx, p, "/api/v1/me", &me); err != nil {
		return err
	}
	var t wire.Token
	if err := s.post(ctx, p, "/tokens", wire.NewToken{Name: "bench", Scopes: me.Scopes}, &t); err != nil {
		return err
	}
	p.token = t.Secret
	return s.reconnect(p)
}

// reconnect has a person's client speak with the service where it is now.
func (s *service) reconnect(p *person) (err error) {
	p.api, err = remote.New(s.url, p.token)
	return err
}

// invite makes another person.
func (s *service) invite(ctx context.Context, email string, role wire.Role) (*person, error) {
	var i wire.Invitation
	err := s.post(ctx, s.admin, "/users", wire.NewUser{Email: email, Role: role}, &i)
	if err != nil {
		return nil, err
	}
	token, err := tokenOf(i.Link)
	if err != nil {
		return nil, err
	}
	p, err := newPerson()
	if err != nil {
		return nil, err
	}
	if err := s.post(ctx, p, "/auth/invitation", wire.NewPassword{Token: token, Password: servicePassword}, nil); err != nil {
		return nil, err
	}
	return p, s.signIn(ctx, p, email)
}

func tokenOf(link string) (string, error) {
	u, err := url.Parse(link)
	if err != nil || u.Query().Get("token") == "" {
		return "", fmt.Errorf("the link %.200q has no token", link)
	}
	return u.Query().Get("token"), nil
}

// post sends a document as a browser that is signed in.
func (s *service) post(ctx context.Context, p *person, path string, in, out any) error {
	text, err := json.Marshal(in)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+"/api/v1"+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	return answered(p.browser.Do(r))(out)
}

// get asks for a page or a document as a browser that is signed in. out is what JSON goes into, *string for a page, nil for nobody.
func (s *service) get(ctx context.Context, p *person, path string, out any) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+path, nil)
	if err != nil {
		return err
	}
	return answered(p.browser.Do(r))(out)
}

// answered reads a whole answer, which must be a good one.
func answered(answer *http.Response, err error) func(out any) error {
	return func(out any) error {
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(io.LimitReader(answer.Body, 64<<20))
		if err != nil {
			return err
		}
		if answer.StatusCode < 200 || answer.StatusCode > 299 {
			return fmt.Errorf("%s %s: %s: %s", answer.Request.Method, answer.Request.URL.Path, answer.Status, firstLine(string(text)))
		}
		switch out := out.(type) {
		case nil:
			return nil
		case *string:
			*out = string(text)
			return nil
		}
		return json.Unmarshal(text, out)
	}
}

// atMostSlow wants the 99th percentile of ours to be at most limit, whatever the other's.
func atMostSlow(limit float64) aim {
	return aim{"p99 ≤ " + figure(limit), func(ours, other series) (string, bool) {
		return fmt.Sprintf("%.2f ×", ratio(ours, other)), ours.quantile(0.99) <= limit
	}}
}

// atLeastAlone wants the median of ours to be at least limit, whatever the other's.
func atLeastAlone(limit float64) aim {
	return aim{"p50 ≥ " + figure(limit), func(ours, other series) (string, bool) {
		return fmt.Sprintf("%.2f ×", ratio(ours, other)), ours.median() >= limit
	}}
}
