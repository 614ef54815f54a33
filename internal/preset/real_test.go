package preset

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// real is this machine with a workspace and a home directory of its own, so that no tool leaves anything in the user's; a test skips where the tool is not installed.
func real(t *testing.T, tool string) Host {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		t.Skip("needs ", tool)
	}
	t.Setenv("CARGO_HOME", t.TempDir())
	h := System(t.TempDir())
	h.Home = t.TempDir()
	return h
}

// TestRealTools asks the tools that are installed, whatever they are set to: something is allowed, or a note says why not.
func TestRealTools(t *testing.T) {
	for name, tool := range map[string]string{"@npm": "npm", "@go": "go", "@pip": "pip", "@cargo": "cargo", "@apt": "apt-config"} {
		t.Run(name, func(t *testing.T) {
			p, err := Resolve(t.Context(), name, real(t, tool))
			if err != nil {
				t.Fatal(err)
			}
			if len(p.Allows) == 0 && len(p.Notes) == 0 {
				t.Error("neither a host nor a reason")
			}
			checkSafe(t, p)
		})
	}
}

func TestRealNpmHeedsItsFiles(t *testing.T) {
	h := real(t, "npm")
	rc := filepath.Join(t.TempDir(), "npmrc")
	if err := os.WriteFile(rc, []byte("registry=https://mirror.example.com/npm/\n@acme:registry=https://acme.example.com/\n//acme.example.com/:_authToken=s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"npm_config_registry", "NPM_CONFIG_REGISTRY"} {
		t.Setenv(name, "")
	}
	t.Setenv("NPM_CONFIG_USERCONFIG", rc)
	p, err := Resolve(t.Context(), "@npm", h)
	if err != nil {
		t.Fatal(err)
	}
	checkSafe(t, p)
	if !slices.Contains(p.Allows, "mirror.example.com:443") || !slices.Contains(p.Allows, "acme.example.com:443") {
		t.Errorf("allows %q", p.Allows)
	}
	// The variables that are passed on must mean the same to npm.
	t.Setenv("NPM_CONFIG_USERCONFIG", os.DevNull)
	for key, want := range map[string]string{"registry": "https://mirror.example.com/npm/\n", "@acme:registry": "https://acme.example.com/\n"} {
		cmd := exec.CommandContext(t.Context(), "npm", "config", "get", key)
		cmd.Dir, cmd.Env = "/", append(os.Environ(), p.Env...)
		if out, err := cmd.Output(); err != nil || string(out) != want {
			t.Errorf("npm inside has %s %q %v, want %q", key, out, err, want)
		}
	}
}

func TestRealGoHeedsItsVariables(t *testing.T) {
	h := real(t, "go")
	t.Setenv("GOPROXY", "https://mirror.example.com/go,direct")
	t.Setenv("GOSUMDB", "sum.example.org")
	p, err := Resolve(t.Context(), "@go", h)
	if err != nil || !slices.Equal(p.Allows, []string{"mirror.example.com:443", "sum.example.org:443"}) {
		t.Errorf("%q %v", p.Allows, err)
	}
}

func TestRealPipHeedsItsFiles(t *testing.T) {
	h := real(t, "pip")
	conf := filepath.Join(t.TempDir(), "pip.conf")
	if err := os.WriteFile(conf, []byte("[global]\nindex-url = https://u:s3cret@mirror.example.com/simple\nextra-index-url =\n  https://a.example.com/s\n  https://b.example.com/s\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PIP_CONFIG_FILE", conf)
	for _, name := range []string{"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"} {
		t.Setenv(name, "")
		os.Unsetenv(name)
	}
	p, err := Resolve(t.Context(), "@pip", h)
	if err != nil || !slices.Equal(p.Allows, []string{"mirror.example.com:443", "a.example.com:443", "b.example.com:443"}) {
		t.Errorf("%q %v", p.Allows, err)
	}
	checkSafe(t, p)
}

func TestRealCargoHeedsItsFiles(t *testing.T) {
	h := real(t, "cargo")
	home := t.TempDir()
	if err := os.WriteFile(filepath.Join(home, "config.toml"), []byte("[source.crates-io]\nreplace-with = \"m\"\n[source.m]\nregistry = \"sparse+http://127.0.0.1:1/index/\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CARGO_HOME", home)
	p, err := Resolve(t.Context(), "@cargo", h)
	if err != nil || len(p.Allows) > 0 || len(p.Notes) < 2 {
		t.Errorf("a mirror on loopback: %+v %v", p, err)
	}
}
