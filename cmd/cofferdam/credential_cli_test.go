package main

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/internal/fault"
)

const credentialCanary = "cAnArY-0123456789-last"

// credentialRun is one call of "cofferdam credential" or "cofferdam seal".
type credentialRun struct {
	stdout, stderr string
	err            error
}

func (r credentialRun) everything() string {
	return r.stdout + r.stderr + fmt.Sprintf("%v %+v", r.err, r.err) + fault.HintOf(r.err)
}

// typed runs a command line with a standard input. No run may say the canary.
func typed(t *testing.T, state, input string, args ...string) credentialRun {
	t.Helper()
	file := filepath.Join(t.TempDir(), "stdin")
	if err := os.WriteFile(file, []byte(input), 0o600); err != nil {
		t.Fatal(err)
	}
	stdin, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	var out, errs bytes.Buffer
	a := &app{stdin: stdin, stdout: &out, stderr: &errs, state: state}
	root := &cobra.Command{Use: "cofferdam", SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(newCredentialCommand(a), newSealCommand(a))
	root.SetOut(&errs)
	root.SetErr(&errs)
	root.SetArgs(args)
	r := credentialRun{err: root.ExecuteContext(t.Context())}
	r.stdout, r.stderr = out.String(), errs.String()
	if strings.Contains(r.everything(), credentialCanary) {
		t.Errorf("%q says the secret: %s", args, r.everything())
	}
	return r
}

func good(t *testing.T, r credentialRun) credentialRun {
	t.Helper()
	if r.err != nil {
		t.Fatalf("%v (%s)\n%s", r.err, fault.HintOf(r.err), r.stderr)
	}
	return r
}

func TestCredentialLife(t *testing.T) {
	state := t.TempDir()
	added := good(t, typed(t, state, credentialCanary+"\n", "credential", "add", "github", "--host", "api.example.com", "--path", "/repos/acme/", "--method", "GET"))
	if !strings.Contains(added.stderr, "made the key") || !strings.Contains(added.stderr, "keep a copy") || !strings.Contains(added.stderr, "credential test github") {
		t.Error(added.stderr)
	}
	if again := typed(t, state, "x", "credential", "add", "github", "--host", "api.example.com"); fault.KindOf(again.err) != fault.Conflict {
		t.Error(again.err)
	}
	if out := good(t, typed(t, state, "", "credential", "list")).stdout; !strings.Contains(out, "github  static  Authorization  api.example.com /repos/acme/ GET") {
		t.Error(out)
	}
	if out := good(t, typed(t, state, "", "credential", "show", "github")).stdout; !strings.Contains(out, "••••last") {
		t.Error(out)
	}
	var shown struct {
		Name    string
		Secrets map[string]string
	}
	if err := json.Unmarshal([]byte(good(t, typed(t, state, "", "credential", "show", "github", "--json")).stdout), &shown); err != nil || shown.Secrets["value"] != "••••last" {
		t.Errorf("%+v, %v", shown, err)
	}
	good(t, typed(t, state, "short\r\n", "credential", "rotate", "github"))
	if out := good(t, typed(t, state, "", "credential", "show", "github")).stdout; !strings.Contains(out, "value        ••••\n") {
		t.Errorf("%q", out)
	}
	if out := good(t, typed(t, state, "", "credential", "test", "github")).stdout; !strings.Contains(out, "opens") {
		t.Error(out)
	}
	first := good(t, typed(t, state, "", "seal", "status")).stdout
	good(t, typed(t, state, "", "seal", "rotate"))
	if out := good(t, typed(t, state, "", "seal", "status")).stdout; !strings.Contains(out, "current") || !strings.Contains(out, "older") || out == first {
		t.Error(out)
	}
	if out := good(t, typed(t, state, "", "seal", "rotate", "--finish")).stderr; !strings.Contains(out, "0 credentials were put under it") {
		t.Error(out)
	}
	if out := good(t, typed(t, state, "", "seal", "prune")).stderr; !strings.Contains(out, "forgot the key") {
		t.Error(out)
	}
	good(t, typed(t, state, "", "credential", "show", "github"))
	good(t, typed(t, state, "", "credential", "remove", "github"))
	if r := typed(t, state, "", "credential", "show", "github"); fault.KindOf(r.err) != fault.NotFound || !strings.Contains(fault.HintOf(r.err), "credential list") {
		t.Error(r.err)
	}
	// Nothing on the disk is in plain.
	good(t, typed(t, state, credentialCanary, "credential", "add", "again", "--host", "api.example.com"))
	err := filepath.WalkDir(state, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte(credentialCanary)) {
			t.Errorf("%s holds the secret", path)
		}
		if info, _ := d.Info(); info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestCredentialArguments: what looks like a secret in an argument is refused, said to be leaked, and not repeated.
func TestCredentialArguments(t *testing.T) {
	state := t.TempDir()
	for _, args := range [][]string{
		{"add", "github", credentialCanary, "--host", "example.com"},
		{"add", credentialCanary, "--host", "example.com"},
		{"add", "ghp_0123456789abcdefghijABCDEFGHIJ012345", "--host", "example.com"},
		{"add", "abcdefghijklmnopqrstuvwxyz0123456789", "--host", "example.com"},
		{"add", "github", "--value=" + credentialCanary, "--host", "example.com"},
		{"add", "github", "--host", "example.com", "--from-file", credentialCanary},
		{"add", "github", "--host", "example.com", "--kind", "oauth2-client", "--client-id", "x", "--token-url", "https://u:" + credentialCanary + "@example.com/"},
		{"rotate", "github", credentialCanary},
		{"show", credentialCanary},
		{"remove", credentialCanary},
		{"test", credentialCanary},
	} {
		r := typed(t, state, "value", append([]string{"credential"}, args...)...)
		if r.err == nil || strings.Contains(r.everything(), "0123456789") {
			t.Errorf("%q: %s", args, r.everything())
		}
	}
	if r := typed(t, state, "v", "credential", "add", "github", "secret-value"); !strings.Contains(fault.HintOf(r.err), "leaked") {
		t.Error(r.err, fault.HintOf(r.err))
	}
	for name, args := range map[string][]string{
		"no host":      {"github"},
		"kind":         {"github", "--host", "example.com", "--kind", "magic"},
		"port":         {"github", "--host", "example.com", "--port", "99999"},
		"foreign flag": {"github", "--host", "example.com", "--app-id", "1"},
		"empty value":  {"github", "--host", "example.com"},
	} {
		if r := typed(t, state, "\n", append([]string{"credential", "add"}, args...)...); fault.KindOf(r.err) != fault.Invalid || fault.HintOf(r.err) == "" {
			t.Errorf("%s: %v (%s)", name, r.err, fault.HintOf(r.err))
		}
	}
	if entries, _ := os.ReadDir(filepath.Join(state, "credentials")); len(entries) > 0 {
		t.Error("something was written")
	}
	if _, err := os.Stat(filepath.Join(state, "seal")); err == nil {
		t.Error("a key was made for nothing")
	}
}

// TestLostKey: with a wrong key or none, commands stop and write nothing; they do not make a new one in its place.
func TestLostKey(t *testing.T) {
	state := t.TempDir()
	good(t, typed(t, state, credentialCanary, "credential", "add", "one", "--host", "example.com"))
	seals := filepath.Join(state, "seal")
	if err := os.Rename(seals, seals+".away"); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"credential", "add", "two", "--host", "example.com"}, {"credential", "show", "one"}, {"credential", "rotate", "one"}, {"credential", "test", "one"}, {"seal", "init"}, {"seal", "rotate"}, {"seal", "prune"}, {"seal", "status"},
	} {
		if r := typed(t, state, "value", args...); fault.KindOf(r.err) != fault.Unavailable || fault.HintOf(r.err) == "" {
			t.Errorf("%q: %v", args, r.err)
		}
	}
	if _, err := os.Stat(filepath.Join(seals, "keys.json")); err == nil {
		t.Error("a new key was made")
	}
	good(t, typed(t, state, "", "credential", "list"))
	if err := os.RemoveAll(seals); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(seals+".away", seals); err != nil {
		t.Fatal(err)
	}
	good(t, typed(t, state, "", "credential", "show", "one"))
}

