package password

import (
	_ "embed" // for the list
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// The lengths of a password. NIST SP 800-63B asks for at least 8 characters, at least 64 allowed, and no rules about kinds of characters.
const (
	MinCharacters = 8
	MaxBytes      = 1024
	minDistinct   = 4 // aaaaaaaa, abababab
	minOwn        = 5 // what must be left without the words that everybody knows of the person
	minWord       = 3
)

//go:embed common.txt
var commonText string

var common = sync.OnceValue(func() map[string]bool {
	words := map[string]bool{}
	for line := range strings.Lines(commonText) {
		if word := strings.TrimSpace(line); word != "" && !strings.HasPrefix(word, "#") {
			words[word] = true
		}
	}
	return words
})

// Check refuses a password that is too short or long, that is among the commonest, or that is hardly more than what is known of the person: about
// is their email address, name, and whatever else an attacker tries first.
func Check(password string, about ...string) error {
	if !utf8.ValidString(password) {
		return fault.New(fault.Invalid, "the password is not valid text")
	}
	if len(password) > MaxBytes {
		return fault.New(fault.Invalid, "the password is longer than %d bytes", MaxBytes)
	}
	// Counted as it is hashed: characters, in the form that all keyboards agree on.
	plain := norm.NFKC.String(password)
	if utf8.RuneCountInString(plain) < MinCharacters {
		return fault.New(fault.Invalid, "the password is shorter than %d characters", MinCharacters).WithHint("use several words")
	}
	folded := strings.ToLower(plain)
	bare := strings.TrimFunc(folded, func(r rune) bool { return !unicode.IsLetter(r) })
	switch {
	case distinct(folded) < minDistinct, sequence(folded):
		return fault.New(fault.Invalid, "the password is a simple pattern").WithHint("use several words")
	case common()[folded], common()[bare]:
		return fault.New(fault.Invalid, "the password is one of the most common ones").WithHint("use several words")
	case utf8.RuneCountInString(without(folded, words(append(about, "cofferdam")))) < minOwn:
		return fault.New(fault.Invalid, "the password is made of your name, your email address or this program's name").WithHint("use several words that nobody connects with you")
	}
	return nil
}

func distinct(s string) int {
	seen := map[rune]bool{}
	for _, r := range s {
		seen[r] = true
	}
	return len(seen)
}

// sequence reports whether each character follows the one before, up or down, as in 23456789.
func sequence(s string) bool {
	runes := []rune(s)
	for _, step := range []rune{1, -1} {
		all := true
		for i := 1; i < len(runes); i++ {
			all = all && runes[i]-runes[i-1] == step
		}
		if all {
			return true
		}
	}
	return false
}

// words splits what is known of a person into what passwords are made of.
func words(about []string) []string {
	var out []string
	for _, text := range about {
		for _, word := range strings.FieldsFunc(strings.ToLower(norm.NFKC.String(text)), func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) }) {
			if utf8.RuneCountInString(word) >= minWord {
				out = append(out, word)
			}
		}
	}
	return out
}

// without removes words, and what people put around them to please a rule.
func without(s string, words []string) string {
	for _, word := range words {
		s = strings.ReplaceAll(s, word, "")
	}
	return strings.TrimFunc(s, func(r rune) bool { return !unicode.IsLetter(r) })
}
