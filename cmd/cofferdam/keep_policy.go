package main

import (
	"cmp"
	"net"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cofferdam/cofferdam/internal/credential"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/gateway"
	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// settleKept puts together what the service asks for. The policy is the service's alone: it knows nothing of presets and of the folder's own file.
func settleKept(spec keeper.Spec) (s settled, err error) {
	if s.workspace, s.mode, err = keptFolder(spec.Workspace); err != nil {
		return s, err
	}
	if s.resolver, err = pinResolver(spec.Resolve); err != nil {
		return s, err
	}
	if s.policy, err = keptPolicy(spec, spec.Policy, s.mode); err != nil {
		return s, err
	}
	if spec.Secrets == "" && lends(s.policy) {
		return s, fault.New(fault.Invalid, "the policy lends credentials, and there is no store of credentials for this sandbox")
	}
	if spec.Secrets != "" && !filepath.IsAbs(spec.Secrets) {
		return s, fault.New(fault.Invalid, "the directory of secrets %.200q is not absolute", spec.Secrets)
	}
	s.asked = s.policy.Resources()
	s.env, err = keptEnvironment(spec, s.policy)
	return s, err
}

// keptFolder checks the folder that the service chose.
func keptFolder(w *keeper.Workspace) (choice workspaceChoice, mode policy.WorkspaceMode, err error) {
	if w == nil {
		return choice, 0, nil
	}
	if mode, err = policy.ParseWorkspaceMode(w.Mode); err != nil {
		return choice, 0, err
	}
	for _, path := range []string{w.Dir, w.Path} {
		if !filepath.IsAbs(path) || filepath.Clean(path) != path {
			return choice, 0, fault.New(fault.Invalid, "the folder %.200q is not written absolute and without detours", path)
		}
	}
	flags := runFlags{workspace: w.Dir + ":" + w.Mode}
	choice, err = flags.chooseWorkspace()
	choice.inside, choice.alone = w.Path, w.Alone
	return choice, mode, err
}

// keptPolicy reads a policy as the sandbox can have it: its folder and level are the service's to choose.
func keptPolicy(spec keeper.Spec, document string, mode policy.WorkspaceMode) (*policy.Policy, error) {
	p, err := policy.Parse("policy", []byte(document))
	if err != nil {
		return nil, err
	}
	if len(p.Mounts()) > 0 {
		return nil, fault.New(fault.Invalid, "the policy mounts folders of the host, which a service's policy cannot").WithHint("leave mounts out; give the sandbox a workspace")
	}
	o := policy.Options{}
	if spec.Workspace != nil {
		o.Workspace = &policy.Workspace{Mode: mode}
	}
	if spec.Isolation != "" {
		if o.Isolation.Level, err = policy.ParseLevel(spec.Isolation); err != nil {
			return nil, err
		}
		if o.Isolation.Level < p.Isolation() {
			return nil, fault.New(fault.Invalid, "the policy asks for the isolation level %s, which %s is weaker than", p.Isolation(), o.Isolation.Level)
		}
	}
	return p.Extend(o)
}

// lends says whether a policy lends anything.
func lends(p *policy.Policy) bool {
	return len(p.Credentials()) > 0 || slices.ContainsFunc(p.GitUpstreams(), func(u policy.GitUpstream) bool { return u.Credential != "" || u.API.Credential != "" })
}

// keptEnvironment is what policy and service set inside.
func keptEnvironment(spec keeper.Spec, p *policy.Policy) ([]string, error) {
	var env []string
	for name, value := range p.Environment() {
		env = append(env, name+"="+value)
	}
	return withVariables(env, spec.Env)
}

// withVariables adds variables that the service names.
func withVariables(env, more []string) ([]string, error) {
	for _, text := range more {
		if !strings.Contains(text, "=") {
			return nil, fault.New(fault.Invalid, "the variable %.80q has no value", text)
		}
		name, value, err := policy.ParseVariable(text)
		if err != nil {
			return nil, err
		}
		env = append(env, name+"="+value)
	}
	return env, nil
}

// onceRules reads the rules for one crossing each.
func onceRules(rules []keeper.OnceRule) ([]gateway.Once, error) {
	var once []gateway.Once
	for _, r := range rules {
		if !isPlainID(r.ID) {
			return nil, fault.New(fault.Invalid, "%.80q is no identifier of a rule", r.ID).WithHint("write 1 to 40 letters, digits and hyphens")
		}
		snippet, err := policy.ParseSnippet(r.Rule)
		if err != nil {
			return nil, err
		}
		once = append(once, gateway.Once{Name: approved + r.ID, Snippet: snippet})
	}
	return once, nil
}

// approved begins the name of a rule that a person approved, in the record.
const approved = "approved:"

func isPlainID(s string) bool {
	strange := func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-')
	}
	return s != "" && len(s) <= 40 && !strings.ContainsFunc(s, strange)
}

