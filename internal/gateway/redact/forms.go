// Package redact (GATEWAY) finds given texts in streams of bytes, in the encodings in which programs write them, and puts something of the
// same length in their place, so that no length and no frame around them has to change.
package redact

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"net/url"
	"strings"
	"unicode/utf8"
)

const (
	// MinLength is the shortest text that can be told from other text: eight given bytes turn up by chance once in 2^64.
	MinLength = 8
	// maxSpelled bounds what is looked for also with each byte spelled out.
	maxSpelled = 512
)

// Entry is a text to find.
type Entry struct {
	Value []byte
	// Instead takes its place where it has the same length, in the same encoding; other places are filled.
	Instead []byte
}

// pattern is one form of an entry.
type pattern struct {
	text    []byte
	instead []byte // as long as text
	entry   int
}

// patterns lists the forms of an entry, each once.
func patterns(e Entry, entry int) []pattern {
	var all []pattern
	seen := map[string]bool{}
	other := forms(e.Instead)
	for name, form := range forms(e.Value) {
		if len(form) < MinLength || seen[string(form)] {
			continue
		}
		seen[string(form)] = true
		p := pattern{text: form, instead: other[name], entry: entry}
		if len(p.instead) != len(form) {
			p.instead = bytes.Repeat([]byte{filler(name)}, len(form))
		}
		all = append(all, p)
	}
	return all
}

// filler is a byte that can stand where a form stood without breaking what is around it.
func filler(form string) byte {
	switch {
	case strings.HasPrefix(form, "hex"):
		return '0'
	case strings.HasPrefix(form, "base64"):
		return 'x'
	}
	return '*'
}

// forms returns the encodings of a text by name.
func forms(v []byte) map[string][]byte {
	if len(v) == 0 {
		return nil
	}
	s := string(v)
	all := map[string][]byte{
		"raw": v, "hex": []byte(hex.EncodeToString(v)), "hex upper": []byte(strings.ToUpper(hex.EncodeToString(v))),
		"query": []byte(url.QueryEscape(s)), "path": []byte(url.PathEscape(s)), "html": []byte(html.EscapeString(s)),
	}
	all["query lower"], all["path lower"] = lowerEscapes(all["query"]), lowerEscapes(all["path"])
	for offset := range 3 {
		for name, encoding := range map[string]*base64.Encoding{"base64": base64.RawStdEncoding, "base64url": base64.RawURLEncoding} {
			all[fmt.Sprint(name, offset)] = core(encoding, v, offset)
		}
	}
	if utf8.Valid(v) {
		all["json"], all["json html"] = quoted(s, false), quoted(s, true)
		all["json slash"] = bytes.ReplaceAll(all["json"], []byte("/"), []byte(`\/`))
	}
	if len(v) <= maxSpelled {
		for _, format := range []string{"%%%02x", "%%%02X", `\u%04x`, `\u%04X`, `\x%02x`} {
			var b bytes.Buffer
			for _, c := range v {
				fmt.Fprintf(&b, format, c)
			}
			all["spelled "+format] = b.Bytes()
		}
	}
	return all
}

// core is what of a text's base64 form does not depend on what stands around it, where offset bytes of a group of three stand before it.
func core(encoding *base64.Encoding, v []byte, offset int) []byte {
	padded := append(make([]byte, offset), v...)
	text := []byte(encoding.EncodeToString(padded))
	first := []int{0, 2, 3}[offset]
	last := len(padded) * 8 / 6
	return text[min(first, last):last]
}

func quoted(s string, escapeHTML bool) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(escapeHTML)
	_ = e.Encode(s) // strings always encode
	return bytes.Trim(b.Bytes(), "\n")[1 : b.Len()-2]
}

// lowerEscapes writes the digits of percent-encodings in lower case.
func lowerEscapes(b []byte) []byte {
	out := bytes.Clone(b)
	for i := 0; i+2 < len(out); i++ {
		if out[i] == '%' {
			copy(out[i+1:], bytes.ToLower(out[i+1:i+3]))
			i += 2
		}
	}
	return out
}
