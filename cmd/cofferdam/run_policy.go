package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unicode/utf8"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/netname"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/preset"
)

// settled is what flags, policy file, presets and the repository's policy come to.
type settled struct {
	policy    *policy.Policy
	ceiling   *policy.Policy // what the person allows, where the folder's own policy narrows it; else nil
	workspace workspaceChoice
	mode      policy.WorkspaceMode
	env       []string
	notes     []string
	resolver  *pinnedResolver
	// asked says which limits were asked for by name, so that they are enforced or refused.
	asked policy.Resources
}

// maxPolicy bounds a policy file that is read.
const maxPolicy = 1 << 20

// settle puts the policy of this run together. Flags and --policy come from the person; the folder's own cofferdam.yaml may only narrow.
func (a *app) settle(ctx context.Context, f runFlags, w workspaceChoice) (settled, error) {
	s := settled{workspace: w}
	base, err := policy.New(policy.Options{})
	if err == nil && f.policy != "" {
		base, err = readPolicy(f.policy)
	}
	if err != nil {
		return s, err
	}
	for _, warning := range base.Warnings() {
		s.notes = append(s.notes, warning.String())
	}
	if s.resolver, err = pinResolver(f.resolve); err != nil {
		return s, err
	}
	o, err := f.options(w)
	if err != nil {
		return s, err
	}
	if err := s.addPresets(ctx, f.allow, w.dir, &o); err != nil {
		return s, err
	}
	if s.policy, err = base.Extend(o); err != nil {
		return s, err
	}
	if err := s.narrow(f, w); err != nil {
		return s, err
	}
	s.asked, s.mode = s.policy.Resources(), s.policy.Workspace().Mode
	for name, value := range s.policy.Environment() {
		s.env = append(s.env, name+"="+value)
	}
	return s, nil
}

// narrow intersects with the folder's own policy, unless that is the very file the person named.
func (s *settled) narrow(f runFlags, w workspaceChoice) error {
	if w.dir == "" || f.ignoreRepository {
		return nil
	}
	own := filepath.Join(w.dir, "cofferdam.yaml")
	if f.policy != "" && sameFile(own, f.policy) {
		return nil
	}
	repository, err := readPolicy(own)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	narrowed, err := policy.Narrow(s.policy, repository)
	if err != nil {
		return fault.New(fault.Denied, "the folder's own cofferdam.yaml may only narrow what you allow").
			WithHint("read it; then either trust it with --policy cofferdam.yaml, or go without it: --ignore-repository-policy").Because(err)
	}
	s.ceiling, s.policy = s.policy, narrowed
	s.notes = append(s.notes, "narrowed by this folder's own cofferdam.yaml; without it: --ignore-repository-policy")
	return nil
}

func sameFile(a, b string) bool {
	one, err1 := os.Stat(a)
	two, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(one, two)
}

// readPolicy reads one policy file.
func readPolicy(name string) (*policy.Policy, error) {
	file, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO must not make us wait
	if err != nil {
		return nil, fault.New(fault.Invalid, "cannot read the policy %s", name).WithHint("write one with: cofferdam policy init %s", name).Because(err)
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fault.New(fault.Invalid, "the policy %s is not a plain file", name).Because(err)
	}
	data, err := io.ReadAll(io.LimitReader(file, maxPolicy+1))
	if err != nil {
		return nil, fault.New(fault.Invalid, "cannot read the policy %s", name).Because(err)
	}
	return policy.Parse(name, data)
}

// wall reads the flags that say how the sandbox is walled in.
func (f *runFlags) wall() (i policy.Isolation, err error) {
	if f.isolation != "" {
		if i.Level, err = policy.ParseLevel(f.isolation); err != nil {
			return i, flagError("isolation", err)
		}
	}
	if f.platform != "" {
		if i.Platform, err = policy.ParsePlatform(f.platform); err != nil {
			return i, flagError("gvisor-platform", err)
		}
	}
	if f.image != "" {
		if i.Image, err = policy.ParseImage(f.image); err != nil {
			return i, flagError("image", err)
		}
	}
	return i, nil
}

