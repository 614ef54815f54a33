package gateway

import (
	"context"
	"net"
	"net/http"
	"strconv"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/gateway/plainhttp"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// httpDoor is the pipeline's side of one plain HTTP connection: each request is a crossing of its own.
type httpDoor struct{ p *passage }

// plainHTTP serves HTTP on the connection until it ends.
func (p *passage) plainHTTP(ctx context.Context, first []byte) {
	p.g.http.Serve(ctx, p.client, first, p.authority(), httpDoor{p})
	_ = p.client.Close() // an orderly end; where there was none it is closed already
}

// authority is what Host must say.
func (p *passage) authority() string {
	name := string(p.host)
	if name == "" {
		name = p.dest.Addr().String()
		if p.dest.Addr().Is6() {
			name = "[" + name + "]"
		}
	}
	if p.dest.Port() != 80 {
		name += ":" + strconv.Itoa(int(p.dest.Port()))
	}
	return name
}

// Admit judges and records one request.
func (d httpDoor) Admit(ctx context.Context, r plainhttp.Request) *plainhttp.Refusal {
	p := d.p
	c := p.arrival.crossing(policy.HTTP)
	c.Method, c.Path = r.Method, r.Path
	if r.Fault != nil {
		p.g.deny(ctx, c, policy.Decision{Rule: r.Fault.Rule, Reason: r.Fault.Reason}, p.query("tcp"), "")
		return r.Fault
	}
	decision := p.admit(ctx, c, "")
	if decision.Verdict == policy.Allow {
		return nil
	}
	decision = p.g.deny(ctx, c, decision, p.query("tcp"), "")
	return p.refusal(c, decision)
}

// refusal is a denial as an HTTP answer.
func (p *passage) refusal(c policy.Crossing, d policy.Decision) *plainhttp.Refusal {
	status := http.StatusForbidden
	if d.Rule == RuleAuditUnavailable {
		status = http.StatusServiceUnavailable
	}
	return &plainhttp.Refusal{Status: status, Rule: d.Rule, Reason: d.Reason, Remedy: p.g.remedy(c, d)}
}

// Dial connects to the dialled name for the request just admitted.
func (d httpDoor) Dial(ctx context.Context) (*net.TCPConn, *plainhttp.Refusal) {
	server, refused, err := d.p.reach(ctx)
	if refused != nil {
		return nil, d.p.refusal(d.p.refusedAs, *refused)
	}
	if err != nil {
		return nil, &plainhttp.Refusal{Status: http.StatusBadGateway, Rule: "upstream", Reason: "the upstream cannot be reached: " + err.Error()}
	}
	return server, nil
}

// Done records how the request just admitted ended.
func (d httpDoor) Done(r plainhttp.Result) {
	e := audit.Event{Status: r.Status, BytesIn: r.In, BytesOut: r.Out}
	if r.Err != nil {
		e.Error = r.Err.Error()
	}
	d.p.finish(e)
}
