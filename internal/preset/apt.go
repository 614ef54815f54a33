package preset

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// apt allows the hosts of all enabled package sources. /etc/apt is visible inside, so nothing needs to be passed on.
func (b *builder) apt(ctx context.Context) error {
	var uris []string
	for _, path := range b.aptFiles() {
		text, err := b.host.read(path)
		if err != nil {
			b.note("%s cannot be read: %v", path, err)
			continue
		}
		if strings.HasSuffix(path, ".sources") {
			uris = append(uris, parseDeb822(text)...)
		} else {
			uris = append(uris, parseSourcesList(text)...)
		}
	}
	if len(uris) == 0 {
		return b.unsupported(nil, "no package sources are set in /etc/apt here")
	}
	for _, uri := range uris {
		b.aptURI(uri)
	}
	if out, err := b.host.run(ctx, "apt-config", "dump", "Acquire"); err == nil {
		for _, proxy := range parseAptProxies(string(out)) {
			b.proxyNote("apt", proxy)
		}
	}
	return nil
}

// aptFiles returns the files that apt reads, in its order: names with other endings are ignored by apt too.
func (b *builder) aptFiles() []string {
	files := []string{b.host.path("/etc/apt/sources.list")}
	dir := b.host.path("/etc/apt/sources.list.d")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return files
	}
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); ext == ".list" || ext == ".sources" {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	return files
}

func (b *builder) aptURI(uri string) {
	scheme, rest, _ := strings.Cut(uri, ":")
	scheme = strings.ToLower(scheme)
	switch scheme {
	case "http", "https":
		b.addURL("apt's source", scheme+":"+rest)
	case "mirror+http", "mirror+https":
		b.addURL("apt's mirror list", strings.TrimPrefix(scheme, "mirror+")+":"+rest)
		b.note("apt chooses among mirrors of a list: each shows up as denied, with the flag that allows it")
	case "file", "copy", "cdrom":
		// local; nothing crosses
	default:
		b.note("apt's source of the kind %.20q is not allowed: only http and https are", scheme)
	}
}

// parseSourcesList returns the URIs of one-line entries: TYPE [OPTIONS] URI SUITE COMPONENT...
func parseSourcesList(text string) []string {
	var uris []string
	for ln := range strings.Lines(text) {
		ln, _, _ = strings.Cut(ln, "#")
		kind, rest, _ := strings.Cut(strings.Join(strings.Fields(ln), " "), " ")
		if kind != "deb" && kind != "deb-src" {
			continue
		}
		if strings.HasPrefix(rest, "[") {
			_, after, closed := strings.Cut(rest, "]")
			if !closed {
				continue
			}
			rest = strings.TrimSpace(after)
		}
		if uri, _, suite := strings.Cut(rest, " "); suite {
			uris = append(uris, uri)
		}
	}
	return uris
}

// parseDeb822 returns the URIs of the enabled stanzas of a .sources file.
func parseDeb822(text string) []string {
	var uris []string
	stanza, field := map[string]string{}, ""
	flush := func() {
		if enabled := strings.ToLower(strings.TrimSpace(stanza["enabled"])); !slices.Contains([]string{"no", "false", "off", "0", "without", "disable"}, enabled) {
			uris = append(uris, strings.Fields(stanza["uris"])...)
		}
		clear(stanza)
		field = ""
	}
	for ln := range strings.Lines(text) {
		ln = strings.TrimRight(ln, "\r\n")
		switch {
		case strings.HasPrefix(ln, "#"):
		case strings.TrimSpace(ln) == "":
			flush()
		case ln[0] == ' ' || ln[0] == '\t':
			if field != "" {
				stanza[field] += " " + ln
			}
		default:
			name, value, _ := strings.Cut(ln, ":")
			field = strings.ToLower(strings.TrimSpace(name))
			stanza[field] = value
		}
	}
	flush()
	return uris
}

// parseAptProxies returns the proxies in the output of "apt-config dump": lines NAME "VALUE";
func parseAptProxies(text string) []string {
	var proxies []string
	for ln := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(ln), " ")
		name = strings.ToLower(name)
		value = strings.Trim(strings.TrimSuffix(value, ";"), `"`)
		isProxy := strings.HasPrefix(name, "acquire::http::proxy") || strings.HasPrefix(name, "acquire::https::proxy")
		if isProxy && value != "" && !strings.EqualFold(value, "DIRECT") && strings.Contains(value, "://") {
			proxies = append(proxies, value)
		}
	}
	return proxies
}
