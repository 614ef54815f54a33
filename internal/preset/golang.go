package preset

import (
	"context"
	"encoding/json"
	"errors"
	"os/exec"
	"strings"
)

// golang allows the module proxies and the checksum database. Modules that go fetches from their origin are for the user to allow.
func (b *builder) golang(ctx context.Context) error {
	passed := []string{"GOSUMDB", "GONOSUMDB", "GONOPROXY", "GOPRIVATE", "GOINSECURE", "GOFLAGS", "GOTOOLCHAIN"}
	out, err := b.host.run(ctx, "go", append([]string{"env", "-json", "GOPROXY"}, passed...)...)
	if errors.Is(err, exec.ErrNotFound) {
		return b.unsupported(nil, "go is not installed here, so its module proxy is not known")
	}
	if err != nil {
		return b.unsupported(err, "go does not tell its configuration")
	}
	var env map[string]string
	if err := json.Unmarshal(out, &env); err != nil {
		return b.unsupported(err, "go's configuration is not understood")
	}
	b.env("GOPROXY", b.goProxies(env["GOPROXY"]))
	b.goSums(env["GOSUMDB"])
	for _, name := range passed[1:] {
		b.env(name, env[name])
	}
	if private := env["GONOPROXY"]; private != "" && private != "none" {
		b.note("go fetches modules of %s from their origin: allow those hosts with --allow HOST", private)
	}
	b.caEnv("SSL_CERT_FILE")
	return nil
}

// goProxies allows each proxy of a GOPROXY list and returns the list without credentials.
func (b *builder) goProxies(list string) string {
	var out strings.Builder
	for list != "" {
		end := strings.IndexAny(list, ",|")
		if end < 0 {
			end = len(list)
		}
		entry, separator := strings.TrimSpace(list[:end]), ""
		if end < len(list) {
			separator = list[end : end+1]
		}
		list = list[end+len(separator):]
		switch entry {
		case "":
			continue
		case "off", "noproxy":
		case "direct":
			if len(b.Allows) == 0 {
				b.note("go has no module proxy and fetches modules from their origin: allow the hosts with --allow HOST")
			}
		default:
			if strings.HasPrefix(entry, "file://") {
				b.note("go's proxy %s is a directory: make it visible with --mount", entry)
				break
			}
			if !strings.Contains(entry, "://") {
				entry = "https://" + entry // as go itself reads it
			}
			clean, ok := b.addURL("go's module proxy", entry)
			if !ok {
				continue
			}
			entry = clean
		}
		out.WriteString(entry + separator)
	}
	return strings.TrimRight(out.String(), ",|")
}

// goSums allows the checksum database: "off", NAME, NAME+KEY, each optionally followed by its address.
func (b *builder) goSums(value string) {
	fields := strings.Fields(value)
	if len(fields) == 0 || value == "off" {
		b.env("GOSUMDB", value)
		return
	}
	name, _, _ := strings.Cut(fields[0], "+")
	raw := "https://" + name
	if len(fields) > 1 {
		raw = fields[1]
	}
	clean, ok := b.addURL("go's checksum database", raw)
	if !ok {
		return
	}
	if len(fields) > 1 {
		b.env("GOSUMDB", fields[0]+" "+clean)
	} else {
		b.env("GOSUMDB", fields[0])
	}
}
