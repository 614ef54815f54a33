package gateway

import (
	"net"
	"sync"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// openList holds the connections that are open, for cutting them. Its zero value is empty and ready.
type openList struct {
	mu   sync.Mutex
	open map[*passage]struct{}
}

func (l *openList) add(p *passage) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == nil {
		l.open = make(map[*passage]struct{})
	}
	l.open[p] = struct{}{}
}

func (l *openList) remove(p *passage) {
	l.mu.Lock()
	delete(l.open, p)
	l.mu.Unlock()
	p.mu.Lock()
	server := p.server
	p.mu.Unlock()
	_ = p.client.Close() // both are closed already, except where a path ended early
	if server != nil {
		_ = server.Close()
	}
}

func (l *openList) all() []*passage {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]*passage, 0, len(l.open))
	for p := range l.open {
		all = append(all, p)
	}
	return all
}

// forget takes a passage out that shares its connections with another.
func (l *openList) forget(p *passage) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.open, p)
}

// cutOff breaks both ends of a connection, whatever it is doing.
func (p *passage) cutOff(why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut == "" {
		p.cut = why
	}
	p.cancel()
	reset(p.client)
	reset(p.server)
}

// rejudge cuts the crossing under way if the policy given denies it.
func (p *passage) rejudge(law *policy.Policy) {
	p.mu.Lock()
	c, decided := p.crossing, p.decided
	p.mu.Unlock()
	if !decided {
		return // it will be judged, by the new policy
	}
	law = p.onTop(law)
	switch d := law.Decide(c); {
	case d.Verdict == policy.Deny:
		p.cutOff("cut: policy has changed, rule " + d.Rule)
	case (c.Protocol == policy.TLS || c.Protocol == policy.TCP) && law.Inspects(c.Host, c.Port):
		p.cutOff("cut: policy has changed, and what passed unread is to be inspected")
	}
}

// under notes the crossing that was let through, and the once-rule by which it was, from where on a change of policy cuts it.
func (p *passage) under(c policy.Crossing, once *Once) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.crossing, p.decided, p.once = c, true, once
}

// onTop returns a policy with the once-rule that the crossing under way has used up: for this crossing it goes on to hold.
func (p *passage) onTop(law *policy.Policy) *policy.Policy {
	p.mu.Lock()
	once := p.once
	p.mu.Unlock()
	if once == nil {
		return law
	}
	with, err := once.over(law)
	if err != nil {
		return law // the new policy contradicts the rule, which so has ended
	}
	return with
}

// lent notes a grant that the crossing under way has.
func (p *passage) lent(grant Grant) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.grants = append(p.grants, grant)
}

// revoked cuts the crossing under way if a grant that it has does not hold any more.
func (p *passage) revoked() {
	p.mu.Lock()
	grants := p.grants
	p.mu.Unlock()
	for _, grant := range grants {
		if err := grant.Revoked(); err != nil {
			p.cutOff("cut: " + fault.Public(err))
		}
	}
}

// join notes the upstream connection; false means that the passage was cut meanwhile, and the connection is closed.
func (p *passage) join(server *net.TCPConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut != "" {
		reset(server)
		return false
	}
	p.server = server
	return true
}

// whyCut returns why the passage was cut off, or "".
func (p *passage) whyCut() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cut
}
