package policy

import (
	"cmp"
	"slices"
	"strings"
	"unicode"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Level is how strong the wall is between a sandbox and the machine. The zero value is none that was asked for; greater is stronger.
//
// VMEmulated stands below GVisor: those who write QEMU do not call its emulation a boundary (its docs/system/security.rst), so what holds there is the jail
// around it, which is made of the host's namespaces and filters.
type Level uint8

// The levels.
const (
	Container  Level = iota + 1 // the host's kernel, behind namespaces and filters
	VMEmulated                  // a kernel of its own on a processor that a program imitates, in a jail
	GVisor                      // a kernel of its own, in Go, behind the same namespaces
	VM                          // a kernel of its own on the processor's own virtualisation, in a jail
)

// Levels lists the levels of this version, the weakest first.
func Levels() []Level { return []Level{Container, VMEmulated, GVisor, VM} }

// String names the level as policy files do.
func (l Level) String() string {
	return name([]string{"none", "container", "vm-emulated", "gvisor", "vm"}, uint8(l))
}

// HasOwnMachine says whether the sandbox is a virtual machine: its root is an image, and nothing is shared with the host while it runs.
func (l Level) HasOwnMachine() bool { return l == VM || l == VMEmulated }

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
	switch s {
	case "pod":
		return 0, fault.New(fault.Unsupported, "this version of Cofferdam has no isolation level %s", s).WithHint("%s", hint)
	case "kata": // docs/isolation.md has the sources
		return 0, fault.New(fault.Unsupported, "there is no isolation level %s: since version 2.0 Kata Containers has no command-line runtime that could be started here, only containerd's and CRI-O's own interface", s).
			WithHint("for a kernel of its own on hardware virtualisation write vm; in a Kubernetes cluster use Kata by a RuntimeClass")
	}
	return 0, fault.New(fault.Invalid, "unknown isolation level %.40q", s).WithHint("%s", hint)
}

// Platform is how gVisor's kernel has the programs inside run. The zero value is none that was asked for.
type Platform uint8

// The platforms.
const (
	Systrap Platform = iota + 1 // as processes of the host that cannot make a system call of it; on every machine
	KVM                         // on the processor's own virtualisation
)

func platformNames() []string { return []string{"none", "systrap", "kvm"} }

// Platforms lists the platforms, the default first.
func Platforms() []Platform { return []Platform{Systrap, KVM} }

// String names the platform as policy files do.
func (p Platform) String() string { return name(platformNames(), uint8(p)) }

// ParsePlatform reads a platform's name.
func ParsePlatform(s string) (Platform, error) {
	for _, p := range Platforms() {
		if s == p.String() {
			return p, nil
		}
	}
	return 0, fault.New(fault.Invalid, "unknown platform of gVisor's %.40q", s).WithHint("write one of: %s", strings.Join(platformNames()[1:], ", "))
}

// Isolation says how a sandbox is walled in.
type Isolation struct {
	Level    Level    // zero: not stated
	Minimum  Level    // what nobody may go below; zero: not stated
	Platform Platform // of level gvisor; zero: not stated
	Image    string   // reference of the image that is its root file system; empty: not stated
}

// or returns what i states, and what rest states where i does not. A minimum only rises. A platform goes with the level that it was stated for.
func (i Isolation) or(rest Isolation) Isolation {
	if i.Level != 0 && i.Level != GVisor {
		rest.Platform = 0
	}
	return Isolation{
		Level: cmp.Or(i.Level, rest.Level), Minimum: max(i.Minimum, rest.Minimum), Platform: cmp.Or(i.Platform, rest.Platform), Image: cmp.Or(i.Image, rest.Image),
	}
}

// level is the one that the sandbox is to have.
func (i Isolation) level() Level { return max(i.Level, i.Minimum, Container) }

// checkPlatform refuses a platform at a level that has none.
func (i Isolation) checkPlatform() error {
	if i.Platform != 0 && i.level() != GVisor {
		return fault.New(fault.Invalid, "the platform %s is one of level gvisor's, and the isolation level is %s", i.Platform, i.level()).
			WithHint("choose that level too (in a policy level: gvisor, as a flag --isolation gvisor), or leave the platform out")
	}
	return nil
}

// check refuses a level below the minimum.
func (i Isolation) check() error {
	if i.Level != 0 && i.Level < i.Minimum {
		return fault.New(fault.Invalid, "isolation level %s is weaker than the minimum, %s", i.Level, i.Minimum).WithHint("write %s or a stronger one, or lower the minimum", i.Minimum)
	}
	return nil
}

// maxImage bounds a reference: a host of 253 bytes, a port, a repository of 255 and a digest of 71 fit (OCI distribution specification 1.1).
const maxImage = 640

// ParseImage reads a reference to an image, as far as every kind of reference goes; what it names is for those to say who have images.
func ParseImage(s string) (string, error) {
	if s == "" || len(s) > maxImage || strings.ContainsFunc(s, func(r rune) bool { return r > unicode.MaxASCII || !unicode.IsPrint(r) || r == ' ' }) || slices.Contains([]string{"-", "/", "."}, s[:1]) {
		return "", fault.New(fault.Invalid, "%.60q is not a reference to an image", s).WithHint("write it as in: registry.example.org/team/tools:1.2, or with @sha256:… for one that cannot change")
	}
	return s, nil
}
