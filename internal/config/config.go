// Package config (MACHINE) is the configuration of the service: one strict YAML file, every member of which has a default, so that none is needed to begin.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Config is what the service is told. Its zero value is not valid: see Load.
type Config struct {
	Version int `yaml:"version"`
	// Listen is the address and port to listen on.
	Listen string `yaml:"listen"`
	// URL is how people and programs reach the service; further names under which it answers are in Hosts, without ports.
	URL   string   `yaml:"url"`
	Hosts []string `yaml:"hosts,omitempty"`
	TLS   TLS      `yaml:"tls"`
	// Store is "sqlite:PATH" or "postgres://…". A password in it is masked wherever it is shown.
	Store string `yaml:"store"`
	// Redis, if set, counts rate limits for several servers: "redis://…".
	Redis string `yaml:"redis,omitempty"`
	Mail  *Mail  `yaml:"mail,omitempty"`
	OIDC  *OIDC  `yaml:"oidc,omitempty"`
	// TrustedProxies are networks whose X-Forwarded-For is believed.
	TrustedProxies []string `yaml:"trusted_proxies,omitempty"`
	// SecurityContact is where security.txt sends people who found a flaw: a mailto: or https: address.
	SecurityContact string `yaml:"security_contact,omitempty"`
}

// TLS says where the certificate comes from.
type TLS struct {
	// Mode is off (on loopback, or behind a proxy that ends TLS), files, local (an authority of the server's own) or acme.
	Mode string `yaml:"mode"`
	Cert string `yaml:"cert,omitempty"` // files
	Key  string `yaml:"key,omitempty"`
	ACME *ACME  `yaml:"acme,omitempty"`
}

// ACME is a certificate from an authority that checks by itself, renewed automatically.
type ACME struct {
	Email     string `yaml:"email,omitempty"`
	Directory string `yaml:"directory,omitempty"` // Let's Encrypt if left out
	CA        string `yaml:"ca,omitempty"`        // file with the authority that signed the directory's own certificate, if it is a private one
	// HTTPPort is where HTTP-01 challenges are answered; 0 means that only TLS-ALPN-01 on the listening port is used.
	HTTPPort int `yaml:"http_port,omitempty"`
}

// Mail is how mail is sent.
type Mail struct {
	Server       string `yaml:"server"` // HOST:PORT
	From         string `yaml:"from"`
	User         string `yaml:"user,omitempty"`
	PasswordFile string `yaml:"password_file,omitempty"`
}

// OIDC is another way to sign in.
type OIDC struct {
	Issuer           string   `yaml:"issuer"`
	ClientID         string   `yaml:"client_id"`
	ClientSecretFile string   `yaml:"client_secret_file,omitempty"`
	Label            string   `yaml:"label,omitempty"`   // on the button
	Domains          []string `yaml:"domains,omitempty"` // of mail addresses for which users are made
	Tenant           string   `yaml:"tenant,omitempty"`  // in which
}

// The modes of TLS.
const (
	TLSOff   = "off"
	TLSFiles = "files"
	TLSLocal = "local"
	TLSACME  = "acme"
)

// usualListen is where the service listens if nothing is said: reachable from this machine only.
const usualListen = "127.0.0.1:7878"

// maxFile bounds the configuration's file.
const maxFile = 1 << 20

// Overrides are what flags say; empty members say nothing.
type Overrides struct{ Listen, URL, TLS, Store string }

// Load reads a file, "" for none, puts overrides over it and defaults under it, and checks the whole. state is the state directory.
func Load(file, state string, over Overrides) (*Config, error) {
	c := &Config{Version: 1}
	if file != "" {
		data, err := read(file)
		if err != nil {
			return nil, err
		}
		if err := decode(file, data, c); err != nil {
			return nil, err
		}
	}
	for _, o := range []struct {
		from string
		to   *string
	}{{over.Listen, &c.Listen}, {over.URL, &c.URL}, {over.TLS, &c.TLS.Mode}, {over.Store, &c.Store}} {
		if o.from != "" {
			*o.to = o.from
		}
	}
	c.fill(state)
	if err := c.check(); err != nil {
		return nil, err
	}
	return c, nil
}