func TestCredentialPrompt(t *testing.T) {
	terminal, tty, err := pty.Open()
	if err != nil {
		t.Skip(err)
	}
	defer terminal.Close()
	defer tty.Close()
	var out, errs bytes.Buffer
	a := &app{stdin: tty, stdout: &out, stderr: &errs, state: t.TempDir()}
	cmd := newCredentialCommand(a)
	cmd.SetArgs([]string{"add", "github", "--host", "example.com"})
	go func() {
		time.Sleep(200 * time.Millisecond) // until echo is off
		_, _ = terminal.WriteString(credentialCanary + "\r")
	}()
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := tty.WriteString("the end"); err != nil {
		t.Fatal(err)
	}
	var echoed []byte // a read from a terminal does not end by itself: up to what was written last
	for !bytes.Contains(echoed, []byte("the end")) {
		some := make([]byte, 256)
		n, err := terminal.Read(some)
		if err != nil {
			t.Fatal(err)
		}
		echoed = append(echoed, some[:n]...)
	}
	if bytes.Contains(echoed, []byte(credentialCanary)) || !strings.Contains(errs.String(), "value of github (not shown)") || strings.Contains(out.String()+errs.String(), credentialCanary) {
		t.Errorf("%q %q", echoed, errs.String())
	}
	if r := good(t, typed(t, a.state, "", "credential", "show", "github")); !strings.Contains(r.stdout, "••••last") {
		t.Error(r.stdout)
	}
}

