package audit

import (
	"fmt"
	"slices"
	"strconv"
	"unicode"
	"unicode/utf8"
)

// maxList bounds how many entries of a list (Command, Weaker) are kept.
const maxList = 64

// Clean returns s as it is stored in a record and as it may be shown on a terminal: valid UTF-8, at most MaxText bytes, and nothing but
// printable characters. Whatever is not printable (escape sequences, line breaks, direction marks, invalid bytes) stands there
// escaped as Go writes it, such as \x1b or \u202e; a text that was too long ends in "…". Cleaning a clean text changes nothing.
func Clean(s string) string {
	if isClean(s) {
		return s
	}
	const more = "…"
	out := make([]byte, 0, min(len(s)+16, MaxText+16))
	room := 0 // how much of out still leaves room for the mark
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		out = appendVisible(out, r, s[:n])
		if len(out) > MaxText {
			return string(append(out[:room], more...))
		}
		if len(out) <= MaxText-len(more) {
			room = len(out)
		}
		s = s[n:]
	}
	return string(out)
}

func isClean(s string) bool {
	if len(s) > MaxText {
		return false
	}
	ascii := 0
	for ascii < len(s) && s[ascii] >= ' ' && s[ascii] < 0x7f {
		ascii++
	}
	if s = s[ascii:]; !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if !visible(r) {
			return false
		}
	}
	return true
}

// visible is unicode.IsPrint with a short way for ASCII.
func visible(r rune) bool {
	if r < utf8.RuneSelf {
		return r >= ' ' && r != 0x7f
	}
	return unicode.IsPrint(r)
}

func appendVisible(out []byte, r rune, raw string) []byte {
	switch {
	case r == utf8.RuneError && len(raw) == 1:
		return fmt.Appendf(out, `\x%02x`, raw[0])
	case visible(r):
		return append(out, raw...)
	}
	quoted := strconv.QuoteRune(r)
	return append(out, quoted[1:len(quoted)-1]...)
}

// clean makes every text of the event inert. The lists are copied, not changed in place.
func (e *Event) clean() {
	for _, text := range []*string{
		&e.Tenant, &e.Agent, &e.Principal, &e.Protocol, &e.Access, &e.Host, &e.Address, &e.Method, &e.Path, &e.Verdict, &e.Rule,
		&e.Reason, &e.Repository, &e.Process, &e.Credential, &e.Grant, &e.Type, &e.Digest, &e.Error, &e.Isolation, &e.Detail, &e.Prev, &e.Hash, (*string)(&e.Kind), (*string)(&e.Run),
	} {
		*text = Clean(*text)
	}
	e.Weaker = cleanList(e.Weaker)
	e.Refs = cleanList(e.Refs)
	e.Command = cleanList(e.Command)
	e.Erased = slices.Clone(e.Erased[:min(len(e.Erased), maxList)])
	for i := range e.Erased {
		for _, text := range []*string{&e.Erased[i].What, &e.Erased[i].How, (*string)(&e.Erased[i].Checked), &e.Erased[i].Problem} {
			*text = Clean(*text)
		}
	}
}

func cleanList(list []string) []string {
	if len(list) == 0 {
		return nil
	}
	out := make([]string, 0, min(len(list), maxList+1))
	for i, s := range list {
		if i == maxList && len(list) > maxList+1 {
			return append(out, fmt.Sprintf("… %d more", len(list)-i))
		}
		out = append(out, Clean(s))
	}
	return out
}
