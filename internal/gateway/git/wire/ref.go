package wire

import "strings"

// maxRef is the longest name of a ref that is accepted: a file system's limit of a path.
const maxRef = 4095

// ValidRef reports whether a name is a full ref as git-check-ref-format(1) has it, below refs/.
func ValidRef(name string) bool {
	if len(name) > maxRef || !strings.HasPrefix(name, "refs/") || strings.HasSuffix(name, ".") ||
		strings.Contains(name, "..") || strings.Contains(name, "@{") {
		return false
	}
	if strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f || strings.ContainsRune(" ~^:?*[\\", r) }) {
		return false
	}
	parts := strings.Split(name, "/")
	for _, part := range parts {
		if part == "" || part[0] == '.' || strings.HasSuffix(part, ".lock") {
			return false
		}
	}
	return len(parts) > 1
}