func TestCredentialTest(t *testing.T) {
	asked := 0
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		switch {
		case r.URL.Path == "/token":
			fmt.Fprint(w, `{"access_token":"minted-token","expires_in":60}`)
		case r.URL.Path == "/echo":
			fmt.Fprint(w, r.Header)
		case r.Header.Get("Authorization") == "Bearer "+credentialCanary || r.Header.Get("Authorization") == "Bearer minted-token":
			w.WriteHeader(http.StatusNoContent)
		default:
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer server.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o644); err != nil {
		t.Fatal(err)
	}
	port := fmt.Sprint(server.Listener.Addr().(*net.TCPAddr).Port)
	state, base := t.TempDir(), "https://example.com:"+port
	reach := []string{"--resolve", "example.com=127.0.0.1", "--ca", ca, "--allow-network", "127.0.0.0/8"}
	try := func(args ...string) credentialRun {
		t.Helper()
		return typed(t, state, "", append([]string{"credential", "test"}, args...)...)
	}
	good(t, typed(t, state, credentialCanary, "credential", "add", "good", "--host", "example.com", "--port", port, "--path", "/"))
	good(t, typed(t, state, "wrong-value", "credential", "add", "bad", "--host", "example.com", "--port", port))
	good(t, typed(t, state, credentialCanary, "credential", "add", "minted", "--kind", "oauth2-client", "--client-id", "c", "--token-url", base+"/token", "--host", "example.com", "--port", port))
	if out := good(t, try(append(reach, "good", "--url", base+"/x")...)).stdout; !strings.Contains(out, "status 204") {
		t.Error(out)
	}
	good(t, try(append(reach, "good", "--url", base+"/echo")...)) // typed looks for the canary
	if r := try(append(reach, "bad", "--url", base+"/x", "--json")...); fault.KindOf(r.err) != fault.Denied || !strings.Contains(r.stdout, `"status": 401`) {
		t.Errorf("%+v", r)
	}
	if out := good(t, try(append(reach, "minted", "--url", base+"/x")...)).stdout; !strings.Contains(out, "handed over a token") || !strings.Contains(out, "204") {
		t.Error(out)
	}
	before := asked
	for name, r := range map[string]credentialRun{
		"another host": try(append(reach, "good", "--url", "https://other.example.com:"+port+"/")...),
		"another port": try(append(reach, "good", "--url", "https://example.com/")...),
		"loopback":     try("good", "--url", base+"/x", "--resolve", "example.com=127.0.0.1", "--ca", ca),
		"TRACE":        try(append(reach, "good", "--url", base+"/x", "--method", "TRACE")...),
	} {
		if r.err == nil || fault.KindOf(r.err) != fault.Denied && !strings.Contains(r.err.Error(), "127.0.0.1") {
			t.Errorf("%s: %v", name, r.err)
		}
	}
	if r := try(append(reach, "good", "--url", "http://example.com/")...); fault.KindOf(r.err) != fault.Invalid {
		t.Error(r.err)
	}
	if r := try("good", "--url", base+"/x", "--resolve", "example.com=127.0.0.1", "--allow-network", "127.0.0.0/8"); fault.KindOf(r.err) != fault.Unavailable {
		t.Errorf("a certificate that nobody vouches for: %v", r.err)
	}
	if asked != before {
		t.Error("a request arrived that must not")
	}
}

func TestCredentialCompletion(t *testing.T) {
	state := t.TempDir()
	for _, name := range []string{"one", "two"} {
		good(t, typed(t, state, "value", "credential", "add", name, "--host", "example.com"))
	}
	if out := good(t, typed(t, state, "", "__complete", "credential", "show", "")); !strings.Contains(out.stderr, "one\ntwo\n") {
		t.Errorf("%+v", out)
	}
	if out := good(t, typed(t, state, "", "__complete", "credential", "add", "x", "--kind", "")); !strings.Contains(out.stderr, "github-app\n") {
		t.Errorf("%+v", out)
	}
}

