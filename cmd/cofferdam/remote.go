package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/client"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/secret"
)

// remote is the server that a command works at.
type remote struct {
	*client.Client
	URL     string
	account account
}

// hereWord is the value of COFFERDAM_SERVER that means no server.
const hereWord = "local"

// server returns the server that commands work at: the one that COFFERDAM_SERVER names, else the one that was logged in to last; nil means this machine.
func (a *app) server(local bool) (*remote, error) {
	named := os.Getenv("COFFERDAM_SERVER")
	if local || named == hereWord {
		return nil, nil
	}
	all, err := a.loadAccounts()
	if err != nil {
		return nil, err
	}
	token, err := tokenOfEnvironment()
	if err != nil {
		return nil, err
	}
	at := all.Current
	if named != "" {
		if at, err = serverURL(named); err != nil {
			return nil, err
		}
	}
	one, known := all.find(at)
	switch {
	case at == "" && !token.Empty():
		return nil, fault.New(fault.Invalid, "there is a token in the environment, and no server to show it to").WithHint("set COFFERDAM_SERVER to the server's URL, or to %s for this machine", hereWord)
	case at == "":
		return nil, nil
	case !known && token.Empty():
		return nil, fault.New(fault.Unauthenticated, "you are not logged in to %s", at).WithHint("cofferdam login %s; or set COFFERDAM_TOKEN_FILE", at)
	case !token.Empty():
		one.URL, one.token, one.TokenID = at, token, ""
	}
	return connect(one)
}

// tokenOfEnvironment reads COFFERDAM_TOKEN, or the file that COFFERDAM_TOKEN_FILE names; empty if there is neither.
func tokenOfEnvironment() (secret.Bytes, error) {
	if text := os.Getenv("COFFERDAM_TOKEN"); text != "" {
		return secret.New([]byte(text)), nil
	}
	file := os.Getenv("COFFERDAM_TOKEN_FILE")
	if file == "" {
		return secret.Bytes{}, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return secret.Bytes{}, fault.New(fault.Invalid, "cannot read the file that COFFERDAM_TOKEN_FILE names").Because(errors.Unwrap(err))
	}
	defer f.Close()
	return readValue("token", f)
}

// serverURL reads a server's address in the one form in which it is stored: scheme and host, without a path. Over http only this machine is reached.
func serverURL(text string) (string, error) {
	if !strings.Contains(text, "://") {
		text = "https://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Path != "" && u.Path != "/" {
		return "", fault.New(fault.Invalid, "%.200q is no address of a server", text).WithHint("write https://HOST or https://HOST:PORT")
	}
	text = strings.ToLower(u.Scheme + "://" + u.Host)
	if _, err := client.New(text, ""); err != nil {
		return "", fault.New(fault.Invalid, "%v", err).WithHint("write https://HOST; http only for an address of this machine, such as http://127.0.0.1:7878")
	}
	return text, nil
}

// connect makes a client for a server. Nothing is sent yet.
func connect(one account) (*remote, error) {
	transport, err := transportFor(one.CA)
	if err != nil {
		return nil, err
	}
	c, err := client.New(one.URL, string(one.token.Reveal()), client.WithHTTPClient(&http.Client{Transport: transport}), client.WithUserAgent("cofferdam/"+version()))
	if err != nil {
		return nil, fault.New(fault.Invalid, "%v", err).WithHint("log in again with: cofferdam login %s", one.URL)
	}
	return &remote{Client: c, URL: one.URL, account: one}, nil
}

// transportFor is how a server is reached: with a CA of its own, only a certificate of that authority is taken.
func transportFor(ca string) (*http.Transport, error) {
	t := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout: 15 * time.Second, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 8, IdleConnTimeout: 90 * time.Second,
		ResponseHeaderTimeout: 3 * time.Minute, // making a sandbox may take the server two
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if ca == "" {
		return t, nil
	}
	t.TLSClientConfig.RootCAs = x509.NewCertPool()
	if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM([]byte(ca)) {
		return nil, fault.New(fault.Invalid, "there is no certificate in the authority's file").WithHint("give the PEM file of the server's certificate authority with --ca")
	}
	return t, nil
}

