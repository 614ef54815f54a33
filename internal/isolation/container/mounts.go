package container

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// mountTable lists the mount points of this machine.
type mountTable []string

func readMounts() (mountTable, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	var t mountTable
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 4 { // proc_pid_mountinfo(5): the mount point is the fifth
			t = append(t, filepath.Clean(unescape(fields[4])))
		}
	}
	return t, nil
}

// unescape undoes the octal escapes of mountinfo for space, tab, newline and backslash.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// below says whether anything is mounted below a directory, not counting the directory itself.
func (t mountTable) below(dir string) bool {
	for _, point := range t {
		if rest, ok := strings.CutPrefix(point, strings.TrimSuffix(dir, "/")+"/"); ok && rest != "" {
			return true
		}
	}
	return false
}

// system returns the parts of the host's system that lie on file systems of their own, to be laid over the root.
func (t mountTable) system() []layer {
	// Directories that an installation may keep on file systems of their own.
	parts := map[string]bool{"/usr": true, "/opt": true, "/var": true, "/usr/local": true, "/nix": true, "/gnu": true, "/var/lib": true, "/var/cache": true}
	var layers []layer
	for _, point := range t {
		if parts[point] {
			layers = append(layers, layer{Source: point, Target: point, Mode: "overlay", Host: true})
			delete(parts, point) // mounted over: the uppermost is what the path shows
		}
	}
	return layers
}
