package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// reach connects to where an admitted crossing goes. A refusal is recorded already; an error is the upstream's.
func (p *passage) reach(ctx context.Context) (*net.TCPConn, *policy.Decision, error) {
	p.dialled = netip.Addr{}
	addrs := []netip.Addr{p.dest.Addr()} // raw: policy has decided about this very address
	if p.host != "" {
		found, refused, err := p.resolve(ctx)
		if refused != nil || err != nil {
			return nil, refused, err
		}
		addrs = found
	}
	server, err := p.g.config.Upstream.Dial(ctx, addrs, p.dest.Port())
	if err != nil {
		if why := p.whyCut(); why != "" {
			err = errors.New(why)
		}
		return nil, nil, err
	}
	p.dialled = unmapPort(server.RemoteAddr().(*net.TCPAddr).AddrPort()).Addr()
	if !p.join(server) {
		return nil, nil, errors.New(p.whyCut())
	}
	return server, nil, nil
}

// resolve looks the name up once and keeps the addresses that policy lets a name have. What it returns is what is dialled: there is no
// second look-up that could answer otherwise.
func (p *passage) resolve(ctx context.Context) ([]netip.Addr, *policy.Decision, error) {
	all, err := p.g.config.Upstream.Resolve(ctx, p.host)
	if err != nil {
		return nil, nil, err
	}
	law := p.onTop(p.g.policy.Load())
	kept := make([]netip.Addr, 0, len(all))
	var first policy.Decision
	var bad netip.Addr
	for _, a := range all {
		// Loopback and private addresses, metadata services and all forms that hide them are refused here, whatever the rule for the name says.
		d := law.DecideAddress(p.host, a)
		if d.Verdict == policy.Allow {
			kept = append(kept, a)
		} else if !bad.IsValid() {
			first, bad = d, a
		}
	}
	if len(kept) > 0 {
		return kept, nil, nil
	}
	if !bad.IsValid() {
		return nil, nil, fmt.Errorf("%s has no address", p.host)
	}
	c := p.crossing
	c.Addr = bad
	p.refusedAs = c
	told := p.g.deny(ctx, c, first, p.query("tcp"), "")
	return nil, &told, nil
}

// finish records the end of the crossing under way. e brings the outcome.
func (p *passage) finish(e audit.Event) {
	if why := p.whyCut(); why != "" {
		e.Error = why
	}
	p.mu.Lock()
	c, dialled := p.crossing, p.dialled
	p.decided, p.grants = false, nil
	p.mu.Unlock()
	ended := event(audit.CrossingFinished, c, policy.Decision{})
	ended.Verdict = ""
	ended.Crossing = p.id
	ended.Status, ended.BytesIn, ended.BytesOut, ended.Error = e.Status, e.BytesIn, e.BytesOut, e.Error
	ended.Credential, ended.Grant, ended.Redactions, ended.Type, ended.Digest = p.credential, p.grant, e.Redactions, e.Type, e.Digest
	if dialled.IsValid() {
		ended.Address = dialled.String()
	}
	if e.Refs != nil {
		ended.Refs = e.Refs
	}
	p.g.counters.in.Add(e.BytesIn)
	p.g.counters.out.Add(e.BytesOut)
	p.g.ledger.finished(ended, p.started)
}