// TestCredentialEdit changes conditions without the value, refuses what would be no credential any more, and writes nothing then.
func TestCredentialEdit(t *testing.T) {
	state := t.TempDir()
	good(t, typed(t, state, credentialCanary, "credential", "add", "api", "--host", "api.example.com", "--path", "/v1/"))
	good(t, typed(t, state, credentialCanary, "credential", "add", "minted", "--kind", "oauth2-client", "--client-id", "c", "--scope", "all", "--token-url", "https://login.example.com/t", "--host", "api.example.com"))
	good(t, typed(t, state, credentialCanary, "credential", "add", "bucket", "--kind", "aws", "--access-key-id", "AKIAIOSFODNN7EXAMPLE", "--region", "eu-central-1", "--host", "s3.example.com"))
	shown := func(name string) string {
		t.Helper()
		return good(t, typed(t, state, "", "credential", "show", name)).stdout
	}
	for _, c := range []struct{ args, want string }{
		{"api --host api.example.com --host *.example.org --method GET", "api.example.com,*.example.org /v1/ GET"},
		{"api --path /v2/ --path /v3/x --port 8443", "api.example.com,*.example.org:8443 /v2/,/v3/x GET"},
		{"api --reset path --reset port --reset method", "api.example.com,*.example.org\n"},
		{"api --header x-key", "header       X-Key\nplaceholder"},
		{"api --prefix Token", "prefix       Token \n"},
		{"api --user bot --reset header", "user         bot\n"},
		{"api --reset user", "header       Authorization\nprefix       Bearer \n"},
		{"minted --reset scope --audience https://x.example.com --client-auth body", "audience        https://x.example.com\n"},
		{"bucket --service s3 --reset region", "region             as the request says\nservice            s3\n"},
	} {
		args := strings.Fields(c.args)
		r := good(t, typed(t, state, "", append([]string{"credential", "edit"}, args...)...))
		if out := shown(args[0]); !strings.Contains(out, c.want) || !strings.Contains(out, "••••last") || !strings.Contains(r.stderr, "now") {
			t.Errorf("%s: %q, want %q; %s", c.args, out, c.want, r.stderr)
		}
	}
	var m struct {
		Scope struct{ Methods []string }
		OAuth struct {
			ClientAuth string `json:"client_auth"`
		}
	}
	out := good(t, typed(t, state, "", "credential", "edit", "minted", "--method", "GET", "--json")).stdout
	if err := json.Unmarshal([]byte(out), &m); err != nil || len(m.Scope.Methods) != 1 || m.OAuth.ClientAuth != "body" {
		t.Errorf("%s: %v", out, err)
	}
	before := shown("api")
	log := good(t, typed(t, state, "", "credential", "list", "--json")).stdout
	for _, args := range []string{
		"api", "api --reset host", "api --path relative", "api --path=", "api --host=", "api --header Host", "api --region eu-central-1", "api --client-id x", "api --reset kind", "api --reset value",
		"api --path /x --reset path", "api --user=", "api --shape none", "api --method get", "minted --token-url http://login.example.com/", "bucket --header X-Key", "nobody --path /", "api --kind basic",
		"api new-value", "minted --client-auth neither",
	} {
		r := typed(t, state, "", append([]string{"credential", "edit"}, strings.Fields(args)...)...)
		if k := fault.KindOf(r.err); r.err == nil || k == fault.Internal && !strings.Contains(r.err.Error(), "unknown flag") {
			t.Errorf("%s: %v", args, r.err)
		}
	}
	if after := shown("api"); after != before || log != good(t, typed(t, state, "", "credential", "list", "--json")).stdout {
		t.Errorf("%s\n%s", before, after)
	}
	if out := good(t, typed(t, state, "", "__complete", "credential", "edit", "")); !strings.Contains(out.stderr, "api\nbucket\nminted\n") {
		t.Errorf("%+v", out)
	}
	if out := good(t, typed(t, state, "", "__complete", "credential", "edit", "api", "--reset", "")); !strings.Contains(out.stderr, "path\n") {
		t.Errorf("%+v", out)
	}
	if err := os.Rename(filepath.Join(state, "seal"), filepath.Join(state, "away")); err != nil {
		t.Fatal(err)
	}
	if r := typed(t, state, "", "credential", "edit", "api", "--path", "/w/"); fault.KindOf(r.err) != fault.Unavailable {
		t.Errorf("without the key: %v", r.err)
	}
}

// TestSecretVariable names the second half of an AWS key by the first.
func TestSecretVariable(t *testing.T) {
	for id, want := range map[string]string{
		"AWS_ACCESS_KEY_ID": "AWS_SECRET_ACCESS_KEY", "BACKUP_ACCESS_KEY_ID": "BACKUP_SECRET_ACCESS_KEY", "ACCESS_KEY_ID": "SECRET_ACCESS_KEY", "MINIO_ACCESS_KEY": "MINIO_SECRET_KEY",
		"TF_VAR_access_key": "TF_VAR_secret_key", "RCLONE_CONFIG_S_ACCESS_KEY_ID": "RCLONE_CONFIG_S_SECRET_ACCESS_KEY",
		"TOKEN": "", "XACCESS_KEY": "", "ACCESS_KEY_IDS": "", "AWS_SECRET_ACCESS_KEY": "",
	} {
		if got, err := secretVariable("x", id); got != want || (err != nil) != (want == "") || err != nil && fault.HintOf(err) == "" {
			t.Errorf("%s: %q, %v; want %q", id, got, err, want)
		}
	}
}
