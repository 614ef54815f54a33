package gateway

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"sync"

	"github.com/cofferdam/cofferdam/internal/netname"
	"github.com/cofferdam/cofferdam/internal/policy"
)

const (
	// firstIndex leaves the beginning of the range to the gateway's own addresses.
	firstIndex = 256
	// maxNames keeps the indexes inside 198.18.0.0/15, which has 131,072 addresses.
	maxNames = 100_000
	// controlPort of the gateway's address is where the runner connects.
	controlPort = 1
	// proxyPort of the gateway's address is where protocol proxies answer, in plain HTTP: the connection never leaves this machine.
	proxyPort = 80
	// ownDomain is the gateway's own; every name in it is the gateway.
	ownDomain = "cofferdam.internal"
)

// SyntheticV4 is the range of IPv4 addresses that stand for names: the benchmarking range of RFC 2544, which is nobody's.
func SyntheticV4() netip.Prefix { return netip.MustParsePrefix("198.18.0.0/15") }

// SyntheticV6 is the IPv6 twin of SyntheticV4; an index has the same number in both.
func SyntheticV6() netip.Prefix { return netip.MustParsePrefix("fdcf:d0::/96") }

// addressV4 and addressV6 turn an index into its two addresses.
func addressV4(index uint32) netip.Addr {
	base := SyntheticV4().Addr().As4()
	binary.BigEndian.PutUint32(base[:], binary.BigEndian.Uint32(base[:])+index)
	return netip.AddrFrom4(base)
}

func addressV6(index uint32) netip.Addr {
	base := SyntheticV6().Addr().As16()
	binary.BigEndian.PutUint32(base[12:], index)
	return netip.AddrFrom16(base)
}

func gatewayV4() netip.Addr { return netip.AddrFrom4([4]byte{198, 18, 0, 1}) }
func gatewayV6() netip.Addr { return addressV6(1) }

// synthetic says whether an address lies in one of the ranges.
func synthetic(a netip.Addr) bool { return SyntheticV4().Contains(a) || SyntheticV6().Contains(a) }

// index is the inverse of addressV4 and addressV6.
func index(a netip.Addr) (uint32, bool) {
	switch {
	case a.Is4() && SyntheticV4().Contains(a):
		b, base := a.As4(), SyntheticV4().Addr().As4()
		return binary.BigEndian.Uint32(b[:]) - binary.BigEndian.Uint32(base[:]), true
	case a.Is6() && SyntheticV6().Contains(a):
		b := a.As16()
		return binary.BigEndian.Uint32(b[12:]), true
	}
	return 0, false
}

// nameTable remembers which synthetic address stands for which name. An index is never given to another name, so an address that a program
// kept can not come to mean something else.
type nameTable struct {
	limit int

	mu      sync.Mutex
	indexes map[netname.Host]uint32
	hosts   []netname.Host
	below   map[string]int // names below a wildcard's base
}

func newNameTable(limit int) *nameTable {
	return &nameTable{limit: limit, indexes: make(map[netname.Host]uint32), below: make(map[string]int)}
}

func (t *nameTable) find(h netname.Host) (uint32, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, ok := t.indexes[h]
	return i, ok
}

// room says whether another name, below the given wildcard base if there is one, would fit.
func (t *nameTable) room(base string, most int) (total, wildcard bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.hosts) < t.limit, base == "" || t.below[base] < most
}

// assign gives a name its index; ok is false when the table is full.
func (t *nameTable) assign(h netname.Host, base string) (i uint32, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i, ok := t.indexes[h]; ok {
		return i, true
	}
	if len(t.hosts) >= t.limit {
		return 0, false
	}
	i = firstIndex + uint32(len(t.hosts))
	t.hosts = append(t.hosts, h)
	t.indexes[h] = i
	if base != "" {
		t.below[base]++
	}
	return i, true
}

// host returns the name that a synthetic address stands for.
func (t *nameTable) host(a netip.Addr) (netname.Host, bool) {
	i, ok := index(a)
	if !ok || i < firstIndex {
		return "", false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if i -= firstIndex; int64(i) >= int64(len(t.hosts)) {
		return "", false
	}
	return t.hosts[i], true
}

func (t *nameTable) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.hosts)
}

// ownName says whether a name is the gateway's own.
func ownName(h netname.Host) bool {
	return h == ownDomain || strings.HasSuffix(string(h), "."+ownDomain)
}

// probe stands in for the labels of a name when it is asked whether policy allows any name there.
const probe = "cofferdam-probe-for-any-name."

// wildcardBase finds the shortest suffix of an allowed name below which policy allows any name at all, by the same rule. The labels before
// it are free text that a program chooses, and would carry a secret to that zone's name servers when the name is resolved;
// so their number and length are bounded. For a name that policy lists exactly the base is empty.
func wildcardBase(p *policy.Policy, h netname.Host, rule string) (base, free string) {
	name := string(h)
	for i := range len(name) {
		if name[i] != '.' {
			continue
		}
		parent := name[i+1:]
		probed, err := netname.NormaliseHost(probe + parent)
		if err != nil {
			break
		}
		if d := p.DecideName(probed); d.Verdict != policy.Allow || d.Rule != rule {
			break
		}
		base, free = parent, name[:i]
	}
	return base, free
}
