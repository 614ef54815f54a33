package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Wire says which bytes a rule lets through. The zero value is WireAuto.
type Wire uint8

// The wires.
const (
	WireAuto Wire = iota // TLS or plain HTTP, as seen; bytes that are neither are refused
	WireTLS              // TLS only
	WireHTTP             // plain HTTP only
	WireTCP              // any bytes, unread: must be asked for by name
)

// Depth says how far the gateway looks into TLS. The zero value is DepthAuto.
type Depth uint8

// The depths.
const (
	DepthAuto    Depth = iota // inspected where a credential, a method or a path needs it, passed through unread elsewhere
	DepthTunnel               // passed through unread: for programs that accept only their server's own certificate
	DepthInspect              // ended at the gateway, each request judged
)

// WorkspaceMode is how the workspace is mounted. The zero value is Overlay, which leaves the host's folder as it is.
type WorkspaceMode uint8

// The workspace modes.
const (
	Overlay            WorkspaceMode = iota // changes are collected, and applied only if a human says so
	WorkspaceReadOnly                       // nothing can be written
	WorkspaceReadWrite                      // the program writes the host's folder
)

// MountMode is how an additional mount is mounted. The zero value is ReadOnly.
type MountMode uint8

// The mount modes.
const (
	ReadOnly MountMode = iota
	ReadWrite
)

func verdictNames() []string   { return []string{"deny", "ask", "allow"} }
func wireNames() []string      { return []string{"auto", "tls", "http", "tcp"} }
func depthNames() []string     { return []string{"auto", "tunnel", "inspect"} }
func workspaceNames() []string { return []string{"overlay", "ro", "rw"} }
func mountNames() []string     { return []string{"ro", "rw"} }
func accessNames() []string    { return []string{"none", "read", "write"} }
func changeNames() []string {
	return []string{"invalid", "create", "update", "force", "delete", "propose"}
}
func forgeNames() []string { return []string{"plain", "github", "gitea", "gitlab", "azure"} }
func protocolNames() []string {
	return []string{"unknown", "dns", "tls", "http", "tcp", "udp", "icmp", "other", "https", "git"}
}

// name prints the value i of an enumeration. What is out of range is printed as such, never as one of the names.
func name(names []string, i uint8) string {
	if int(i) < len(names) {
		return names[i]
	}
	return fmt.Sprintf("invalid(%d)", i)
}

// parseName reads the name of an enumeration's value.
func parseName[T ~uint8](what string, names []string, s string) (T, error) {
	if i := slices.Index(names, s); i >= 0 {
		return T(i), nil
	}
	return 0, fault.New(fault.Invalid, "%s %.40q is unknown", what, s).WithHint("write one of %s", strings.Join(names, ", "))
}

// String names the verdict as policy files and the audit log do.
func (v Verdict) String() string { return name(verdictNames(), uint8(v)) }

// ParseVerdict reads a verdict's name.
func ParseVerdict(s string) (Verdict, error) { return parseName[Verdict]("verdict", verdictNames(), s) }

// String names the protocol as the audit log does.
func (p Protocol) String() string { return name(protocolNames(), uint8(p)) }

// ParseProtocol reads a protocol's name.
func ParseProtocol(s string) (Protocol, error) {
	return parseName[Protocol]("protocol", protocolNames(), s)
}

// String names the wire as policy files do.
func (w Wire) String() string { return name(wireNames(), uint8(w)) }

// ParseWire reads a wire's name.
func ParseWire(s string) (Wire, error) { return parseName[Wire]("protocol", wireNames(), s) }

// String names the depth as policy files do.
func (d Depth) String() string { return name(depthNames(), uint8(d)) }

// ParseDepth reads a depth's name.
func ParseDepth(s string) (Depth, error) { return parseName[Depth]("tls", depthNames(), s) }

// String names the mode as policy files do.
func (m WorkspaceMode) String() string { return name(workspaceNames(), uint8(m)) }

// ParseWorkspaceMode reads a workspace mode's name.
func ParseWorkspaceMode(s string) (WorkspaceMode, error) {
	return parseName[WorkspaceMode]("workspace mode", workspaceNames(), s)
}

// String names the mode as policy files do.
func (m MountMode) String() string { return name(mountNames(), uint8(m)) }

// ParseMountMode reads a mount mode's name.
func ParseMountMode(s string) (MountMode, error) {
	return parseName[MountMode]("mount mode", mountNames(), s)
}

// String names the access as policy files do.
func (a Access) String() string { return name(accessNames(), uint8(a)) }

// ParseAccess reads an access that a profile can have.
func ParseAccess(s string) (Access, error) {
	a, err := parseName[Access]("access", accessNames()[1:], s)
	if err != nil {
		return NoAccess, err
	}
	return a + 1, nil
}

// String names the change as policy files and the audit log do.
func (c GitChange) String() string { return name(changeNames(), uint8(c)) }

// ParseGitChange reads a change that a rule can allow.
func ParseGitChange(s string) (GitChange, error) {
	c, err := parseName[GitChange]("change", changeNames()[GitCreate:GitPropose], s)
	if err != nil {
		return 0, err
	}
	return c + GitCreate, nil
}

// String names the type as policy files do.
func (f ForgeType) String() string { return name(forgeNames(), uint8(f)) }

// ParseForgeType reads a forge type's name.
func ParseForgeType(s string) (ForgeType, error) {
	return parseName[ForgeType]("type", forgeNames(), s)
}

// openness orders workspace modes from closed to open, for intersection.
func (m WorkspaceMode) openness() int {
	switch m {
	case WorkspaceReadOnly:
		return 0
	case Overlay:
		return 1
	}
	return 2
}
