package policy

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/cofferdam/cofferdam/internal/netname"
)

// The rules that are built in. No rule of a file can bear their names.
const (
	RuleDefault        = "default"         // no rule matched
	RuleRawAddress     = "raw-address"     // an address without a name, which no rule names
	RuleSpecialAddress = "special-address" // private, loopback, metadata and the like, not named
	RulePublicAddress  = "public-address"  // a resolved address of the ordinary internet
	RuleNetworks       = "networks"        // a resolved special address that egress.networks names
	RuleEncryptedDNS   = "encrypted-dns"   // name resolution that would bypass the gateway
	RuleUDPClosed      = "udp-closed"
	RuleICMPClosed     = "icmp-closed"
	RuleProtocolClosed = "protocol-closed" // any other IP protocol
)

// builtinRules are the names that no rule of a file can bear: the ones above, and those under which the gateway refuses on its own account. So a
// name in the record has one meaning.
func builtinRules() []string {
	return []string{
		RuleDefault, RuleRawAddress, RuleSpecialAddress, RulePublicAddress, RuleNetworks, RuleEncryptedDNS, RuleUDPClosed, RuleICMPClosed, RuleProtocolClosed, RuleGitThroughProxy,
		"ambiguous-path", "asked", "audit-unavailable", "credential-unavailable", "foreign-credential", "inspection-refused", "method-override",
		"placeholder-misused", "connection-limit", "direct-listener", "encrypted-hello", "gateway-closed",
		"malformed-request", "method-closed", "name-limit", "name-mismatch",
		"git-protocol", "git-request", "git-token", "git-unjudged", "no-server-name", "nobody-to-ask", "opaque-protocol", "unknown-name", "upstream", "wildcard-limit",
	}
}

const (
	portDoT  = 853 // RFC 7858
	portMail = 25
)

// defaultPorts are the ports of a rule that lists none.
func defaultPorts() []uint16 { return []uint16{443, 80} }

// syntheticNetworks are the ranges that stand for names inside the sandbox: an address there is never a raw one.
func syntheticNetworks() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("fdcf:d0::/32")}
}

// encryptedDNS reports whether a name belongs to a public DNS-over-HTTPS resolver, or lies below one. Through it a program could ask for names
// that policy refuses, so a wildcard rule does not open it: the very host must be named. The list serves attribution; what keeps an unlisted
// resolver closed is that nothing is open by default.
func encryptedDNS(h netname.Host) bool {
	name := string(h)
	for name != "" {
		if _, found := slices.BinarySearch(resolvers, name); found {
			return true
		}
		_, name, _ = strings.Cut(name, ".")
	}
	return false
}

// resolvers is sorted and never changed. Sources: the DNS-over-HTTPS lists of curl's wiki and of the operators named.
var resolvers = []string{
	"1dot1dot1dot1.cloudflare-dns.com",
	"base.dns.mullvad.net",
	"blitz.ahadns.com",
	"cloudflare-dns.com",
	"dns-family.adguard.com",
	"dns-unfiltered.adguard.com",
	"dns.adguard-dns.com",
	"dns.adguard.com",
	"dns.alidns.com",
	"dns.controld.com",
	"dns.digitale-gesellschaft.ch",
	"dns.google",
	"dns.google.com",
	"dns.mullvad.net",
	"dns.nextdns.io",
	"dns.njal.la",
	"dns.quad9.net",
	"dns.switch.ch",
	"dns.telekom.de",
	"dns.twnic.tw",
	"dns.umbrella.com",
	"dns0.eu",
	"dns10.quad9.net",
	"dns11.quad9.net",
	"dns12.quad9.net",
	"dns64.dns.google",
	"dns9.quad9.net",
	"dnsforge.de",
	"doh.360.cn",
	"doh.appliedprivacy.net",
	"doh.cleanbrowsing.org",
	"doh.cox.net",
	"doh.dns.sb",
	"doh.dnslify.com",
	"doh.familyshield.opendns.com",
	"doh.ffmuc.net",
	"doh.libredns.gr",
	"doh.mullvad.net",
	"doh.opendns.com",
	"doh.pub",
	"doh.quickline.ch",
	"doh.sandbox.opendns.com",
	"doh.tiar.app",
	"doh.umbrella.com",
	"doh.xfinity.com",
	"family.adguard-dns.com",
	"family.cloudflare-dns.com",
	"freedns.controld.com",
	"mozilla.cloudflare-dns.com",
	"odvr.nic.cz",
	"one.one.one.one",
	"ordns.he.net",
	"private.canadianshield.cira.ca",
	"security.cloudflare-dns.com",
	"unfiltered.adguard-dns.com",
	"wikimedia-dns.org",
}
