package web

import (
	"errors"
	"strings"
)

// splitCommand reads a command line as people type it into arguments: separated by white space, which quotes and backslashes keep. Nothing is expanded:
// whoever wants a shell writes sh -c '…'.
func splitCommand(line string) ([]string, error) {
	var out []string
	var word strings.Builder
	in, quote, escaped := false, rune(0), false
	for _, r := range line {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			in, escaped = true, true
		case quote != 0:
			if r == quote {
				quote = 0
			} else {
				word.WriteRune(r)
			}
		case r == '\'' || r == '"':
			in, quote = true, r
		case r == ' ' || r == '\t' || r == '\n' || r == '\r':
			if in {
				out = append(out, word.String())
				word.Reset()
				in = false
			}
		default:
			in = true
			word.WriteRune(r)
		}
	}
	if quote != 0 {
		return nil, errors.New("a quote is not closed")
	}
	if escaped {
		return nil, errors.New("a backslash stands at the end")
	}
	if in {
		out = append(out, word.String())
	}
	return out, nil
}

// joinCommand writes arguments so that splitCommand reads the same again.
func joinCommand(args []string) string {
	out := make([]string, len(args))
	for i, a := range args {
		out[i] = a
		if a == "" || strings.ContainsAny(a, " \t\r\n'\"\\") {
			out[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return strings.Join(out, " ")
}

// readVariables reads NAME=value lines.
func readVariables(text string) (map[string]string, error) {
	out := map[string]string{}
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		if strings.TrimSpace(line) == "" {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if name = strings.TrimSpace(name); !ok || name == "" {
			return nil, errors.New("each line is NAME=value")
		}
		if _, twice := out[name]; twice {
			return nil, errors.New("a name comes twice")
		}
		out[name] = value
	}
	return out, nil
}
