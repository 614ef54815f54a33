package netname

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// maxPath bounds a path; servers refuse request lines beyond about this much.
const maxPath = 8 << 10

// Path is the path of a URL in canonical form: it begins with a slash, has no empty segment but the last and no dot segment, and each byte has
// one spelling: percent-encoded if it cannot stand in a path, with upper-case digits, and as itself otherwise. An encoded slash stays encoded,
// because servers differ about what it means; Readings gives both meanings. An encoded plus stays encoded too, since S3 takes a plain one for a space;
// patterns take the two for the same. The zero value is no path.
// Only NormalisePath makes one.
type Path string

// NormalisePath reads a path as it comes off the wire, without a query. Encodings are undone once. What two servers could read in two ways is
// an error: dot segments, empty segments, backslashes, path parameters, encodings of encodings, control characters, broken UTF-8.
func NormalisePath(raw string) (Path, error) {
	switch {
	case !strings.HasPrefix(raw, "/"):
		return "", fmt.Errorf("the path does not begin with a slash")
	case len(raw) > maxPath:
		return "", fmt.Errorf("a path of %d bytes is longer than %d", len(raw), maxPath)
	}
	var out strings.Builder
	decoded := make([]byte, 0, len(raw)) // an encoded slash as a slash
	for i := 0; i < len(raw); i++ {
		c, encoded := raw[i], raw[i] == '%'
		if encoded {
			var ok bool
			if c, ok = unhex(raw[i+1:]); !ok {
				return "", fmt.Errorf("a percent sign is not followed by two hexadecimal digits")
			}
			i += 2
		}
		if err := checkPathByte(c, encoded); err != nil {
			return "", err
		}
		decoded = append(decoded, c)
		if plainInPath(c) && !(c == '+' && encoded) || c == '/' && !encoded {
			out.WriteByte(c)
		} else {
			fmt.Fprintf(&out, "%%%02X", c)
		}
	}
	if rest := out.String(); strings.Contains(rest, "%25") {
		for _, after := range strings.Split(rest, "%25")[1:] {
			if _, twice := unhex(after); twice {
				return "", fmt.Errorf("a part of the path is percent-encoded twice")
			}
		}
	}
	if err := checkSegments(decoded); err != nil {
		return "", err
	}
	return Path(out.String()), nil
}

// checkPathByte refuses bytes that servers read in different ways.
func checkPathByte(c byte, encoded bool) error {
	switch {
	case c < ' ' || c == 0x7f:
		return fmt.Errorf("control character %q in the path", c)
	case c == '\\':
		return fmt.Errorf("a backslash in the path, which some servers take for a slash")
	case !encoded && c == ';':
		return fmt.Errorf("a path parameter (;), which some servers cut off")
	case !encoded && (c == ' ' || c == '?' || c == '#' || c >= utf8.RuneSelf):
		return fmt.Errorf("character %q in the path is not percent-encoded", c)
	}
	return nil
}

// checkSegments looks at the path as the most eager server would, every encoding undone.
func checkSegments(decoded []byte) error {
	if !utf8.Valid(decoded) {
		return fmt.Errorf("the path is not UTF-8")
	}
	segments := strings.Split(string(decoded[1:]), "/")
	for i, s := range segments {
		s, _, _ = strings.Cut(s, ";")
		switch {
		case s == "." || s == "..":
			return fmt.Errorf("a dot segment in the path")
		case s == "" && i < len(segments)-1:
			return fmt.Errorf("an empty segment in the path")
		}
	}
	return nil
}

// unhex reads two hexadecimal digits at the start of s.
func unhex(s string) (byte, bool) {
	if len(s) < 2 {
		return 0, false
	}
	hi, lo := hexDigit(s[0]), hexDigit(s[1])
	return hi<<4 | lo&15, hi < 16 && lo < 16
}

func hexDigit(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 255
}

// plainInPath says whether a byte stands for itself in a canonical path: pchar of RFC 3986 §3.3 without the semicolon.
func plainInPath(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~!$&'()*+,=:@", c) >= 0
}

// String returns the path.
func (p Path) String() string { return string(p) }

// Readings returns the path as it stands and, if it has encoded slashes, as a server reads it that takes them for slashes.
func (p Path) Readings() []string {
	if !strings.Contains(string(p), encodedSlash) {
		return []string{string(p)}
	}
	return []string{string(p), strings.ReplaceAll(string(p), encodedSlash, "/")}
}

const encodedSlash = "%2F"

// PathPattern names one path exactly or, if it ends in a slash or an encoded slash, everything that begins with it. The zero value matches nothing.
type PathPattern string

// ParsePathPattern reads a pattern where a person writes it: in canonical form. The error says what to write instead.
func ParsePathPattern(s string) (PathPattern, error) {
	p, err := NormalisePath(s)
	switch {
	case err != nil && strings.ContainsAny(s, "*?"):
		return "", fault.New(fault.Invalid, "path %s has a wildcard or a query", quote(s)).WithHint("write a path that ends in a slash for all below it, without a query")
	case err != nil:
		return "", fault.New(fault.Invalid, "path %s: %v", quote(s), err).WithHint("write it as in /repos/acme/ for all below it, or /repos/acme/site for that alone")
	case string(p) != s:
		return "", fault.New(fault.Invalid, "path %s is not in canonical form", quote(s)).WithHint("write %s", p)
	case strings.Contains(s, "*"):
		return "", fault.New(fault.Invalid, "path %s has a star, which stands for itself", quote(s)).WithHint("write a path that ends in a slash for all below it")
	}
	return PathPattern(p), nil
}

// Match reports whether the pattern names one reading of a path.
func (p PathPattern) Match(reading string) bool {
	if p == "" {
		return false
	}
	reading, own := plainPlus(reading), plainPlus(string(p))
	return reading == own || p.prefix() && strings.HasPrefix(reading, own)
}

// plainPlus undoes the one encoding that a canonical path may have or not have.
func plainPlus(s string) string { return strings.ReplaceAll(s, "%2B", "+") }

// Covers reports whether every path that q names is named by p too.
func (p PathPattern) Covers(q PathPattern) bool {
	return q != "" && p.Match(string(q))
}

func (p PathPattern) prefix() bool {
	return strings.HasSuffix(string(p), "/") || strings.HasSuffix(string(p), encodedSlash)
}

// String writes the pattern as ParsePathPattern reads it.
func (p PathPattern) String() string { return string(p) }
