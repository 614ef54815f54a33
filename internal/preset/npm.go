package preset

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// npmConfig is the part of npm's configuration that matters here.
type npmConfig struct {
	Registry, CAFile, HTTPSProxy, Proxy, UserConfig, GlobalConfig string
}

// npm allows the registry and the registries of scopes. It serves the other package managers of Node too, as far as they obey npm's variables.
func (b *builder) npm(ctx context.Context) error {
	c, err := b.npmAsk(ctx)
	if err != nil {
		return err
	}
	registry, ok := b.addURL("npm's registry", c.Registry)
	if ok {
		b.npmRegistryEnv(registry)
	}
	b.npmScopes(c)
	b.caFile("npm_config_cafile", c.CAFile)
	b.caEnv("NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE")
	b.proxyNote("npm", c.HTTPSProxy)
	b.proxyNote("npm", c.Proxy)
	b.npmProject()
	return nil
}

// npmAsk asks npm, outside of any project. Where npm is absent on the host, a sandbox with another root may still have it: then the files are read.
func (b *builder) npmAsk(ctx context.Context) (npmConfig, error) {
	out, err := b.host.run(ctx, "npm", "config", "ls", "--json")
	if errors.Is(err, exec.ErrNotFound) {
		return b.npmFromFiles()
	}
	if err != nil {
		return npmConfig{}, b.unsupported(err, "npm does not tell its configuration")
	}
	var all map[string]any
	err = json.Unmarshal(out, &all)
	text := func(key string) string {
		s, _ := all[key].(string) // null and false mean that it is not set
		return s
	}
	c := npmConfig{
		Registry: text("registry"), CAFile: text("cafile"), HTTPSProxy: text("https-proxy"), Proxy: text("proxy"),
		UserConfig: text("userconfig"), GlobalConfig: text("globalconfig"),
	}
	if err != nil || c.Registry == "" {
		return npmConfig{}, b.unsupported(err, "npm's configuration is not understood")
	}
	return c, nil
}

func (b *builder) npmFromFiles() (npmConfig, error) {
	c := npmConfig{UserConfig: b.npmVariable("userconfig"), GlobalConfig: b.npmVariable("globalconfig")}
	if c.UserConfig == "" {
		c.UserConfig = filepath.Join(b.host.Home, ".npmrc")
	}
	rc := b.npmFile(c.UserConfig)
	for _, set := range []struct {
		to  *string
		key string
	}{{&c.Registry, "registry"}, {&c.CAFile, "cafile"}, {&c.HTTPSProxy, "https-proxy"}, {&c.Proxy, "proxy"}} {
		if *set.to = b.npmVariable(set.key); *set.to == "" {
			*set.to = rc[set.key]
		}
	}
	if c.Registry == "" {
		return c, b.unsupported(nil, "npm is not installed here, so its registry is not known")
	}
	return c, nil
}

// npmVariable returns a setting made by an environment variable, in either spelling.
func (b *builder) npmVariable(key string) string {
	name := "npm_config_" + strings.ReplaceAll(key, "-", "_")
	if v := b.host.getenv(name); v != "" {
		return v
	}
	return b.host.getenv(strings.ToUpper(name))
}

// npmScopes adds the registries of scopes, which npm does not print, from the files that it says it reads.
func (b *builder) npmScopes(c npmConfig) {
	scopes := map[string]string{}
	secrets := false
	for _, path := range []string{c.GlobalConfig, c.UserConfig} { // the user's wins
		if path == "" {
			continue
		}
		for key, value := range b.npmFile(path) {
			if strings.HasPrefix(key, "@") && strings.HasSuffix(key, ":registry") {
				scopes[key] = value
			}
			secrets = secrets || strings.Contains(key, ":_auth") || strings.Contains(key, ":_password") || key == "_auth" || strings.HasSuffix(key, ":keyfile")
		}
	}
	for _, key := range slices.Sorted(maps.Keys(scopes)) {
		scope, _, _ := strings.Cut(key, ":")
		clean, ok := b.addURL("npm's registry for "+scope, scopes[key])
		if !ok {
			continue
		}
		// npm lowers names of variables and turns "_" into "-", and some shells (dash) drop such a name altogether.
		if key != strings.ToLower(key) || strings.ContainsAny(key, "_ =") {
			b.note("npm's registry for %s cannot be set by a variable: put %s=%s into the project's .npmrc", scope, key, clean)
			continue
		}
		b.env("npm_config_"+key, clean)
	}
	if secrets {
		b.note("npm has credentials for a registry: they are not passed into the sandbox")
	}
}

// npmRegistryEnv tells npm inside which registry to use, unless the project asks for another one: a variable would override that.
func (b *builder) npmRegistryEnv(registry string) {
	project := b.npmFile(filepath.Join(b.host.Dir, ".npmrc"))["registry"]
	if project != "" && strings.TrimSuffix(project, "/") != strings.TrimSuffix(registry, "/") {
		return
	}
	b.env("npm_config_registry", registry)
	b.env("YARN_NPM_REGISTRY_SERVER", strings.TrimSuffix(registry, "/"))
}

// npmProject points at hosts that the workspace's own .npmrc names: it came with the code, so it may not widen the policy.
func (b *builder) npmProject() {
	rc := b.npmFile(filepath.Join(b.host.Dir, ".npmrc"))
	for _, key := range slices.Sorted(maps.Keys(rc)) {
		if key != "registry" && (!strings.HasPrefix(key, "@") || !strings.HasSuffix(key, ":registry")) {
			continue
		}
		a, err := parseAddress(rc[key])
		if err != nil || slices.Contains(b.Allows, a.allow()) {
			continue
		}
		b.note("the workspace's .npmrc sets %s to a host that is not allowed: if you trust it, add --allow %s", key, a.allow())
	}
}

// npmFile reads a file of npm's configuration. One that cannot be read counts as empty, with a note.
func (b *builder) npmFile(path string) map[string]string {
	text, err := b.host.read(path)
	if err != nil {
		b.note("%s cannot be read: %v", path, err)
		return nil
	}
	return parseNpmrc(text, b.host.getenv)
}

// parseNpmrc reads "key = value" lines as npm does, with ${VARIABLE} replaced. Sections and lists, which hold nothing of interest, are passed over.
func parseNpmrc(text string, getenv func(string) string) map[string]string {
	rc := map[string]string{}
	for ln := range strings.Lines(text) {
		ln = strings.TrimSpace(ln)
		if ln == "" || ln[0] == ';' || ln[0] == '#' {
			continue
		}
		if ln[0] == '[' {
			break // keys of a section are not top-level ones
		}
		key, value, ok := strings.Cut(ln, "=")
		if !ok {
			continue
		}
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if len(value) >= 2 && (value[0] == '"' || value[0] == '\'') && value[len(value)-1] == value[0] {
			value = value[1 : len(value)-1]
		}
		if value, ok = expandBraces(value, getenv); ok && key != "" {
			rc[key] = value
		}
	}
	return rc
}

// expandBraces replaces ${NAME}. It fails where a name is not set: npm keeps the text then, which is no address.
func expandBraces(s string, getenv func(string) string) (string, bool) {
	var out strings.Builder
	for {
		before, rest, found := strings.Cut(s, "${")
		out.WriteString(before)
		if !found {
			return out.String(), true
		}
		name, after, closed := strings.Cut(rest, "}")
		value := ""
		if closed && getenv != nil {
			value = getenv(strings.TrimSuffix(name, "?"))
		}
		if value == "" {
			return "", false
		}
		out.WriteString(value)
		s = after
	}
}
