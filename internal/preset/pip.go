package preset

import (
	"context"
	"errors"
	"maps"
	"os/exec"
	"path/filepath"
	"strings"
)

// pipDefaults prints where pip looks when nothing is configured, from its own tables: the index, and the host that its files come from.
const pipDefaults = "from pip._internal.models.index import PyPI; print(PyPI.simple_url); print(PyPI.file_storage_domain)"

// pip allows the package indexes of pip and of uv.
func (b *builder) pip(ctx context.Context) error {
	config, err := b.pipConfig(ctx)
	if err != nil {
		return err
	}
	if err := b.pipIndex(ctx, config); err != nil {
		return err
	}
	b.pipURLs("PIP_EXTRA_INDEX_URL", "pip's extra index", config["extra-index-url"])
	b.pipURLs("PIP_FIND_LINKS", "pip's find-links", config["find-links"])
	b.env("PIP_TRUSTED_HOST", strings.Join(strings.Fields(config["trusted-host"]), " "))
	b.caFile("PIP_CERT", config["cert"])
	b.caEnv("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
	b.proxyNote("pip", config["proxy"])
	for _, name := range []string{"UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL"} {
		b.pipURLs(name, "uv's index", b.host.getenv(name))
	}
	if text, err := b.host.read(filepath.Join(b.host.Home, ".config", "uv", "uv.toml")); err == nil && strings.Contains(text, "index") {
		b.note("uv.toml is not read: if uv uses another index, set UV_DEFAULT_INDEX")
	}
	return nil
}

// pipConfig returns pip's settings, by the names of its long options. Variables win over files, and what is set for install wins over what is set for all commands.
func (b *builder) pipConfig(ctx context.Context) (map[string]string, error) {
	var out []byte
	err := exec.ErrNotFound
	for _, pip := range []string{"pip", "pip3"} {
		if out, err = b.host.run(ctx, pip, "config", "list"); !errors.Is(err, exec.ErrNotFound) {
			break
		}
	}
	if errors.Is(err, exec.ErrNotFound) && b.pipVariables()["index-url"] == "" && !b.uvIndex() {
		return nil, b.unsupported(nil, "pip is not installed here, so its package index is not known")
	}
	if err != nil && !errors.Is(err, exec.ErrNotFound) {
		return nil, b.unsupported(err, "pip does not tell its configuration")
	}
	config := parsePipConfig(string(out))
	maps.Copy(config, b.pipVariables())
	return config, nil
}

func (b *builder) pipVariables() map[string]string {
	set := map[string]string{}
	for _, name := range []string{"index-url", "extra-index-url", "find-links", "trusted-host", "cert", "proxy"} {
		if v := b.host.getenv("PIP_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))); v != "" {
			set[name] = v
		}
	}
	return set
}

// uvIndex says whether uv was told an index of its own.
func (b *builder) uvIndex() bool {
	return b.host.getenv("UV_DEFAULT_INDEX")+b.host.getenv("UV_INDEX_URL") != ""
}

// pipIndex allows the main index. The public one keeps its files on another host, which pip itself knows of; a mirror is told to pip inside.
func (b *builder) pipIndex(ctx context.Context, config map[string]string) error {
	index := config["index-url"]
	defaultIndex, files := b.pipAsk(ctx)
	if index == "" {
		if defaultIndex == "" && b.uvIndex() {
			return nil // uv alone
		}
		if defaultIndex == "" {
			return b.unsupported(nil, "pip does not tell its package index")
		}
		b.addURL("pip's index", defaultIndex)
		b.addURL("pip's file host", "https://"+files)
		return nil
	}
	clean, ok := b.addURL("pip's index", index)
	if !ok {
		return nil
	}
	b.env("PIP_INDEX_URL", clean)
	if !b.uvIndex() {
		b.env("UV_INDEX_URL", clean)
	}
	if a, err := parseAddress(defaultIndex); err == nil && strings.Contains(clean, "://"+a.host+"/") {
		b.addURL("pip's file host", "https://"+files)
		return nil
	}
	b.note("if the package index refers to files on another host, that host shows up as denied, with the flag that allows it")
	return nil
}

// pipAsk returns pip's built-in index and file host, "" where no Python tells.
func (b *builder) pipAsk(ctx context.Context) (index, files string) {
	for _, python := range []string{"python3", "python"} {
		out, err := b.host.run(ctx, python, "-c", pipDefaults)
		if fields := strings.Fields(string(out)); err == nil && len(fields) == 2 {
			return fields[0], fields[1]
		}
	}
	return "", ""
}

// pipURLs allows the URLs of a list and passes the list on without credentials. Local paths are passed as they are.
func (b *builder) pipURLs(variable, what, list string) {
	var kept []string
	for entry := range strings.FieldsSeq(list) {
		if !strings.Contains(entry, "://") {
			if variable == "PIP_FIND_LINKS" {
				kept = append(kept, entry)
			}
			continue
		}
		if _, named, ok := strings.Cut(entry, "=http"); ok && strings.HasPrefix(variable, "UV_") {
			entry = "http" + named // uv's NAME=URL
		}
		if clean, ok := b.addURL(what, entry); ok {
			kept = append(kept, clean)
		}
	}
	b.env(variable, strings.Join(kept, " "))
}

// parsePipConfig reads the output of "pip config list": lines SECTION.NAME='value', the value as Python writes a string.
func parsePipConfig(text string) map[string]string {
	config := map[string]string{}
	rank := map[string]int{}
	ranks := map[string]int{"global": 1, "install": 2, ":env:": 3}
	for ln := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSpace(ln), "=")
		section, name, dotted := strings.Cut(key, ".")
		value, quoted := unquotePython(value)
		if !ok || !dotted || !quoted || ranks[section] == 0 || ranks[section] < rank[name] {
			continue
		}
		name = strings.ReplaceAll(name, "_", "-")
		config[name], rank[name] = value, ranks[section]
	}
	return config
}

// unquotePython undoes Python's repr of a string.
func unquotePython(s string) (string, bool) {
	if len(s) < 2 || s[0] != '\'' && s[0] != '"' || s[len(s)-1] != s[0] {
		return "", false
	}
	return strings.NewReplacer(`\\`, `\`, `\n`, "\n", `\t`, "\t", `\r`, "\r", `\'`, "'", `\"`, `"`).Replace(s[1 : len(s)-1]), true
}
