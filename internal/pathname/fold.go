// Package pathname (WORDS) says which names of files are the same to a file system that ignores letter case.
package pathname

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Fold splits a path and folds each segment.
func Fold(path string) []string {
	segments := strings.Split(path, "/")
	for i := range segments {
		segments[i] = FoldSegment(segments[i])
	}
	return segments
}

// FoldSegment ignores what git's protectHFS and protectNTFS know that file systems ignore: letter case, some invisible characters (HFS+), what
// follows a colon, dots and spaces at the end (NTFS). It knows neither NTFS's short names nor the two spellings of letters with marks.
func FoldSegment(s string) string {
	if isFolded(s) {
		return s
	}
	s = strings.Map(func(r rune) rune {
		if IgnoredByHFS(r) {
			return -1
		}
		return foldRune(r)
	}, s)
	if head, _, found := strings.Cut(s, ":"); found && head != "" {
		s = head
	}
	if cut := strings.TrimRight(s, ". "); cut != "" {
		s = cut
	}
	return s
}

// FoldCase ignores letter case only.
func FoldCase(s string) string { return strings.Map(foldRune, s) }

// isFolded reports whether a segment is in its folded form already, as most are.
func isFolded(s string) bool {
	for i := range len(s) {
		if b := s[i]; b >= utf8.RuneSelf || b >= 'A' && b <= 'Z' || b == ':' {
			return false
		}
	}
	return s == "" || s[len(s)-1] != '.' && s[len(s)-1] != ' '
}

// IgnoredByHFS says whether HFS+ ignores a character in names. It follows next_hfs_char in git's utf8.c.
func IgnoredByHFS(r rune) bool {
	return r >= 0x200c && r <= 0x200f || r >= 0x202a && r <= 0x202e || r >= 0x206a && r <= 0x206f || r == 0xfeff
}

// foldRune maps every letter to the smallest of those that differ from it only in case, then to lower case; K (Kelvin) and ſ (long s) included.
func foldRune(r rune) rune {
	least := r
	for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
		least = min(least, f)
	}
	return unicode.ToLower(least)
}
