package gateway

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	"sync/atomic"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/gateway/inspected"
	"github.com/cofferdam/cofferdam/internal/gateway/plainhttp"
	"github.com/cofferdam/cofferdam/internal/netname"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// httpDoor is the pipeline's side of requests, one after another: each is a crossing of its own.
type httpDoor struct {
	p      *passage
	secure bool // inside TLS that was ended here and is made anew to the upstream

	// Of the request under way:
	bound      bool // credentials are lent to its host: it can carry no other, and its answers are looked through
	borrowed   []borrowed
	redactions *atomic.Int64
	returned   returned // what came back
	held       int64    // bytes of its body that are held to be signed
}

// plainHTTP serves HTTP on the connection until it ends.
func (p *passage) plainHTTP(ctx context.Context, first []byte) {
	law := p.g.policy.Load()
	look := p.g.placeholders != nil || len(law.Credentials()) > 0 || law.JudgesPaths(p.host, p.dest.Port()) || law.JudgesMethods(p.host, p.dest.Port())
	p.g.http.Serve(ctx, p.paced(ctx), first, plainhttp.Origin{Authority: p.authority(80), Look: look}, &httpDoor{p: p})
	_ = p.client.Close() // an orderly end; where there was none it is closed already
}

// authority is what Host must say. The port is left out if it is the scheme's own.
func (p *passage) authority(own uint16) string {
	name := string(p.host)
	if name == "" {
		name = p.dest.Addr().String()
		if p.dest.Addr().Is6() {
			name = "[" + name + "]"
		}
	}
	if p.dest.Port() != own {
		name += ":" + strconv.Itoa(int(p.dest.Port()))
	}
	return name
}

// Admit judges and records one request, and lends it what policy lends.
func (d *httpDoor) Admit(ctx context.Context, r *plainhttp.Request) *plainhttp.Refusal {
	p := d.p
	d.borrowed, d.redactions, d.returned, p.credential, p.grant = nil, new(atomic.Int64), returned{}, "", ""
	c := p.arrival.crossing(policy.HTTP)
	if d.secure {
		c.Protocol = policy.HTTPS
	}
	c.Method, c.Path = r.Method, r.Path
	if r.Fault != nil {
		p.g.deny(ctx, c, policy.Decision{Rule: r.Fault.Rule, Reason: r.Fault.Reason}, p.query("tcp"), "")
		return r.Fault
	}
	law := p.g.policy.Load()
	if refused := canonical(law, &c, r); refused.Rule != "" {
		return p.refusal(c, p.g.deny(ctx, c, refused, p.query("tcp"), ""))
	}
	use, wrong := d.present(law, c, r)
	if wrong.Rule != "" {
		return p.refusal(c, p.g.denyUse(ctx, c, wrong.Decision, p.query("tcp"), wrong.where, wrong.credential))
	}
	p.credential, p.grant = names(use), lines(law, use)
	decision := p.admit(ctx, c, "")
	if decision.Verdict != policy.Allow {
		return p.refusal(c, p.g.deny(ctx, c, decision, p.query("tcp"), ""))
	}
	if refusal := d.borrow(ctx, law, c, r, use); refusal != nil {
		p.finish(audit.Event{Status: refusal.Status, Error: refusal.Reason})
		return refusal
	}
	d.watchUpload(ctx, c, r)
	return nil
}

// canonical brings the path into the form in which it is judged and sent, where policy judges it or lends something. A Decision with a rule
// refuses.
func canonical(law *policy.Policy, c *policy.Crossing, r *plainhttp.Request) policy.Decision {
	judged := law.JudgesPaths(c.Host, c.Port)
	bound := r.Header != nil && len(law.Bound(c.Host, c.Port)) > 0 // the store may have conditions of its own
	if judged || bound {
		path, err := netname.NormalisePath(c.Path)
		if err == nil && r.Header == nil && path.String() != c.Path {
			err = errors.New("it is not in canonical form")
		}
		switch {
		case err == nil:
			c.Path = path.String()
			r.Target = c.Path + r.Target[min(len(r.Path), len(r.Target)):]
		case judged:
			return policy.Decision{Rule: RuleAmbiguousPath, Reason: "the path could be read in different ways: " + err.Error()}
		} // else it is sent as it is, and no condition about paths agrees with it
	}
	if judged || bound || law.JudgesMethods(c.Host, c.Port) {
		for _, name := range overrides() {
			if _, stated := r.Header[name]; stated {
				return policy.Decision{Rule: RuleMethodOverride, Reason: "the header " + name + " would change what was judged, and some servers follow it"}
			}
		}
	}
	return policy.Decision{}
}

// overrides are headers by which some frameworks take another method or path than the request's own.
func overrides() []string {
	return []string{"X-Http-Method-Override", "X-Http-Method", "X-Method-Override", "X-Original-Url", "X-Rewrite-Url", "X-Original-Method"}
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
func (d *httpDoor) Dial(ctx context.Context) (plainhttp.Conn, *plainhttp.Refusal) {
	server, refused, err := d.p.reach(ctx)
	if refused != nil {
		return nil, d.p.refusal(d.p.refusedAs, *refused)
	}
	if err == nil && !d.secure {
		return server, nil
	}
	if err == nil {
		secured, failed := d.p.g.connect.Connect(ctx, server, d.p.host, inspected.HTTP1)
		if failed == nil {
			return secured, nil
		}
		err = failed
	}
	return nil, unreachable(err)
}

func unreachable(err error) *plainhttp.Refusal {
	return &plainhttp.Refusal{Status: http.StatusBadGateway, Rule: "upstream", Reason: "the upstream cannot be reached: " + err.Error()}
}

// Done records how the request just admitted ended.
func (d *httpDoor) Done(r plainhttp.Result) {
	d.release()
	e := audit.Event{Status: r.Status, BytesIn: r.In, BytesOut: r.Out, Redactions: d.redactions.Load(), Type: d.returned.kind, Digest: d.returned.digest()}
	if r.Err != nil {
		e.Error = d.Clean(r.Err.Error())
	}
	d.p.finish(e)
}
