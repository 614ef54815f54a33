package forge

import (
	"strings"
	"unicode/utf8"
)

const (
	maxTitle     = 250    // characters: GitLab and Gitea take 255, GitHub 256, Azure DevOps 400
	maxBody      = 60_000 // characters: GitHub takes 65,536
	maxBodyAzure = 4_000  // Azure DevOps takes no more
)

// shown reports whether a text can be shown in one line: no control characters, nothing that turns the direction of writing.
func shown(s string) bool { return utf8.ValidString(s) && !strings.ContainsFunc(s, unshown) }

func unshown(r rune) bool {
	return r < ' ' || 0x7f <= r && r < 0xa0 || '\u202a' <= r && r <= '\u202e' || '\u2066' <= r && r <= '\u2069' || r == '\u2028' || r == '\u2029' || r == '\ufeff'
}

// title makes a title of a text that a program inside may have written.
func title(s, base string) string {
	s = strings.Map(func(r rune) rune {
		if unshown(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\ufffd"))
	if s = cut(strings.Join(strings.Fields(s), " "), maxTitle); s == "" {
		return "Changes for " + cut(base, maxTitle/2)
	}
	return s
}

// text makes a body of a text that a program inside may have written.
func text(s string) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\ufffd"), "\r\n", "\n")
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\r' || r == '\u2028' || r == '\u2029':
			return '\n'
		case r != '\n' && r != '\t' && unshown(r):
			return -1
		}
		return r
	}, s)
	return cut(s, maxBody)
}

// cut shortens a text to so many characters, and shows that it did.
func cut(s string, characters int) string {
	if utf8.RuneCountInString(s) <= characters {
		return s
	}
	return string([]rune(s)[:characters-1]) + "…"
}

// uncommanded makes a body harmless for GitLab, which takes each line that begins with a slash for a command of the person who opens the merge
// request (/merge, /approve, /assign): that would be a program inside acting with the credential's rights. A backslash makes it text, in Markdown too.
// Source: GitLab, doc/user/project/quick_actions.md.
func uncommanded(s string) string {
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		if rest := strings.TrimLeft(line, " \t\u00a0\u3000"); strings.HasPrefix(rest, "/") {
			lines[i] = line[:len(line)-len(rest)] + `\` + rest
		}
	}
	return strings.Join(lines, "\n")
}
