package workspace

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxPath is PATH_MAX without its end mark: the kernel takes no longer path, and neither do people's tools.
const maxPath = 4095

// maxDepth bounds the components of a path. Real trees stay below 50; judging a path costs time in proportion to its depth.
const maxDepth = 256

// maxName is NAME_MAX of every file system in use.
const maxName = 255

// Name is a path below the workspace, or a symlink's target: bytes, not text. It is printed with everything unprintable escaped.
type Name string

// String returns the name as people may see it: unchanged if all of it is printable and unambiguous, else quoted as in Go, so that it is inert on a terminal.
func (n Name) String() string {
	quote := n == "" || n[0] == '"' || n[0] == ' ' || n[len(n)-1] == ' '
	for _, r := range string(n) {
		if r == utf8.RuneError || r == '\\' || !unicode.IsPrint(r) {
			quote = true
			break
		}
	}
	if quote {
		return strconv.Quote(string(n))
	}
	return string(n)
}

// MarshalText encodes the bytes reversibly in printable UTF-8: a percent sign, and every byte that is not part of a printable character, becomes %XX.
func (n Name) MarshalText() ([]byte, error) {
	const hex = "0123456789ABCDEF"
	out := make([]byte, 0, len(n))
	for rest := string(n); rest != ""; {
		r, size := utf8.DecodeRuneInString(rest)
		if (r == utf8.RuneError && size == 1) || r == '%' || !unicode.IsPrint(r) {
			for _, b := range []byte(rest[:size]) {
				out = append(out, '%', hex[b>>4], hex[b&15])
			}
		} else {
			out = append(out, rest[:size]...)
		}
		rest = rest[size:]
	}
	return out, nil
}

// UnmarshalText accepts exactly what MarshalText makes, so that two different texts never mean one name.
func (n *Name) UnmarshalText(text []byte) error {
	s := string(text)
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			out = append(out, s[i])
			continue
		}
		if i+2 >= len(s) {
			return errors.New("a name ends inside an escape")
		}
		b, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
		if err != nil {
			return fmt.Errorf("a name holds a bad escape %q", s[i:i+3])
		}
		out = append(out, byte(b))
		i += 2
	}
	again, _ := Name(out).MarshalText() // never fails
	if string(again) != s {
		return fmt.Errorf("name %.60q is not in its one encoding", s)
	}
	*n = Name(out)
	return nil
}

// validate accepts relative paths of plain components only: no empty one, no dot, no dot-dot, no NUL.
func (n Name) validate() error {
	if n == "" || n.tooLong() {
		return fmt.Errorf("a path of %d bytes with %d separators", len(n), strings.Count(string(n), "/"))
	}
	for part := range strings.SplitSeq(string(n), "/") {
		if part == "" || part == "." || part == ".." || len(part) > maxName || strings.ContainsRune(part, 0) {
			return fmt.Errorf("path %.80q leaves the workspace or is not canonical", string(n))
		}
	}
	return nil
}

// tooLong says that a path is beyond what is collected.
func (n Name) tooLong() bool { return len(n) > maxPath || strings.Count(string(n), "/") >= maxDepth }

func (n Name) validateTarget() error {
	if n == "" || len(n) > maxPath || strings.ContainsRune(string(n), 0) {
		return fmt.Errorf("symlink target %.80q cannot exist", string(n))
	}
	return nil
}

// split returns the parent ("" for the workspace itself) and the last component.
func (n Name) split() (Name, string) {
	i := strings.LastIndexByte(string(n), '/')
	if i < 0 {
		return "", string(n)
	}
	return n[:i], string(n[i+1:])
}

// join appends one component.
func (n Name) join(part string) Name {
	if n == "" {
		return Name(part)
	}
	return n + "/" + Name(part)
}

// contains says whether other is n or lies below it. The empty name contains all.
func (n Name) contains(other Name) bool {
	return n == "" || n == other || strings.HasPrefix(string(other), string(n)+"/")
}

// compareNames orders paths so that a directory comes before everything in it, and all in it before its next sibling.
func compareNames(a, b Name) int {
	for i := 0; i < len(a) && i < len(b); i++ {
		x, y := a[i], b[i]
		if x == y {
			continue
		}
		if x == '/' {
			return -1
		}
		if y == '/' {
			return 1
		}
		return int(x) - int(y)
	}
	return len(a) - len(b)
}
