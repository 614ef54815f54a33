package web

import (
	"fmt"
	"html/template"
	"strings"
	"unicode"
	"unicode/utf8"
)

// inertShort is how much of a text from inside is shown before it is asked for, inertMost how much of it at all.
const (
	inertShort = 160
	inertMost  = 16 << 10
)

// hidden says whether a character changes how others are shown, or is not seen at all.
func hidden(r rune) bool {
	if r == utf8.RuneError || unicode.In(r, unicode.Cc, unicode.Cf, unicode.Co, unicode.Cs, unicode.Zl, unicode.Zp) {
		return true
	}
	switch r { // letters and marks that look like nothing
	case 0x00a0, 0x034f, 0x115f, 0x1160, 0x17b4, 0x17b5, 0x180b, 0x180c, 0x180d, 0x180f, 0x2800, 0x3164, 0xffa0:
		return true
	}
	return r >= 0xfe00 && r <= 0xfe0f || r >= 0xe0100 && r <= 0xe01ef || r != ' ' && unicode.Is(unicode.Zs, r) || !unicode.IsGraphic(r)
}

// inert shows a text that may have been written inside a sandbox: escaped, in a fixed-width face, from left to right whatever it says, each character
// that hides or moves others replaced by its number, the length bounded with the rest on demand.
func inert(s string) template.HTML {
	runes := utf8.RuneCountInString(s)
	if runes <= inertShort {
		return template.HTML(`<bdi class="inert" dir="ltr">` + inertEscape(s, false) + `</bdi>`) //nolint:gosec // inertEscape escapes
	}
	whole := cut(s, inertMost)
	more := ""
	if len(whole) < len(s) {
		more = fmt.Sprintf("\n… and %d more bytes", len(s)-len(whole))
	}
	return template.HTML(`<details class="inert-more"><summary><bdi class="inert" dir="ltr">` + inertEscape(firstRunes(s, inertShort), false) + `…</bdi></summary><bdi class="inert" dir="ltr">` + //nolint:gosec // as above
		inertEscape(whole, false) + more + `</bdi></details>`)
}

// inertLine is inert where no rest can be shown on demand: in what opens something itself, which has the whole.
func inertLine(s string) template.HTML {
	more := ""
	if utf8.RuneCountInString(s) > inertShort {
		s, more = firstRunes(s, inertShort), "…"
	}
	return template.HTML(`<bdi class="inert" dir="ltr">` + inertEscape(s, false) + more + `</bdi>`) //nolint:gosec // inertEscape escapes
}

// hides says whether a text of several lines has characters that inert would make visible.
func hides(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r != '\n' && r != '\t' && hidden(r) })
}

// inertBlock is inert for a text of several lines: line feeds and tabs are kept.
func inertBlock(s string) template.HTML {
	return template.HTML(inertEscape(s, true)) //nolint:gosec // inertEscape escapes
}

// plain is inert where no markup can be: in a title or a label.
func plain(s string) string {
	var b strings.Builder
	for _, r := range cut(s, 400) {
		if hidden(r) {
			fmt.Fprintf(&b, "<U+%04X>", r)
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

func inertEscape(s string, lines bool) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `<span class="ctl">0x%02X</span>`, s[i])
		case lines && (r == '\n' || r == '\t'):
			b.WriteRune(r)
		case hidden(r):
			fmt.Fprintf(&b, `<span class="ctl">U+%04X</span>`, r)
		default:
			b.WriteString(template.HTMLEscapeString(string(r)))
		}
		i += size
	}
	return b.String()
}

// cut returns at most n bytes of s, whole characters.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

func firstRunes(s string, n int) string {
	for i := range s {
		if n == 0 {
			return s[:i]
		}
		n--
	}
	return s
}
