package image

import (
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// TestEnv takes harmless variables of an image and leaves the others, each with its name and a reason.
func TestEnv(t *testing.T) {
	for line, taken := range map[string]bool{
		"PATH=/bin": true, "LANG=C": true, "GOPATH=/go": true, "PYTHONPATH=/app": true, "EMPTY=": true, "A=b=c": true, "LDFLAGS=x": true, "PROXY=x": true,
		"LD_PRELOAD=/x": false, "LD_LIBRARY_PATH=/x": false, "GLIBC_TUNABLES=x": false, "GCONV_PATH=/x": false,
		"https_proxy=http://x": false, "HTTP_PROXY=x": false, "All_Proxy=x": false, "NO_PROXY=*": false,
		"GIT_SSL_NO_VERIFY=1": false, "GIT_SSH_COMMAND=x": false, "BASH_ENV=/x": false, "ENV=/x": false, "NODE_OPTIONS=--require=/x": false, "JAVA_TOOL_OPTIONS=-javaagent:x": false,
		"PERL5OPT=-M": false, "RUBYOPT=-r": false, "PYTHONSTARTUP=/x": false, "SSL_CERT_FILE=/x": false, "NODE_EXTRA_CA_CERTS=/x": false, "NODE_TLS_REJECT_UNAUTHORIZED=0": false,
		"GODEBUG=x": false, "GOGC=off": false, "COFFERDAM_RUN=x": false, "no value": false, "": false, "1A=x": false, "A B=x": false, "A=\x00": false, "=x": false,
	} {
		c, err := honour(&v1.ConfigFile{Config: v1.Config{Env: []string{line}}})
		if err != nil {
			t.Fatal(err)
		}
		if got := slices.Equal(c.Env, []string{line}); got != taken || len(c.Ignored) == 1 == taken {
			t.Errorf("%q: %+v", line, c)
		}
		if name, _, ok := strings.Cut(line, "="); !taken && ok && name != "" && !strings.Contains(c.Ignored[0], name) {
			t.Errorf("%q: ignored %q", line, c.Ignored)
		}
		if _, err := HonourConfig(Config{Env: []string{line}}); (err == nil) != taken {
			t.Errorf("%q, made here: %v", line, err)
		}
	}
	c, err := honour(&v1.ConfigFile{Config: v1.Config{Env: []string{"A=1", "B=2", "A=3"}}})
	if err != nil || !slices.Equal(c.Env, []string{"A=3", "B=2"}) {
		t.Errorf("%q, %v", c.Env, err)
	}
}

func TestPlaceAndUser(t *testing.T) {
	for dir, want := range map[string]string{"": "", "/": "", "/work": "/work", "/work//a/": "/work/a", "work": "", "/a/../../b": "", "/a\x00b": "", "/" + strings.Repeat("a", 5000): ""} {
		c, err := honour(&v1.ConfigFile{Config: v1.Config{WorkingDir: dir}})
		if err != nil || c.WorkingDir != want || (len(c.Ignored) == 0) != (want != "" || dir == "" || dir == "/") {
			t.Errorf("%.40q: %+v, %v", dir, c, err)
		}
	}
	for user, taken := range map[string]bool{"": true, "app": true, "1000:1000": true, "a_b-c.d": true, "a:b:c": false, "a b": false, "a\n": false, "$(x)": false, strings.Repeat("a", 200): false} {
		c, err := honour(&v1.ConfigFile{Config: v1.Config{User: user}})
		if err != nil || (c.User == user) != taken || (len(c.Ignored) == 0) != taken {
			t.Errorf("%.40q: %+v, %v", user, c, err)
		}
	}
	full := v1.Config{Volumes: map[string]struct{}{"/x": {}}, ExposedPorts: map[string]struct{}{"1/tcp": {}}, OnBuild: []string{"RUN x"}, Healthcheck: &v1.HealthConfig{}, StopSignal: "SIGINT", Labels: map[string]string{"a": "b"}}
	if c, err := honour(&v1.ConfigFile{Config: full}); err != nil || len(c.Ignored) != 5 {
		t.Errorf("%+v, %v", c, err)
	}
}
