package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/client"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/secret"
)

// visit is a sign-in by password, as a browser has one: with a session in a cookie. What concerns tokens is only done in person.
type visit struct {
	*client.Client
	base string
	http *http.Client
}

// signIn asks for what a sign-in needs and signs in. The caller calls leave.
func (a *app) signIn(ctx context.Context, one account, email string) (*visit, error) {
	if !isTerminal(a.stdin) {
		return nil, fault.New(fault.Invalid, "this asks for a password, and there is no terminal to ask at").WithHint("make a token on the page Account → API tokens, and use it with: cofferdam login %s --token-file FILE", one.URL)
	}
	v, err := newVisit(one)
	if err != nil {
		return nil, err
	}
	if email == "" {
		if email, err = a.ask("E-mail address: "); err != nil {
			return nil, err
		}
	}
	fmt.Fprint(a.stderr, "Password (not shown): ")
	password, err := promptHidden(ctx, int(a.stdin.Fd()))
	fmt.Fprintln(a.stderr)
	if err != nil {
		return nil, err
	}
	defer clear(password)
	return v, v.enter(ctx, email, string(password), func() (string, error) { return a.ask("Code of your authenticator, or a recovery code: ") })
}

func newVisit(one account) (*visit, error) {
	transport, err := transportFor(one.CA)
	if err != nil {
		return nil, err
	}
	jar, err := cookiejar.New(nil)
	if err != nil {
		return nil, fmt.Errorf("make a place for cookies: %w", err)
	}
	v := &visit{base: one.URL, http: &http.Client{
		Transport: transport, Jar: jar, Timeout: time.Minute,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	v.Client, err = client.New(one.URL, "", client.WithHTTPClient(v.http))
	return v, err
}

// enter signs in; code is asked for where a second factor is needed.
func (v *visit) enter(ctx context.Context, email, password string, code func() (string, error)) error {
	out, err := v.step(ctx, "sign-in", api.SignIn{Email: email, Password: password})
	if err != nil || out.Done {
		return err
	}
	if !slices.Contains(out.Factors, "totp") && !slices.Contains(out.Factors, "recovery") {
		return fault.New(fault.Unsupported, "your account wants a passkey, which a terminal cannot show").WithHint("sign in at %s with a browser, make a token on the page Account → API tokens, and paste it here", v.base)
	}
	text, err := code()
	if err != nil {
		return err
	}
	way := "recovery"
	if digits := strings.ReplaceAll(text, " ", ""); len(digits) == 6 && strings.Trim(digits, "0123456789") == "" {
		way, text = "totp", digits
	}
	if out, err = v.step(ctx, way, api.Code{Code: text}); err == nil && !out.Done {
		err = fault.New(fault.Unsupported, "the server wants more than a password and a code").WithHint("sign in at %s with a browser, and make a token there", v.base)
	}
	return err
}

// step is one step of signing in.
func (v *visit) step(ctx context.Context, name string, body any) (api.SignedIn, error) {
	var out api.SignedIn
	text, err := json.Marshal(body)
	if err != nil {
		return out, fmt.Errorf("encode the request: %w", err)
	}
	defer clear(text)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, v.base+"/api/v1/auth/"+name, bytes.NewReader(text))
	if err != nil {
		return out, err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "cofferdam/"+version())
	answer, err := v.http.Do(r)
	if err != nil {
		return out, err
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err != nil {
		return out, err
	}
	if answer.StatusCode == http.StatusOK {
		if err := json.Unmarshal(data, &out); err != nil {
			return out, fault.New(fault.Unavailable, "%s does not answer as a Cofferdam server", v.base).Because(err)
		}
		return out, nil
	}
	var p api.Problem
	if json.Unmarshal(data, &p) != nil || p.Code == "" {
		return out, fault.New(fault.Unavailable, "%s does not answer as a Cofferdam server: %s", v.base, answer.Status)
	}
	kind := fault.Unavailable
	if answer.StatusCode < 500 {
		kind = fault.Denied
	}
	return out, fault.New(kind, "%s", p.Detail).WithHint("%s", p.Hint)
}

// leave signs out.
func (v *visit) leave(ctx context.Context) {
	_, _ = v.step(context.WithoutCancel(ctx), "sign-out", struct{}{}) // the session ends by itself too
	v.http.CloseIdleConnections()
}

// operate is the scope that a token of this program has no use for.
const operate = "server:operate"

// makeToken signs in and has a token made for this machine.
func (a *app) makeToken(ctx context.Context, one *account, email string) (time.Time, error) {
	v, err := a.signIn(ctx, *one, email)
	if err != nil {
		return time.Time{}, err
	}
	defer v.leave(ctx)
	made, err := v.machineToken(ctx)
	if err != nil {
		return time.Time{}, err
	}
	one.token, one.TokenID = secret.New([]byte(made.Secret)), made.ID
	return made.Expires, nil
}

// machineToken makes a token for this machine, with all that its owner may do in the tenant.
func (v *visit) machineToken(ctx context.Context) (api.Token, error) {
	me, err := v.Me(ctx)
	if err != nil {
		return api.Token{}, err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "an unnamed machine"
	}
	scopes := slices.DeleteFunc(me.Scopes, func(s string) bool { return s == operate })
	return v.CreateToken(ctx, api.NewToken{Name: "cli on " + inert(host, 80), Scopes: scopes})
}
