package image

import (
	"net"
	"strings"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/netname"
)

// Bounds of names, as registries have them (OCI distribution specification 1.1, "Pulling manifests").
const (
	maxRepository = 255
	maxTag        = 128
	standardTag   = "latest"
)

// Reference names an image. Only ParseReference makes one.
type Reference struct {
	Registry   string // HOST or HOST:PORT, canonical; empty: a name of this store alone
	Repository string
	Tag        string // empty if Digest is set
	Digest     string // sha256:HEX, or empty
}

// ParseReference reads [HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]. The part before the first slash is a registry's host if it holds a dot or a colon, or is
// localhost. There is no registry that stands for a missing one. With a digest the tag says nothing, and is dropped.
func ParseReference(text string) (Reference, error) {
	var r Reference
	rest, digest, pinned := strings.Cut(text, "@")
	if pinned {
		if _, ok := hexOf(digest); !ok {
			return r, refuse(text, "what follows @ is no digest", "write @sha256: and 64 hexadecimal digits")
		}
		r.Digest = digest
	}
	first, repository, below := strings.Cut(rest, "/")
	if below && (strings.ContainsAny(first, ".:[") || first == "localhost") {
		registry, err := parseRegistry(first)
		if err != nil {
			return r, err
		}
		r.Registry, rest = registry, repository
	}
	var tagged bool
	r.Repository, r.Tag, tagged = strings.Cut(rest, ":")
	if tagged && !isTag(r.Tag) {
		return r, refuse(text, "what follows the colon is no tag", "a tag is letters, digits, dots, hyphens and underscores, at most 128")
	}
	if !isRepository(r.Repository) {
		return r, refuse(text, "the repository's name is not well formed", "write lower-case letters and digits, with single dots, hyphens, underscores or slashes between them, as in registry.example.org/team/tool:1.2")
	}
	switch {
	case r.Digest != "":
		r.Tag = ""
	case !tagged:
		r.Tag = standardTag
	}
	return r, nil
}

func refuse(text, what, hint string) error {
	return fault.New(fault.Invalid, "%.300q is no image: %s", text, what).WithHint("%s", hint)
}

// parseRegistry reads a registry's host and port. An address instead of a name is refused: nothing could be said about it, and no certificate names it.
func parseRegistry(text string) (string, error) {
	host, port := text, ""
	if strings.ContainsAny(text, ":[") {
		var err error
		if host, port, err = net.SplitHostPort(text); err != nil {
			return "", fault.New(fault.Invalid, "%.80q is no registry", text).WithHint("write HOST or HOST:PORT")
		}
		if _, err := netname.ParsePort(port); err != nil {
			return "", err
		}
	}
	name, err := netname.ParseHost(host)
	if err != nil {
		return "", err
	}
	if port == "" || port == "443" {
		return name.String(), nil
	}
	return name.String() + ":" + port, nil
}

// isRepository follows the grammar of OCI distribution: [a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/...)*.
func isRepository(s string) bool {
	if s == "" || len(s) > maxRepository {
		return false
	}
	for part := range strings.SplitSeq(s, "/") {
		if !isRepositoryPart(part) {
			return false
		}
	}
	return true
}

func isRepositoryPart(part string) bool {
	for {
		word := strings.TrimLeft(part, "abcdefghijklmnopqrstuvwxyz0123456789")
		if word == part {
			return false // a separator where letters or digits must be, or nothing
		}
		if word == "" {
			return true
		}
		part = strings.TrimLeft(word, "._-")
		switch between := word[:len(word)-len(part)]; {
		case between == "." || between == "_" || between == "__":
		case between != "" && strings.Trim(between, "-") == "":
		default:
			return false
		}
	}
}

func isTag(s string) bool {
	if s == "" || len(s) > maxTag || s[0] == '.' || s[0] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '.' || c == '-') {
			return false
		}
	}
	return true
}

// String returns the name in full, by which the store knows it.
func (r Reference) String() string {
	s := r.Repository
	if r.Registry != "" {
		s = r.Registry + "/" + s
	}
	if r.Digest != "" {
		return s + "@" + r.Digest
	}
	return s + ":" + r.Tag
}

// Host returns the registry's host without its port.
func (r Reference) Host() netname.Host {
	host, _, found := strings.Cut(r.Registry, ":")
	if !found {
		host = r.Registry
	}
	return netname.Host(host)
}

// place says the registry in the flags of a credential's conditions.
func (r Reference) place() string {
	host, port, found := strings.Cut(r.Registry, ":")
	if !found {
		return "--host " + host
	}
	return "--host " + host + " --port " + port
}

// hexOf returns the digits of a canonical SHA-256 digest. No other algorithm is spoken here.
func hexOf(digest string) (string, bool) {
	hex, ok := strings.CutPrefix(digest, "sha256:")
	return hex, ok && len(hex) == 64 && isHex(hex)
}

func isHex(s string) bool { return s != "" && strings.Trim(s, "0123456789abcdef") == "" }
