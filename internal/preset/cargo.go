package preset

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// cargoIndexURL finds the address of an index in cargo's complaint that it could not fetch its config.json.
var cargoIndexURL = regexp.MustCompile("`(https?://[^`\\s]+/)config\\.json`")

// cargo allows the index of cargo's default registry, or of what replaces it, the host of its crate files, and further registries of the user.
func (b *builder) cargo(ctx context.Context) error {
	home := b.host.getenv("CARGO_HOME")
	if home == "" {
		home = filepath.Join(b.host.Home, ".cargo")
	}
	project, err := newCargoProject(b.host.Home)
	if err != nil {
		return b.unsupported(err, "cargo cannot be asked without a directory to run it in")
	}
	defer func() {
		_ = os.RemoveAll(project)            // two small files in the user's cache, if that should ever go wrong
		_ = os.Remove(filepath.Dir(project)) // only if nothing else is in it
	}()
	index, err := b.cargoIndex(ctx, project)
	if err != nil {
		return err
	}
	clean, ok := b.addURL("cargo's index", index)
	if ok {
		b.cargoFiles(ctx, project, home, clean)
	}
	b.cargoConfig(home)
	b.caEnv("CARGO_HTTP_CAINFO", "SSL_CERT_FILE")
	b.proxyNote("cargo", b.host.getenv("CARGO_HTTP_PROXY"))
	if text, _ := b.host.read(filepath.Join(b.host.Dir, ".cargo", "config.toml")); strings.Contains(text, "[source") || strings.Contains(text, "[registr") {
		b.note("the workspace's .cargo/config.toml names registries: if you trust them, add --allow HOST for each")
	}
	return nil
}

// newCargoProject makes an empty project with one dependency, to ask cargo about. It lies in the user's own cache, because cargo obeys
// configuration in every directory above, and /tmp is anybody's.
func newCargoProject(home string) (string, error) {
	if home == "" {
		return "", errors.New("no home directory")
	}
	cache := filepath.Join(home, ".cache", "cofferdam")
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return "", fmt.Errorf("make a cache directory: %w", err)
	}
	dir, err := os.MkdirTemp(cache, "cargo-")
	if err != nil {
		return "", fmt.Errorf("make a cargo project: %w", err)
	}
	const manifest = "[package]\nname = \"ask\"\nversion = \"0.0.0\"\n[lib]\npath = \"lib.rs\"\n[dependencies]\nlibc = \"*\"\n[workspace]\n"
	err = errors.Join(os.WriteFile(filepath.Join(dir, "Cargo.toml"), []byte(manifest), 0o600), os.WriteFile(filepath.Join(dir, "lib.rs"), nil, 0o600))
	if err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	return dir, nil
}

// cargoIndex lets cargo try to reach its index through a proxy that is not there, and reads from its complaint where it wanted to go. That heeds
// the user's replaced sources, and sends nothing.
func (b *builder) cargoIndex(ctx context.Context, project string) (string, error) {
	_, err := b.host.runIn(ctx, project, "cargo", "generate-lockfile", "--config", `http.proxy="http://127.0.0.1:1"`, "--config", "net.retry=0")
	if errors.Is(err, exec.ErrNotFound) {
		return "", b.unsupported(nil, "cargo is not installed here, so its index is not known")
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		if m := cargoIndexURL.FindSubmatch(exit.Stderr); m != nil {
			return string(m[1]), nil
		}
	}
	return "", b.unsupported(err, "cargo does not tell its index (only sparse indexes are known to work)")
}

// cargoFiles allows the host that crate files come from. Only the index says which: cargo keeps that answer once it has used the index, else
// it is let use it now.
func (b *builder) cargoFiles(ctx context.Context, project, home, index string) {
	a, err := parseAddress(index)
	if err != nil {
		return
	}
	dl := b.cargoDownload(home, a.host)
	if dl == "" {
		_, _ = b.host.runIn(ctx, project, "cargo", "generate-lockfile", "--config", "net.retry=0") // what counts is what it leaves behind
		dl = b.cargoDownload(home, a.host)
	}
	if dl == "" {
		b.note("the host of cargo's crate files is not known before the first use of the index: it shows up as denied, with the flag that allows it")
		return
	}
	// Markers such as {crate} may follow the host, never precede it.
	b.addURL("cargo's file host", strings.NewReplacer("{", "", "}", "").Replace(dl))
}

