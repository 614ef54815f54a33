package policy

import (
	"fmt"
	"path"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Mount shows a path of the host inside the sandbox. The zero value is unfit.
type Mount struct {
	Source string // host path, absolute and clean
	Target string // path inside, absolute and clean
	Mode   MountMode
}

// ParseMount reads the flag SOURCE:TARGET[:ro|rw]. A path that holds a colon can only be said in a policy file.
func ParseMount(flag string) (Mount, error) {
	parts := strings.Split(flag, ":")
	if len(parts) < 2 || len(parts) > 3 {
		return Mount{}, fault.New(fault.Invalid, "%.200q is no mount", flag).WithHint("write SOURCE:TARGET or SOURCE:TARGET:rw")
	}
	m := Mount{Source: parts[0], Target: parts[1]}
	if len(parts) == 3 {
		mode, err := ParseMountMode(parts[2])
		if err != nil {
			return Mount{}, err
		}
		m.Mode = mode
	}
	return m, m.check()
}

// String writes the mount as ParseMount reads it.
func (m Mount) String() string { return m.Source + ":" + m.Target + ":" + m.Mode.String() }

func (m Mount) check() error {
	if err := checkSource(m.Source); err != nil {
		return err
	}
	if err := checkTarget(m.Target); err != nil {
		return err
	}
	if m.Mode > ReadWrite {
		return fmt.Errorf("mount %s: no such mode", m.Target)
	}
	return nil
}

// kernelPaths are file systems of the kernel: shown from the host they would show the host's processes and devices, hidden inside they would break
// what masks them.
func kernelPaths() []string { return []string{"/proc", "/sys", "/dev"} }

func checkSource(p string) error {
	if err := checkAbsolute("source", p); err != nil {
		return err
	}
	if p == "/" {
		return fault.New(fault.Invalid, "source / would show the whole host").WithHint("name the folders that are needed")
	}
	for _, k := range kernelPaths() {
		if below(p, k) {
			return fault.New(fault.Invalid, "source %q belongs to the host's kernel", p).WithHint("leave it out: the sandbox has its own")
		}
	}
	return nil
}

func checkTarget(p string) error {
	if err := checkAbsolute("target", p); err != nil {
		return err
	}
	if p == "/" {
		return fault.New(fault.Invalid, "target / is the sandbox's own root").WithHint("name a folder below it")
	}
	for _, k := range kernelPaths() {
		if below(p, k) {
			return fault.New(fault.Invalid, "target %q belongs to the sandbox's kernel view", p).WithHint("name another folder, such as /mnt/data")
		}
	}
	return nil
}

// doubtful says what a person should know about a mount that is in order, or "".
func (m Mount) doubtful() string {
	switch {
	case strings.HasSuffix(m.Source, ".sock") || below(m.Source, "/run") || below(m.Source, "/var/run"):
		return "run-time sockets lie there: who can speak to one can often do what its owner can"
	case below(m.Source, "/etc") && m.Mode == ReadWrite, below(m.Source, "/boot") && m.Mode == ReadWrite:
		return "a program that can write there can take over the host"
	}
	return ""
}

func checkAbsolute(what, p string) error {
	switch {
	case !path.IsAbs(p):
		return fault.New(fault.Invalid, "%s %.200q is not absolute", what, p).WithHint("write an absolute path")
	case path.Clean(p) != p:
		return fault.New(fault.Invalid, "%s %.200q is not in canonical form", what, p).WithHint("write %q", path.Clean(p))
	}
	return checkPathBytes(what, p)
}

// checkInside accepts a path below the workspace: relative, clean, and leading nowhere else.
func checkInside(p string) error {
	switch {
	case p == "" || p == ".":
		return fault.New(fault.Invalid, "path %q does not lie below the workspace", p).WithHint("name a file or folder below the workspace")
	case path.IsAbs(p) || p == ".." || strings.HasPrefix(p, "../"):
		return fault.New(fault.Invalid, "path %.200q does not lie below the workspace", p).
			WithHint("write a path below the workspace, without a leading / or ..")
	case path.Clean(p) != p:
		return fault.New(fault.Invalid, "path %.200q is not in canonical form", p).WithHint("write %q", path.Clean(p))
	}
	return checkPathBytes("path", p)
}

func checkPathBytes(what, p string) error {
	if len(p) > 4095 { // Linux: PATH_MAX with its NUL
		return fault.New(fault.Invalid, "%s of %d bytes is longer than 4095", what, len(p)).WithHint("write a shorter path")
	}
	if !utf8.ValidString(p) || strings.ContainsFunc(p, unicode.IsControl) {
		return fault.New(fault.Invalid, "%s %.200q holds control characters", what, p).WithHint("rename the file or folder")
	}
	return nil
}

// below reports whether p is dir or lies below it; both are clean.
func below(p, dir string) bool {
	rest, ok := strings.CutPrefix(p, dir)
	return ok && (rest == "" || rest[0] == '/')
}
