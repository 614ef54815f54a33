package policy

import (
	"slices"
	"strings"

	"github.com/cofferdam/cofferdam/internal/netname"
)

// naming finds who names a host. To compare the hosts of every rule with those of every other takes minutes for a file that a stranger can write:
// tens of thousands of hosts fit into one.
type naming struct {
	exact, wild map[netname.Host][]int // who names the host, or all below it
	below       map[netname.Host][]int // who names something below it
}

func newNaming() *naming {
	return &naming{exact: map[netname.Host][]int{}, wild: map[netname.Host][]int{}, below: map[netname.Host][]int{}}
}

// add notes what one names. Numbers come in rising order.
func (n *naming) add(who int, patterns []netname.Pattern) {
	put := func(into map[netname.Host][]int, h netname.Host) {
		if list := into[h]; len(list) == 0 || list[len(list)-1] != who {
			into[h] = append(list, who)
		}
	}
	for _, p := range patterns {
		if p.Wildcard() {
			put(n.wild, p.Base())
		} else {
			put(n.exact, p.Base())
		}
		for parent := range parents(p.Base()) {
			put(n.below, parent)
		}
	}
}

// overlapping lists, in rising order, who names some host that the patterns name too. limit is above every number.
func (n *naming) overlapping(patterns []netname.Pattern, limit int) (found []int) {
	seen := make([]bool, limit)
	note := func(list []int) {
		for _, who := range list {
			if !seen[who] {
				seen[who] = true
				found = append(found, who)
			}
		}
	}
	asked := map[netname.Host]bool{}
	for _, p := range patterns {
		if p.Wildcard() {
			note(n.wild[p.Base()])
			note(n.below[p.Base()])
		} else {
			note(n.exact[p.Base()])
		}
		for parent := range parents(p.Base()) {
			if asked[parent] {
				break // and those above it
			}
			asked[parent] = true
			note(n.wild[parent])
		}
	}
	slices.Sort(found)
	return found
}

// parents are the names above a host, the nearest first.
func parents(h netname.Host) func(yield func(netname.Host) bool) {
	return func(yield func(netname.Host) bool) {
		for rest := string(h); ; {
			_, above, more := strings.Cut(rest, ".")
			if !more || !yield(netname.Host(above)) {
				return
			}
			rest = above
		}
	}
}

// overlap reports whether some host is named by both lists.
func overlap(a, b []netname.Pattern) bool {
	n := newNaming()
	n.add(0, a)
	return len(n.overlapping(b, 1)) > 0
}

// readers are what in a layer needs bytes read: its credentials, and behind them its rules.
type readers struct {
	of    *layer
	hosts *naming
}

func (l *layer) readers() *readers {
	out := &readers{of: l, hosts: newNaming()}
	for i := range l.credentials {
		out.hosts.add(i, l.credentials[i].Hosts)
	}
	for i := range l.rules {
		if o := &l.rules[i]; o.inspects() {
			out.hosts.add(len(l.credentials)+i, o.Hosts)
		}
	}
	return out
}