// cargoDownload returns where crate files of an index come from, as cargo has cached it.
func (b *builder) cargoDownload(home, indexHost string) string {
	entries, err := os.ReadDir(filepath.Join(home, "registry", "index"))
	if err != nil {
		return ""
	}
	for _, e := range entries {
		name := e.Name()
		if i := strings.LastIndexByte(name, '-'); i < 0 || name[:i] != indexHost {
			continue
		}
		text, err := b.host.read(filepath.Join(home, "registry", "index", name, "config.json"))
		var c struct {
			DL string `json:"dl"`
		}
		if err == nil && json.Unmarshal([]byte(text), &c) == nil && c.DL != "" {
			return c.DL
		}
	}
	return ""
}

// cargoConfig adds the user's further registries, and says what a variable cannot carry into the sandbox.
func (b *builder) cargoConfig(home string) {
	text := ""
	for _, name := range []string{"config.toml", "config"} {
		var err error
		if text, err = b.host.read(filepath.Join(home, name)); err != nil {
			b.note("cargo's %s cannot be read: %v", name, err)
		}
		if text != "" {
			break
		}
	}
	keys := parseCargoConfig(text)
	for _, k := range keys {
		switch {
		case len(k.path) == 3 && k.path[0] == "registries" && k.path[2] == "index":
			clean, ok := b.addURL("cargo's registry "+k.path[1], strings.TrimPrefix(k.value, "sparse+"))
			if !ok {
				continue
			}
			if strings.HasPrefix(k.value, "sparse+") {
				clean = "sparse+" + clean
			}
			b.env("CARGO_REGISTRIES_"+strings.ToUpper(strings.ReplaceAll(k.path[1], "-", "_"))+"_INDEX", clean)
		case len(k.path) == 2 && k.path[0] == "http" && k.path[1] == "cainfo":
			b.caFile("CARGO_HTTP_CAINFO", k.value)
		case len(k.path) == 2 && k.path[0] == "http" && k.path[1] == "proxy":
			b.proxyNote("cargo", k.value)
		}
	}
	if slices.ContainsFunc(keys, func(k tomlKey) bool { return k.path[len(k.path)-1] == "replace-with" }) {
		b.note("cargo reads replaced sources from files only: make %s visible inside with --mount, or put the [source] tables into the workspace", filepath.Join(home, "config.toml"))
	}
}

// tomlKey is one "key = value" of a TOML file whose value is a string on one line.
type tomlKey struct {
	path  []string
	value string
}

// parseCargoConfig reads the part of TOML that cargo's configuration is usually written in: tables, bare, quoted and dotted keys, one-line strings. It
// passes over everything else. It is no judge of TOML: what it misses is missed as a convenience, and stays denied.
func parseCargoConfig(text string) []tomlKey {
	var keys []tomlKey
	var table []string
	for ln := range strings.Lines(text) {
		ln = strings.TrimSpace(ln)
		if strings.HasPrefix(ln, "[") {
			name, rest, closed := strings.Cut(strings.Trim(ln, " \t"), "]")
			if table = nil; closed && (rest == "" || strings.HasPrefix(strings.TrimSpace(rest), "#")) {
				table = splitTOMLKey(name[1:])
			}
			if table == nil {
				table = []string{""} // an array of tables, or not understood: nothing below it is of interest
			}
			continue
		}
		name, value, ok := strings.Cut(ln, "=")
		path := splitTOMLKey(name)
		if !ok || path == nil {
			continue
		}
		if value, ok = tomlString(strings.TrimSpace(value)); ok {
			keys = append(keys, tomlKey{path: slices.Concat(table, path), value: value})
		}
	}
	return keys
}

func splitTOMLKey(s string) []string {
	var path []string
	for part := range strings.SplitSeq(s, ".") {
		part = strings.TrimSpace(part)
		if len(part) > 2 && (part[0] == '"' || part[0] == '\'') && part[len(part)-1] == part[0] {
			part = part[1 : len(part)-1]
		}
		if part == "" || strings.ContainsAny(part, "\"'[]# ") {
			return nil
		}
		path = append(path, part)
	}
	return path
}

// tomlString reads a one-line string without escapes, which may be followed by a comment.
func tomlString(s string) (string, bool) {
	if len(s) < 2 || s[0] != '"' && s[0] != '\'' {
		return "", false
	}
	value, rest, closed := strings.Cut(s[1:], s[:1])
	rest = strings.TrimSpace(rest)
	if !closed || strings.Contains(value, `\`) || rest != "" && rest[0] != '#' {
		return "", false
	}
	return value, true
}