func read(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		hint := "name an existing file with --config FILE"
		if errors.Is(err, fs.ErrPermission) {
			hint = "let the service's user read it"
		}
		return nil, fault.New(fault.Invalid, "cannot read the configuration %s", file).WithHint("%s", hint).Because(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil || len(data) > maxFile {
		return nil, fault.New(fault.Invalid, "cannot read the configuration %s, or it is larger than 1 MiB", file).Because(err)
	}
	return data, nil
}

func decode(file string, data []byte, into *Config) error {
	into.Version = 0
	loader, err := yaml.NewLoader(bytes.NewReader(data), yaml.WithKnownFields())
	if err == nil {
		err = loader.Load(into)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return fault.New(fault.Invalid, "the configuration %s: %s", file, plainly(err)).WithHint("see docs/serve.md for every member")
	}
	if into.Version != 1 {
		return fault.New(fault.Invalid, "the configuration %s has no version that is known here", file).WithHint("begin it with: version: 1")
	}
	return nil
}

// plainly says what is wrong with a file in words of people who write YAML, not Go.
func plainly(err error) string {
	text := err.Error()
	for _, prefix := range []string{"yaml: ", "construct errors: ", "unmarshal errors: "} {
		text = strings.TrimPrefix(strings.TrimSpace(text), prefix)
	}
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for i, line := range lines {
		line, _, _ = strings.Cut(strings.TrimSpace(line), " in type ")
		if before, name, ok := strings.Cut(line, "field "); ok {
			line = before + "there is no " + strings.TrimSuffix(name, " not found")
		}
		lines[i] = line
	}
	return strings.Join(lines, "; ")
}

// fill puts defaults in. The address says what is sensible.
func (c *Config) fill(state string) {
	if c.Listen == "" {
		c.Listen = usualListen
	}
	if c.TLS.Mode == "" {
		switch {
		case c.TLS.Cert != "":
			c.TLS.Mode = TLSFiles
		case c.TLS.ACME != nil:
			c.TLS.Mode = TLSACME
		case c.Loopback():
			c.TLS.Mode = TLSOff
		default:
			c.TLS.Mode = TLSLocal
		}
	}
	if c.URL == "" {
		scheme, host, port := "https", "localhost", "443"
		if c.TLS.Mode == TLSOff {
			scheme = "http"
		}
		if h, p, err := net.SplitHostPort(c.Listen); err == nil {
			if host, port = h, p; unspecified(h) {
				host = hostname()
			} else if c.Loopback() {
				host = "localhost" // a name: passkeys are bound to one
			}
		}
		c.URL = scheme + "://" + net.JoinHostPort(host, port)
	}
	if c.Store == "" {
		c.Store = "sqlite:" + filepath.Join(state, "server", "cofferdam.db")
	}
}

func unspecified(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "" || err == nil && a.IsUnspecified()
}

func hostname() string {
	if name, err := os.Hostname(); err == nil {
		return name
	}
	return "localhost"
}

// Loopback says whether the service can be reached from this machine only.
func (c *Config) Loopback() bool {
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return false
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback() || host == "localhost"
}

func (c *Config) check() error {
	if err := c.checkListen(); err != nil {
		return err
	}
	u, err := url.Parse(c.URL)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.User != nil {
		return invalid("url", c.URL, "write how people reach the service, as in https://cofferdam.example.com")
	}
	c.URL = u.Scheme + "://" + u.Host
	for _, host := range c.Hosts {
		if v, err := url.Parse("//" + host); err != nil || v.Host != host || v.Port() != "" || strings.ContainsAny(host, "*/@") {
			return invalid("hosts", host, "write a name alone, without a port or a star")
		}
	}
	if err := c.checkTLS(u); err != nil {
		return err
	}
	if !strings.HasPrefix(c.Store, "sqlite:/") && !strings.HasPrefix(c.Store, "postgres://") && !strings.HasPrefix(c.Store, "postgresql://") {
		return invalid("store", Masked(c.Store), "write sqlite:/ABSOLUTE/PATH or postgres://USER@HOST/DATABASE")
	}
	if c.Redis != "" && !strings.HasPrefix(c.Redis, "redis://") && !strings.HasPrefix(c.Redis, "rediss://") && !strings.HasPrefix(c.Redis, "unix://") {
		return invalid("redis", Masked(c.Redis), "write redis://HOST:PORT/0")
	}
	if _, err := c.Proxies(); err != nil {
		return err
	}
	if s := c.SecurityContact; s != "" && !strings.HasPrefix(s, "mailto:") && !strings.HasPrefix(s, "https://") {
		return invalid("security_contact", s, "write mailto:ADDRESS or https://…")
	}
	return errors.Join(c.checkMail(), c.checkOIDC())
}

func (c *Config) checkListen() error {
	host, port, err := net.SplitHostPort(c.Listen)
	n, perr := strconv.ParseUint(port, 10, 16)
	if err != nil || perr != nil {
		return invalid("listen", c.Listen, "write ADDRESS:PORT, as in 127.0.0.1:7878 or :443")
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "" && host != "localhost" {
		return invalid("listen", c.Listen, "write an address of this machine, not a name")
	}
	_ = n // 0 takes any free port
	return nil
}

func (c *Config) checkTLS(u *url.URL) error {
	t := c.TLS
	switch t.Mode {
	case TLSOff:
		if !c.Loopback() && u.Scheme != "https" {
			return fault.New(fault.Invalid, "tls.mode: off, and the service listens on %s: passwords would travel unprotected", c.Listen).
				WithHint("listen on 127.0.0.1, or put a proxy that ends TLS before it and say so with url: https://…, or choose tls.mode files, local or acme")
		}
	case TLSFiles:
		if t.Cert == "" || t.Key == "" {
			return invalid("tls", t.Mode, "name both files: cert and key")
		}
	case TLSLocal:
	case TLSACME:
		if t.ACME == nil {
			c.TLS.ACME = &ACME{}
		}
	default:
		return invalid("tls.mode", t.Mode, "write off, files, local or acme")
	}
	if t.Mode != TLSOff && u.Scheme != "https" {
		return invalid("url", c.URL, "the service speaks TLS: write https://")
	}
	if t.Mode != TLSFiles && (t.Cert != "" || t.Key != "") || t.Mode != TLSACME && t.ACME != nil {
		return invalid("tls", t.Mode, "cert and key belong to mode files, acme to mode acme")
	}
	return nil
}

func (c *Config) checkMail() error {
	if c.Mail == nil {
		return nil
	}
	if _, _, err := net.SplitHostPort(c.Mail.Server); err != nil || !strings.Contains(c.Mail.From, "@") {
		return invalid("mail", c.Mail.Server, "write server: HOST:PORT and from: ADDRESS")
	}
	if (c.Mail.User == "") != (c.Mail.PasswordFile == "") {
		return invalid("mail", c.Mail.User, "user and password_file go together")
	}
	return nil
}

func (c *Config) checkOIDC() error {
	if c.OIDC == nil {
		return nil
	}
	u, err := url.Parse(c.OIDC.Issuer)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return invalid("oidc.issuer", c.OIDC.Issuer, "write https://…")
	}
	if c.OIDC.ClientID == "" {
		return invalid("oidc.client_id", "", "write the client's identifier at the issuer")
	}
	if len(c.OIDC.Domains) > 0 && c.OIDC.Tenant == "" {
		return invalid("oidc.tenant", "", "name the tenant in which users of those domains are made")
	}
	return nil
}

func invalid(member, value, hint string) error {
	return fault.New(fault.Invalid, "%s: %.200q cannot be used", member, value).WithHint("%s", hint)
}

// Proxies parses TrustedProxies.
func (c *Config) Proxies() ([]netip.Prefix, error) {
	var list []netip.Prefix
	for _, text := range c.TrustedProxies {
		p, err := netip.ParsePrefix(text)
		if err != nil || p != p.Masked() {
			return nil, invalid("trusted_proxies", text, "write networks, as in 10.0.0.0/8")
		}
		list = append(list, p)
	}
	return list, nil
}

// Names are the host names under which the service answers; that of the URL comes with its port, if it has one.
func (c *Config) Names() []string {
	u, err := url.Parse(c.URL)
	if err != nil {
		return c.Hosts
	}
	return append([]string{u.Host}, slices.Clone(c.Hosts)...)
}

// Masked hides a password in a URL.
func Masked(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return "••••"
	}
	if _, ok := u.User.Password(); !ok && u.Query().Get("password") == "" {
		return text
	}
	if _, ok := u.User.Password(); ok {
		u.User = url.UserPassword(u.User.Username(), "MASKED")
	}
	q := u.Query()
	if q.Get("password") != "" {
		q.Set("password", "MASKED")
		u.RawQuery = q.Encode()
	}
	return strings.ReplaceAll(u.String(), "MASKED", "••••")
}

// String writes the configuration that is in force, secrets masked, as a file that Load reads.
func (c *Config) String() string {
	shown := *c
	shown.Store, shown.Redis = Masked(c.Store), Masked(c.Redis)
	out, err := yaml.Dump(&shown, yaml.WithIndent(2))
	if err != nil {
		return fmt.Sprintf("# cannot be written: %v\n", err)
	}
	return string(out)
}