// options turns flags into what they add to the policy.
func (f *runFlags) options(w workspaceChoice) (o policy.Options, err error) {
	if o.Resources, err = f.resources(); err != nil {
		return o, err
	}
	if f.ask {
		o.Default = policy.Ask
	}
	if w.mode != nil {
		o.Workspace = &policy.Workspace{Mode: *w.mode}
	}
	if o.Isolation, err = f.wall(); err != nil {
		return o, err
	}
	for _, text := range f.allow {
		if strings.HasPrefix(text, "@") {
			continue
		}
		rule, err := policy.ParseAllow(text)
		if err != nil {
			return o, flagError("allow", err)
		}
		o.Rules = append(o.Rules, rule)
	}
	for _, text := range f.deny {
		rule, err := policy.ParseDeny(text)
		if err != nil {
			return o, flagError("deny", err)
		}
		o.Rules = append(o.Rules, rule)
	}
	for _, text := range f.networks {
		prefix, err := policy.ParseNetwork(text)
		if err == nil {
			_, err = policy.New(policy.Options{Networks: []netip.Prefix{prefix}})
		}
		if err != nil {
			return o, flagError("allow-network", err)
		}
		o.Networks = append(o.Networks, prefix)
	}
	for _, text := range f.mounts {
		m, err := parseMount(text)
		if err != nil {
			return o, flagError("mount", err)
		}
		o.Mounts = append(o.Mounts, m)
	}
	o.Environment, err = f.environment()
	return o, err
}

// parseMount reads a mount as typed: relative sources are taken from the current folder, links resolved, and SOURCE alone keeps its place.
func parseMount(text string) (policy.Mount, error) {
	parts := strings.Split(text, ":")
	if len(parts) == 1 {
		parts = []string{text, ""}
	}
	source, err := filepath.Abs(parts[0])
	if err == nil {
		source, err = filepath.EvalSymlinks(source)
	}
	if err != nil {
		return policy.Mount{}, fault.New(fault.Invalid, "cannot mount %s", parts[0]).WithHint("name an existing file or folder").Because(err)
	}
	if !utf8.ValidString(source) {
		return policy.Mount{}, fault.New(fault.Unsupported, "the name %q is not valid UTF-8", source)
	}
	if parts[1] == "" || parts[1] == "ro" || parts[1] == "rw" {
		parts = append([]string{parts[0], source}, parts[1:]...)
		if parts[2] == "" {
			parts = parts[:2]
		}
	}
	parts[0] = source
	return policy.ParseMount(strings.Join(parts, ":"))
}

// environment parses --env.
func (f *runFlags) environment() (map[string]string, error) {
	env := map[string]string{}
	for _, text := range f.env {
		if !strings.Contains(text, "=") {
			value, ok := os.LookupEnv(text)
			if !ok {
				return nil, fault.New(fault.Invalid, "--env %s: there is no such variable here", text).WithHint("write --env %s=VALUE", text)
			}
			text += "=" + value
		}
		name, value, err := policy.ParseVariable(text)
		if err != nil {
			return nil, flagError("env", err)
		}
		env[name] = value
	}
	return env, nil
}

// addPresets resolves @names from the tools' own configuration on this machine.
func (s *settled) addPresets(ctx context.Context, allow []string, dir string, o *policy.Options) error {
	for _, text := range allow {
		if !strings.HasPrefix(text, "@") {
			continue
		}
		if dir == "" {
			dir = "/"
		}
		p, err := preset.Resolve(ctx, text, preset.System(dir))
		if err != nil {
			return err
		}
		for _, one := range p.Allows {
			rule, err := policy.ParseAllow(one)
			if err != nil {
				return flagError("allow "+text, err)
			}
			o.Rules = append(o.Rules, rule)
		}
		s.env = append(s.env, p.Env...)
		s.notes = append(s.notes, p.Notes...)
	}
	return nil
}

// pinnedResolver answers for some names itself and asks this machine's resolvers for the others.
type pinnedResolver struct {
	pins map[netname.Host][]netip.Addr
	next net.Resolver
}

// pinResolver reads --resolve.
func pinResolver(flags []string) (*pinnedResolver, error) {
	r := &pinnedResolver{pins: map[netname.Host][]netip.Addr{}, next: net.Resolver{PreferGo: true}}
	for _, text := range flags {
		name, address, _ := strings.Cut(text, "=")
		host, err := netname.ParseHost(name)
		if err != nil {
			return nil, flagError("resolve", err)
		}
		addr, err := netip.ParseAddr(address)
		if err != nil {
			return nil, fault.New(fault.Invalid, "--resolve %.100q: no address", text).WithHint("write --resolve HOST=ADDRESS")
		}
		r.pins[host] = append(r.pins[host], addr)
	}
	return r, nil
}

// LookupNetIP returns the pinned addresses of host, or what the resolvers say.
func (r *pinnedResolver) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	if pins, ok := r.pins[netname.Host(strings.TrimSuffix(host, "."))]; ok {
		return pins, nil
	}
	return r.next.LookupNetIP(ctx, network, host)
}