// explain adds to an error of a server what a person can do about it.
func explain(at string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return fault.New(fault.Unavailable, "the certificate of %s is not by an authority that this machine trusts", at).
			WithHint("a server with a certificate of its own prints where its authority's lies (server/tls/ca.pem): copy that file here by a way that you trust, then: cofferdam login %s --ca FILE", at).Because(err)
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fault.New(fault.Unavailable, "the certificate of %s is not in order", at).Because(err)
	}
	e, ok := errors.AsType[*client.Error](err)
	switch {
	case !ok:
		if _, lost := errors.AsType[*url.Error](err); !lost || errors.Is(err, context.Canceled) {
			return err
		}
		return fault.New(fault.Unavailable, "cannot reach %s", at).WithHint("see that it runs and can be reached; --local works on this machine").Because(err)
	case e.Code == client.Unauthenticated:
		return fault.New(fault.Unauthenticated, "%s does not take the token", at).WithHint("log in again with: cofferdam login %s", at).Because(err)
	}
	return err
}

// dim says in one line where a command works that could work here too.
func (a *app) dim(r *remote) {
	text := "cofferdam: on " + r.URL + " (--local for this machine)"
	if auditColour(a.stderr, os.Getenv) {
		text = "\x1b[2m" + text + "\x1b[0m"
	}
	fmt.Fprintln(a.stderr, text)
}

// thereFunc is what a command does at a server.
type thereFunc func(ctx context.Context, r *remote, cmd *cobra.Command, args []string) error

// eitherWay makes a command of this machine one that works at the server which is logged in to, and here with --local.
func (a *app) eitherWay(cmd *cobra.Command, there thereFunc) *cobra.Command {
	var local bool
	cmd.Flags().BoolVar(&local, "local", false, "on this machine, also where a server is logged in to")
	here := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r, err := a.server(local)
		if err != nil {
			return err
		}
		if r == nil {
			return here(cmd, args)
		}
		a.dim(r)
		return explain(r.URL, there(cmd.Context(), r, cmd, args))
	}
	return cmd
}

// onlyHere is what a command without a counterpart says while a server is logged in to: it must not be mistaken for one that works there.
func (a *app) onlyHere(cmd *cobra.Command) {
	a.eitherWay(cmd, func(_ context.Context, r *remote, cmd *cobra.Command, _ []string) error {
		return fault.New(fault.Unsupported, "%s works on this machine, and you are logged in to %s", cmd.CommandPath(), r.URL).WithHint("for this machine write: %s --local", cmd.CommandPath())
	})
}

// there makes the RunE of a command that only a server has.
func (a *app) there(do thereFunc) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		r, err := a.server(false)
		if err != nil {
			return err
		}
		if r == nil {
			return fault.New(fault.Unauthenticated, "%s works at a server, and you are logged in to none", cmd.CommandPath()).
				WithHint("cofferdam login https://SERVER; to have one of your own: cofferdam serve --help")
		}
		return explain(r.URL, do(cmd.Context(), r, cmd, args))
	}
}

// completeWithin bounds what completion may wait for a server.
const completeWithin = 3 * time.Second

// completeAt completes the first argument with what a server lists.
func (a *app) completeAt(list func(context.Context, *remote) ([]cobra.Completion, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.complete(cmd, list)
	}
}

func (a *app) complete(cmd *cobra.Command, list func(context.Context, *remote) ([]cobra.Completion, error)) ([]cobra.Completion, cobra.ShellCompDirective) {
	r, err := a.server(false)
	if err != nil || r == nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmp.Or(cmd.Context(), context.Background()), completeWithin)
	defer cancel()
	found, err := list(ctx, r)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return found, cobra.ShellCompDirectiveNoFileComp
}

func agentCompletions(ctx context.Context, r *remote) ([]cobra.Completion, error) {
	page, err := r.Agents(ctx, client.Page{Limit: 200})
	var found []cobra.Completion
	for _, one := range page.Items {
		found = append(found, cobra.CompletionWithDesc(one.Name, inert(one.Description, 60)))
	}
	return found, err
}

func sandboxCompletions(ctx context.Context, r *remote) ([]cobra.Completion, error) {
	page, err := r.Sandboxes(ctx, "", true, client.Page{Limit: 200})
	var found []cobra.Completion
	for _, one := range page.Items {
		found = append(found, cobra.CompletionWithDesc(one.ID, inert(one.AgentName+" "+one.Name, 60)))
	}
	return found, err
}

// completeAgents completes a flag that names an agent.
func (a *app) completeAgents(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.complete(cmd, agentCompletions)
}