// fits says what of a policy the running sandbox cannot have.
func (k *keeping) fits(next *policy.Policy) error {
	anew := func(format string, args ...any) error {
		return fault.New(fault.Conflict, format, args...).WithHint("end the sandbox and start another under this policy")
	}
	was := k.settled.policy
	limits, old := next.Resources(), was.Resources()
	limits.Timeout, old.Timeout = 0, 0 // the deadline can be set
	switch {
	case next.Isolation() > was.Isolation():
		return anew("the policy asks for the isolation level %s, and the sandbox runs at %s", next.Isolation(), was.Isolation())
	case next.Isolation() == was.Isolation() && next.Platform() != was.Platform():
		return anew("the policy asks for gVisor's platform %s, and the sandbox runs on %s", next.Platform(), was.Platform())
	case next.Image() != was.Image():
		return anew("the policy names another image than the one that the sandbox was started from")
	case limits != old:
		return anew("the policy has other limits than those with which the sandbox was started")
	case next.Workspace().Mode != was.Workspace().Mode || !slices.Equal(next.Workspace().Unprotected, was.Workspace().Unprotected):
		return anew("the policy has the folder another way than the running sandbox")
	case next.ServesGit() && k.git.token == "":
		return anew("the policy has the section git, which was not there when the sandbox was started")
	}
	find := func(name credential.Name) (credential.Meta, error) {
		meta, ok := k.lending.metas[name]
		if !ok {
			return meta, anew("the policy lends the credential %s, which was not lent when the sandbox was started", name)
		}
		return meta, nil
	}
	for _, entry := range next.Credentials() {
		name, err := credential.ParseName(entry.Use)
		if err != nil {
			return err
		}
		meta, err := find(name)
		if err != nil {
			return err
		}
		if err := meta.Fits(entry.Header, scopeOf(entry)); err != nil {
			return err
		}
		if entry.Env != "" && !k.lending.standsFor(entry.Env, entry.Use) {
			return anew("the policy has the credential %s stand in the variable %s, which the running sandbox does not have", name, entry.Env)
		}
	}
	_, err := gitCredentials(next, find)
	return err
}

// standsFor says whether a variable has a placeholder of that credential's.
func (l *lending) standsFor(variable, name string) bool {
	for _, p := range l.placeholders {
		if p.Credential == name && slices.Contains(l.env, variable+"="+p.Value) {
			return true
		}
	}
	return false
}

// current returns the policy in force, without rules for one crossing.
func (k *keeping) current() law {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.plan.law
}

// gatewayConfig is the gateway's configuration without a person at a terminal.
func (k *keeping) gatewayConfig() gateway.Config {
	c := k.execution.gatewayConfig()
	c.Remedy = "a reviewer decides; it is in the review inbox"
	c.Control = func(conn net.Conn) bool { return k.callers.take(conn) }
	c.Owner, c.Ask, c.Denied = k.owner, k.ask, nil // denials are read from the record
	c.Used = func(rule string) { k.board.Tell(keeper.Event{Type: "used", ID: strings.TrimPrefix(rule, approved)}) }
	c.Log = k.file.slog()
	c.Limits.Connections = int(k.settled.asked.OrDefaults().Connections) + 1
	return c
}

// variablesFor is the environment of a command that is started now.
func (k *keeping) variablesFor(tty bool, more []string) ([]string, error) {
	l := k.current()
	var own []string
	if tty {
		own = append(own, "TERM=xterm-256color")
	}
	env, err := withVariables(append(own, l.own...), more)
	if err != nil {
		return nil, err
	}
	return k.environmentUnder(l.policy, env), nil
}

// startDir is where a command begins: where it was asked for, or in the folder.
func (k *keeping) startDir(asked string) string { return cmp.Or(asked, k.home()) }
