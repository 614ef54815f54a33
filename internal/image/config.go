package image

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// Bounds of a configuration. The kernel takes no more in one argument (MAX_ARG_STRLEN), and a list that is longer is no configuration but an attack.
const (
	maxArguments  = 512
	maxWords      = 128 << 10 // bytes of all arguments, or of all variables
	maxWorkingDir = 4096      // PATH_MAX
)

// Config is what is honoured of an image's configuration: a suggestion of what to start, where, and with which variables. It opens nothing, mounts nothing and
// raises no limit; whoever starts the sandbox says otherwise by flags or policy.
type Config struct {
	Env        []string `json:"env,omitempty"`         // NAME=VALUE, harmless names only, each once
	WorkingDir string   `json:"working_dir,omitempty"` // absolute and clean; empty: /
	Entrypoint []string `json:"entrypoint,omitempty"`
	Cmd        []string `json:"cmd,omitempty"`
	User       string   `json:"user,omitempty"`    // as the image says it: NAME, ID, or either with :GROUP
	Ignored    []string `json:"ignored,omitempty"` // what was left out, and why, a sentence each
}

// honour takes of a configuration what cannot do harm, and says what it leaves.
func honour(file *v1.ConfigFile) (Config, error) {
	in := file.Config
	c := Config{Entrypoint: in.Entrypoint, Cmd: in.Cmd}
	for _, list := range [][]string{c.Entrypoint, c.Cmd} {
		if err := checkArguments(list); err != nil {
			return Config{}, err
		}
	}
	if err := c.takeEnv(in.Env); err != nil {
		return Config{}, err
	}
	c.takeWorkingDir(in.WorkingDir)
	c.takeUser(in.User)
	for _, extra := range []struct {
		what string
		n    int
		why  string
	}{
		{"volumes", len(in.Volumes), "what is seen inside is for you to say, with --mount"},
		{"ports", len(in.ExposedPorts), "nothing reaches a sandbox from outside"},
		{"triggers of later builds", len(in.OnBuild), "nothing is built on it here"},
	} {
		if extra.n > 0 {
			c.ignore("%s (%d): %s", extra.what, extra.n, extra.why)
		}
	}
	if in.Healthcheck != nil {
		c.ignore("health check: nothing runs but what you start")
	}
	if in.StopSignal != "" {
		c.ignore("stop signal: a sandbox is told to end by SIGTERM, and then ended")
	}
	return c, nil
}

// HonourConfig checks a configuration that was made here as one that came with an image is checked. What would be left out is refused instead: its maker can change it.
func HonourConfig(c Config) (Config, error) {
	checked, err := honour(&v1.ConfigFile{Config: v1.Config{Env: c.Env, WorkingDir: c.WorkingDir, Entrypoint: c.Entrypoint, Cmd: c.Cmd, User: c.User}})
	if err != nil {
		return Config{}, err
	}
	if len(checked.Ignored) > 0 {
		return Config{}, fault.New(fault.Invalid, "the image's configuration cannot be honoured: %s", checked.Ignored[0]).WithHint("leave it out")
	}
	return checked, nil
}

func (c *Config) ignore(format string, args ...any) {
	c.Ignored = append(c.Ignored, fmt.Sprintf(format, args...))
}

func checkArguments(list []string) error {
	total := 0
	for _, arg := range list {
		total += len(arg) + 1
		if strings.IndexByte(arg, 0) >= 0 {
			return fault.New(fault.Invalid, "the image's command holds a NUL byte, which no program can receive")
		}
	}
	if len(list) > maxArguments || total > maxWords {
		return fault.New(fault.TooMany, "the image's command has %d arguments of %d bytes; %d and %d are the most", len(list), total, maxArguments, maxWords)
	}
	return nil
}

// takeEnv keeps variables with harmless names. Of a name that stands twice the last counts, as it does for programs.
func (c *Config) takeEnv(env []string) error {
	if len(env) > maxArguments {
		return fault.New(fault.TooMany, "the image sets %d variables; %d are the most", len(env), maxArguments)
	}
	values, order, total := map[string]string{}, []string{}, 0
	for _, line := range env {
		name, value, err := policy.ParseVariable(line)
		if err != nil {
			c.ignore("variable: %s", fault.Public(err))
			continue
		}
		if why := harmful(name); why != "" {
			c.ignore("variable %s: %s", name, why)
			continue
		}
		if _, again := values[name]; !again {
			order = append(order, name)
		}
		values[name] = value
		total += len(line)
	}
	if total > maxWords {
		return fault.New(fault.TooMany, "the image's variables have %d bytes; %d are the most", total, maxWords)
	}
	for _, name := range order {
		c.Env = append(c.Env, name+"="+values[name])
	}
	return nil
}

// harmful says why a variable of an image is left out, or nothing. A person can still set it, with --env.
func harmful(name string) string {
	upper := strings.ToUpper(name)
	if strings.HasPrefix(name, "LD_") || name == "GLIBC_TUNABLES" || name == "GCONV_PATH" {
		return "it has the loader put other code into every program"
	}
	if strings.HasSuffix(upper, "_PROXY") {
		return "the way out is the gateway, and no other is believed"
	}
	if strings.HasPrefix(name, "GIT_") {
		return "it changes what Git runs and whom it believes"
	}
	reasons := refusedVariables()
	for _, why := range slices.Sorted(maps.Keys(reasons)) {
		if slices.Contains(reasons[why], name) {
			return why
		}
	}
	return ""
}

// refusedVariables is what is left out by exact name, by reason.
func refusedVariables() map[string][]string {
	return map[string][]string{
		"it has an interpreter run other code first": {"BASH_ENV", "ENV", "NODE_OPTIONS", "BUN_OPTIONS", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS",
			"PERL5OPT", "RUBYOPT", "PYTHONSTARTUP", "PROMPT_COMMAND"},
		"which authorities are believed is for the run to say": {"SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE",
			"CARGO_HTTP_CAINFO", "AWS_CA_BUNDLE", "DENO_CERT", "NODE_TLS_REJECT_UNAUTHORIZED"},
		"it changes how the runner runs": {"GODEBUG", "GOGC", "GOMAXPROCS", "GOMEMLIMIT", "GOTRACEBACK", "GORACE"},
	}
}

func (c *Config) takeWorkingDir(dir string) {
	switch {
	case dir == "" || dir == "/":
	case len(dir) > maxWorkingDir || !path.IsAbs(dir) || strings.IndexByte(dir, 0) >= 0 || slices.Contains(strings.Split(dir, "/"), ".."):
		c.ignore("working directory: it is not absolute, or leads upwards")
	default:
		c.WorkingDir = path.Clean(dir)
	}
}

func (c *Config) takeUser(user string) {
	if len(user) > 128 || strings.Trim(user, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-:") != "" || strings.Count(user, ":") > 1 {
		c.ignore("user: it is no name and no number")
		return
	}
	c.User = user
}
