package credential

import (
	"bufio"
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/confine"
	"github.com/cofferdam/cofferdam/internal/seal"
)

// TestConfined: a lender works on in a process that has given up its rights as a gateway does (another user, no files, few system calls). It sees changes, saves a
// refresh token that the server replaced, mints one token at a time beside other processes, and sees the removal.
func TestConfined(t *testing.T) {
	n := 0
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if got, want := r.FormValue("refresh_token"), fmt.Sprintf("refresh-%d", n); got != want {
			t.Errorf("presented %s, valid is %s", got, want)
		}
		n++
		fmt.Fprintf(w, `{"access_token":"access-%d","expires_in":1,"refresh_token":"refresh-%d"}`, n, n)
	}))
	defer server.Close()
	state := t.TempDir()
	s, err := OpenStore(filepath.Join(state, "credentials"))
	must(t, err)
	vault := seal.OpenVault(filepath.Join(state, "seal"), os.Getenv)
	_, err = vault.Init(t.Context(), seal.Source{})
	must(t, err)
	use := func(f func(*seal.Keyring) error) { t.Helper(); must(t, vault.Use(t.Context(), f)) }
	use(func(r *seal.Keyring) error {
		must(t, s.Add(r, staticMeta("static"), Material{Value: text("value-1")}))
		return s.Add(r, oauthMeta("minted", OAuth2Refresh), Material{RefreshToken: text("refresh-0")})
	})
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestConfinedChild$", "-test.v")
	cmd.Env = append(os.Environ(), "CREDENTIAL_CHILD_STATE="+state, "CREDENTIAL_CHILD_SERVER="+server.Listener.Addr().String())
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	defer func() { _ = in.Close(); must(t, cmd.Wait()) }()
	lines := bufio.NewScanner(out)
	say := func(order, want string) {
		t.Helper()
		if order != "" {
			fmt.Fprintln(in, order)
		}
		for lines.Scan() {
			if answer, ok := strings.CutPrefix(lines.Text(), "child: "); ok {
				if !strings.Contains(answer, want) {
					t.Errorf("%s: %s, want %s", order, answer, want)
				}
				return
			}
		}
		t.Fatalf("%s: the child is gone", order)
	}
	say("", "ready")
	say("open", "permission denied")
	say("static", "Bearer value-1")
	use(func(r *seal.Keyring) error {
		return s.Rotate(t.Context(), r, "static", Material{Value: text("value-2")})
	})
	say("static", "Bearer value-2")
	_, err = vault.Advance(t.Context(), seal.Source{})
	must(t, err)
	use(func(r *seal.Keyring) error { _, err := s.Rewrap(t.Context(), r); return err })
	_, err = vault.Prune(t.Context(), func() (map[seal.KeyID]int, error) { return s.KeysInUse(t.Context()) })
	must(t, err)
	say("static", "Bearer value-2")
	say("minted", "Bearer access-1")
	say("minted", "Bearer access-2")
	use(func(r *seal.Keyring) error {
		masks, err := s.Masks(t.Context(), r, "minted")
		if len(masks) != 1 {
			t.Error(masks)
		}
		return err
	})
	must(t, s.Remove(t.Context(), "static"))
	say("static", "removed")
	say("minted", "Bearer access-3")
}

// TestConfinedChild is the process of TestConfined.
func TestConfinedChild(t *testing.T) {
	state, server := os.Getenv("CREDENTIAL_CHILD_STATE"), os.Getenv("CREDENTIAL_CHILD_SERVER")
	if state == "" {
		t.Skip("is TestConfined's")
	}
	s, err := OpenStore(filepath.Join(state, "credentials"))
	must(t, err)
	roots := x509.NewCertPool()
	other := httptest.NewTLSServer(nil) // all such servers have the same certificate
	roots.AddCert(other.Certificate())
	other.Close()
	client := NewClient(func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", server)
	}, roots)
	var l *Lender
	must(t, seal.OpenVault(filepath.Join(state, "seal"), os.Getenv).Use(t.Context(), func(r *seal.Keyring) error {
		l, err = s.Open(t.Context(), r, Options{Client: client}, "static", "minted")
		return err
	}))
	_, err = confine.Self(confine.Config{UID: 54321, GID: 54321, BestEffort: true})
	must(t, err)
	fmt.Println("child: ready")
	for orders := bufio.NewScanner(os.Stdin); orders.Scan(); {
		name := Name(orders.Text())
		if name == "open" {
			_, err := os.Open(s.path("static"))
			fmt.Println("child:", err)
			continue
		}
		g, err := l.Lend(t.Context(), name, request())
		h := http.Header{}
		if err == nil {
			err = g.Inject(h)
		}
		fmt.Println("child:", h.Get("Authorization"), err)
	}
	must(t, l.Close())
}
