package gateway

import (
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/gateway/git/wire"
	"github.com/cofferdam/cofferdam/internal/policy"
)

const gitToken = "cfd_git_OF_THIS_RUN"

// oneHeader is a grant that sets its header and nothing else.
type oneHeader struct{ Grant }

func (g oneHeader) Inject(h http.Header) error {
	all := http.Header{}
	err := g.Grant.Inject(all)
	h["Authorization"] = all["Authorization"]
	return err
}

// gitGateway is a gateway with a Git upstream that a handler plays.
func gitGateway(t *testing.T, handler http.HandlerFunc) *lending {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{certificate(t)}}
	server.Config.ErrorLog = quietLog()
	server.StartTLS()
	t.Cleanup(server.Close)
	l := &lending{port: portOf(server.Listener)}
	roots := x509.NewCertPool()
	roots.AddCert(must(x509.ParseCertificate(server.TLS.Certificates[0].Certificate[0])))
	l.bench = start(t, fmt.Sprintf(`egress:
  networks: [127.0.0.0/8]
git:
  upstreams:
    - {name: forge, url: "https://good.example.com:%d", credential: main}
    - {name: dead, url: "https://dead.example.com:%d"}
  profiles:
    - name: free
      access: write
      rules:
        - {branches: ["agent/**"], allow: [create, update, force, delete]}
      protected-files: []
  repositories:
    - {upstream: forge, repository: acme/site, profile: free}
    - {upstream: dead, repository: acme/site, profile: free}
`, l.port, l.port), func(c *Config) {
		c.Roots, c.ProxyToken = roots, gitToken
		c.Lend = func(ctx context.Context, name string, x policy.Crossing) (Grant, error) {
			grant, err := l.open(ctx, name, x)
			return oneHeader{grant}, err
		}
	})
	l.zone.set("good.example.com", "127.0.0.1")
	return l
}

// gitClient is a client inside that talks to the proxy's address, over one connection at a time.
func (l *lending) gitClient() *http.Client {
	transport := &http.Transport{MaxConnsPerHost: 1, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return l.connect(netip.AddrPortFrom(gatewayV4(), 80)), nil
	}}
	l.tb.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 10 * time.Second}
}

func gitRequest(method, path string, body io.Reader) *http.Request {
	r := must(http.NewRequest(method, "http://git.cofferdam.internal"+path, body))
	r.SetBasicAuth("cofferdam", gitToken)
	return r
}

// TestGitTokens: without the run's own token nothing is done, and the upstream sees neither it nor any other of the client's.
func TestGitTokens(t *testing.T) {
	var asked atomic.Int64
	l := gitGateway(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if got := r.Header.Get("Authorization"); got != "Bearer "+canary {
			t.Errorf("the upstream is shown %q", got)
		}
		w.Header().Set("Content-Type", "application/x-git-upload-pack-advertisement")
	})
	const list = "/forge/acme/site/info/refs?service=git-upload-pack"
	for name, c := range map[string]struct {
		change func(*http.Request)
		status int
	}{
		"the run's":         {func(*http.Request) {}, 200},
		"none":              {func(r *http.Request) { r.Header.Del("Authorization") }, 401},
		"another run's":     {func(r *http.Request) { r.SetBasicAuth("cofferdam", gitToken+"x") }, 403},
		"of a person":       {func(r *http.Request) { r.Header.Set("Authorization", "Bearer ghp_mine") }, 403},
		"two":               {func(r *http.Request) { r.Header.Add("Authorization", "Basic x") }, 403},
		"at another name":   {func(r *http.Request) { r.Host = "mcp.cofferdam.internal" }, 421},
		"of no repository":  {func(r *http.Request) { r.URL.Path = "/forge/acme/other/info/refs" }, 403},
		"of no upstream":    {func(r *http.Request) { r.URL.Path = "/elsewhere/acme/site/info/refs" }, 403},
		"of no service":     {func(r *http.Request) { r.URL.RawQuery = "service=git-upload-archive" }, 403},
		"of a dumb service": {func(r *http.Request) { r.URL.Path, r.URL.RawQuery = "/forge/acme/site/HEAD", "" }, 403},
	} {
		before := asked.Load()
		r := gitRequest("GET", list, nil)
		c.change(r)
		answer, err := l.gitClient().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		if answer.StatusCode != c.status || (asked.Load() > before) != (c.status == 200) {
			t.Errorf("%s: status %d, upstream asked %v: %s", name, answer.StatusCode, asked.Load() > before, text)
		}
	}
	l.deniedBy("git-token")
	l.deniedBy("git-request")
}

// TestGitDialsAreForgotten: what a client connection has tried does not add up.
func TestGitDialsAreForgotten(t *testing.T) {
	l := gitGateway(t, func(http.ResponseWriter, *http.Request) {})
	client := l.gitClient()
	for range 200 {
		answer, err := client.Do(gitRequest("GET", "/dead/acme/site/info/refs?service=git-upload-pack", nil))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, answer.Body)
		_ = answer.Body.Close()
		if answer.StatusCode != http.StatusBadGateway {
			t.Fatal(answer.Status)
		}
	}
	if open := len(l.g.open.all()); open > 3 {
		t.Errorf("%d passages are kept", open)
	}
}

// TestGitClientGone: a client that hangs up once the upstream has its push cannot make the record say that it was refused.
func TestGitClientGone(t *testing.T) {
	arrived, gone := make(chan struct{}), make(chan struct{})
	l := gitGateway(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		switch {
		case err != nil:
			t.Errorf("the push did not arrive whole: %v", err)
		case strings.HasSuffix(r.URL.Path, "/git-upload-pack"):
			w.Header().Set("Content-Type", "application/x-git-upload-pack-result")
			_, _ = w.Write(wire.AppendFlush(nil))
		case bytes.Contains(body, []byte("PACK")):
			close(arrived)
			<-gone
			w.Header().Set("Content-Type", "application/x-git-receive-pack-result")
			_, _ = w.Write(wire.AppendFlush(wire.AppendLine(wire.AppendLine(nil, "unpack ok\n"), "ok refs/heads/agent/x\n")))
		}
	})
	body := wire.AppendFlush(wire.AppendLine(nil, strings.Repeat("0", 40)+" "+strings.Repeat("1", 40)+" refs/heads/agent/x\x00report-status"))
	pack := []byte("PACK\x00\x00\x00\x02\x00\x00\x00\x00")
	sum := sha1.Sum(pack)
	body = append(append(body, pack...), sum[:]...)
	ctx, hangUp := context.WithCancel(t.Context())
	r := gitRequest("POST", "/forge/acme/site/git-receive-pack", bytes.NewReader(body)).WithContext(ctx)
	r.Header.Set("Content-Type", "application/x-git-receive-pack-request")
	done := make(chan struct{})
	go func() {
		defer close(done)
		if answer, err := l.gitClient().Do(r); err == nil {
			_ = answer.Body.Close()
		}
	}()
	select {
	case <-arrived:
	case <-done:
		t.Fatalf("the push did not reach the upstream: %+v", l.log.all())
	}
	hangUp()
	<-done
	time.Sleep(50 * time.Millisecond) // the gateway notices
	close(gone)
	e := l.find("the end of the push", func(e audit.Event) bool { return e.Kind == audit.CrossingFinished && len(e.Refs) > 0 })
	if !slices.Equal(e.Refs, []string{"refs/heads/agent/x ok"}) {
		t.Errorf("recorded as %q, %q", e.Refs, e.Error)
	}
	for _, e := range l.log.all() {
		if e.Verdict == "deny" {
			t.Errorf("recorded as denied: %+v", e)
		}
	}
}
