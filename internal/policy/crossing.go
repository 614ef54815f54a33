// Package policy (LAW) decides: a strict YAML document in, a Decision for each Crossing out. It is pure: no clock, no network, no files.
package policy

import (
	"net/netip"

	"github.com/cofferdam/cofferdam/internal/netname"
)

// Verdict is what policy says about a crossing. The zero value is Deny, so a forgotten branch refuses.
type Verdict uint8

// The verdicts, from closed to open.
const (
	Deny  Verdict = iota // refused and recorded
	Ask                  // held until a human answers; refused where nobody can be asked
	Allow                // permitted
)

// Protocol is how the sandbox speaks on a crossing, as far as the gateway has seen it.
type Protocol uint8

// The protocols. Unknown is the zero value; no rule ever matches it except a rule of protocol tcp.
const (
	Unknown Protocol = iota // bytes not recognised yet, or not recognisable
	DNS                     // a question for a name: is any port of it reachable?
	TLS                     // a TLS ClientHello was read; Host is its server name
	HTTP                    // plain HTTP/1.x; Host equals the Host header
	TCP                     // opaque bytes, only by a rule that says protocol: tcp
	UDP                     // a datagram: always denied
	ICMP                    // always denied
	Other                   // any other IP protocol: always denied
	HTTPS                   // a request inside TLS that the gateway ended; Host equals server name and Host header
	Git                     // an operation at the Git proxy, by its section of policy alone; Host and Port are the upstream's, its API's, or of a store of its large files
)

// Crossing is one attempted passage of the boundary, as far as policy needs to know it.
type Crossing struct {
	Protocol Protocol
	// Host is the name the program asked for; empty when it used a raw address.
	Host netname.Host
	// Addr is the raw destination when Host is empty.
	Addr netip.Addr
	Port uint16
	// Method and Path are set for requests only. Path has no query; where Policy.JudgesPaths it is canonical, and not empty.
	// Without a method a crossing of HTTP or TLS is the connection that requests would come over: what could be allowed on it counts.
	Method, Path string
	// Git is set for protocol Git only.
	Git *GitOperation
}

// Decision is policy's answer. Its zero value denies without naming a rule.
type Decision struct {
	Verdict Verdict
	// Rule names what decided: a rule's name, or "default" (no rule matched), or a built-in such as "udp-closed", "special-address".
	Rule string
	// Reason is one plain sentence for people, without a trailing full stop.
	Reason string
	// PerRequest says that the verdict is about this method and path, not about all requests to the place.
	PerRequest bool
}
