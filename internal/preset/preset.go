// Package preset (CONTROL) turns @npm, @go, @pip, @cargo, @apt and @git into hosts to allow, as the tool on the host is configured at that moment.
//
// The tool itself is asked, so a company mirror works without being named. What lies in the workspace is never asked where it could widen the policy:
// a checked-out .npmrc or .cargo/config.toml names no host that is then allowed; it is only pointed at in a note. The exception is @git, which means
// the remotes of the workspace by its very name; it takes them from the workspace's own repository, which must belong to the user or root. Credentials are not passed on: they are cut out of addresses, and a note says so.
package preset

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
)

// Preset is what one name stands for on this host, now.
type Preset struct {
	Name string // with its @
	// Allows are HOST:PORT, as for the flag --allow. They may be empty when Notes say why.
	Allows []string
	// Env are NAME=value, so that the tool inside uses the same addresses although home directories are masked there. No value holds a credential
	// that the tool's configuration had in an address.
	Env []string
	// Notes are sentences for the user: what was left out, and the remedy. They are inert in a terminal.
	Notes []string
}

// Names returns the names that Resolve knows.
func Names() []string { return []string{"@npm", "@go", "@pip", "@cargo", "@apt", "@git"} }

// Resolve asks the tool that a name stands for. It takes as long as the tool takes to start, and never longer than some seconds. A tool
// that is absent, or does not say where it would connect, is a fault of kind Unsupported; an unknown name is Invalid.
func Resolve(ctx context.Context, name string, host Host) (Preset, error) {
	b := &builder{Preset: Preset{Name: name}, host: host}
	var err error
	switch name {
	case "@npm":
		err = b.npm(ctx)
	case "@go":
		err = b.golang(ctx)
	case "@pip":
		err = b.pip(ctx)
	case "@cargo":
		err = b.cargo(ctx)
	case "@apt":
		err = b.apt(ctx)
	case "@git":
		err = b.git(ctx)
	default:
		return Preset{}, fault.New(fault.Invalid, "%.40q is no preset", name).WithHint("the presets are %s", strings.Join(Names(), " "))
	}
	if err != nil {
		return Preset{}, err
	}
	return b.Preset, nil
}

// builder collects a Preset.
type builder struct {
	Preset
	host Host
}

func (b *builder) note(format string, args ...any) {
	if n := audit.Clean(fmt.Sprintf(format, args...)); !slices.Contains(b.Notes, n) {
		b.Notes = append(b.Notes, n)
	}
}

// env passes a variable on, unless it is empty or could not be one.
func (b *builder) env(name, value string) {
	if value == "" || strings.ContainsAny(value, "\x00\n\r") {
		return
	}
	if pair := name + "=" + value; !slices.Contains(b.Env, pair) {
		b.Env = append(b.Env, pair)
	}
}

// address is a URL of a tool's configuration, understood.
type address struct {
	clean string // without user and password
	host  string // lower case, without brackets or a final dot
	port  string
	creds bool
}

// allow is HOST:PORT.
func (a address) allow() string { return net.JoinHostPort(a.host, a.port) }

// parseAddress reads an http or https URL. Its error names nothing of the URL but what is safe to show.
func parseAddress(raw string) (address, error) {
	u, err := url.Parse(strings.TrimSpace(raw))
	if err != nil {
		return address{}, fmt.Errorf("an address that is no URL")
	}
	a := address{host: strings.TrimSuffix(strings.ToLower(u.Hostname()), "."), port: u.Port(), creds: u.User != nil}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return address{}, fmt.Errorf("an address of the kind %.20q, which is neither http nor https", u.Scheme)
	case a.host == "" || strings.ContainsAny(a.host, " /\\*@%,\"'") || strings.ContainsFunc(a.host, unprintable):
		return address{}, fmt.Errorf("an address without a valid host")
	case a.port == "" && u.Scheme == "https":
		a.port = "443"
	case a.port == "":
		a.port = "80"
	}
	u.User = nil
	a.clean = u.String()
	return a, nil
}

func unprintable(r rune) bool { return r <= ' ' || r == 0x7f }

// addURL allows the host of a URL that comes from what (such as "npm's registry"), and returns the URL without credentials. Where it cannot be
// allowed by name, a note says why and what to do, and ok still holds if the tool inside may be given the URL.
func (b *builder) addURL(what, raw string) (clean string, ok bool) {
	a, err := parseAddress(raw)
	if err != nil {
		b.note("%s is %v: nothing is allowed for it", what, err)
		return "", false
	}
	if a.creds {
		b.note("%s has a user or password in its address: credentials are not passed into the sandbox", what)
	}
	ip, err := netip.ParseAddr(a.host)
	switch {
	case err == nil && ip.IsLoopback(), a.host == "localhost", strings.HasSuffix(a.host, ".localhost"):
		b.note("%s is on this machine's own loopback (%s), which no sandbox can reach: serve it under a name or address of its own", what, a.allow())
	case err == nil:
		b.note("%s is a plain address: if you trust it, add --allow-network %s", what, netip.PrefixFrom(ip, ip.BitLen()))
	default:
		b.addHost(a.allow())
	}
	return a.clean, true
}

func (b *builder) addHost(hostPort string) {
	if !slices.Contains(b.Allows, hostPort) {
		b.Allows = append(b.Allows, hostPort)
	}
}

// caFile passes on a file of certificate authorities that the tool is told to trust, where the sandbox can read it.
func (b *builder) caFile(name, path string) {
	switch {
	case path == "":
	case b.host.visibleInside(path):
		b.env(name, path)
	default:
		b.note("the certificate file %s is not visible inside: if a mirror needs it, add it with --mount %s and --env %s=%s", path, path, name, path)
	}
}

// caEnv passes on variables of the host that name such files.
func (b *builder) caEnv(names ...string) {
	for _, name := range names {
		b.caFile(name, b.host.getenv(name))
	}
}

// proxyNote says why a web proxy of the tool is not used inside.
func (b *builder) proxyNote(tool, proxy string) {
	if proxy == "" || proxy == "null" {
		return
	}
	where := "a web proxy"
	if a, err := parseAddress(proxy); err == nil {
		where = "the web proxy " + a.allow()
	}
	b.note("%s is set to use %s: it is not allowed, since a proxy is a way to any host; the sandbox connects directly", tool, where)
}

// unsupported is the error of a preset whose tool is absent or does not answer.
func (b *builder) unsupported(cause error, format string, args ...any) error {
	return fault.New(fault.Unsupported, "%s: %s", b.Name, fmt.Sprintf(format, args...)).
		WithHint("name the hosts yourself with --allow HOST instead of --allow %s", b.Name).Because(cause)
}
