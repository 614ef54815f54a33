package policy

import (
	"slices"
	"strings"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Level is how strong the wall is between a sandbox and the machine. The zero value is none that was asked for; greater is stronger.
type Level uint8

// The levels.
const (
	Container Level = iota + 1 // the host's kernel, behind namespaces and filters
	GVisor                     // a kernel of its own, in Go, behind the same
)

// Levels lists the levels of this version, the weakest first.
func Levels() []Level { return []Level{Container, GVisor} }

// String names the level as policy files do.
func (l Level) String() string { return name([]string{"none", "container", "gvisor"}, uint8(l)) }

// ParseLevel reads a level's name.
func ParseLevel(s string) (Level, error) {
	var names []string
	for _, l := range Levels() {
		if s == l.String() {
			return l, nil
		}
		names = append(names, l.String())
	}
	hint := "write one of: " + strings.Join(names, ", ")
	if slices.Contains([]string{"vm", "vm-emulated", "pod"}, s) {
		return 0, fault.New(fault.Unsupported, "this version of Cofferdam has no isolation level %s", s).WithHint("%s", hint)
	}
	return 0, fault.New(fault.Invalid, "unknown isolation level %.40q", s).WithHint("%s", hint)
}
