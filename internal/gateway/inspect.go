package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"sync"

	"github.com/cofferdam/cofferdam/internal/gateway/inspected"
	"github.com/cofferdam/cofferdam/internal/gateway/plainhttp"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// inspect ends the client's TLS, whose server name is the dialled name, and serves the requests inside.
func (p *passage) inspect(ctx context.Context, c policy.Crossing, hello []byte) {
	if d := p.g.policy.Load().Decide(c); d.Verdict == policy.Deny { // no request could be allowed
		p.refuse(ctx, c, d, "")
		return
	}
	client, err := p.accept(ctx, hello)
	if err != nil {
		d := policy.Decision{Rule: RuleOpaqueProtocol, Reason: "the TLS of the program cannot be ended, which is needed to judge its requests: it speaks no protocol or version that is known here"}
		if errors.Is(err, inspected.ErrUntrusted) {
			d = policy.Decision{
				Rule: RuleInspectionRefused,
				Reason: "the program does not accept this sandbox's certificate authority, which is needed to judge its requests: " +
					"it may know only its server's own, and then needs a rule with tls: tunnel",
			}
		}
		p.refuse(ctx, c, d, quoted(err.Error()))
		return
	}
	origin := plainhttp.Origin{Authority: p.authority(443), Secure: true, Look: true}
	if client.ConnectionState().NegotiatedProtocol == inspected.HTTP2 {
		doors := &http2Doors{p: p}
		p.g.http2.Serve(ctx, client, origin, doors)
		doors.close()
		return
	}
	p.g.http.Serve(ctx, client, nil, origin, &httpDoor{p: p, secure: true})
	_ = client.Close() // an orderly end; where there was none it is closed already
}

func (p *passage) accept(ctx context.Context, hello []byte) (*tls.Conn, error) {
	authority, err := p.g.authority()
	if err != nil {
		return nil, err
	}
	client := p.paced(ctx)
	ctx, cancel := context.WithTimeout(ctx, p.g.limits.FirstByte)
	defer cancel()
	return authority.Accept(ctx, client, hello, p.host)
}

// http2Doors is the pipeline's side of one HTTP/2 connection, whose requests come at once: each is a passage of its own over the same connection.
type http2Doors struct {
	p  *passage
	wg sync.WaitGroup

	mu      sync.Mutex
	dialled []*passage
}

// child returns a passage for one request, or one upstream connection, of this client connection.
func (p *passage) child() *passage {
	q := &passage{g: p.g, client: p.client, arrival: p.arrival, cancel: p.cancel, answer: p.answer}
	p.g.open.add(q)
	return q
}

// Door returns the door of one request.
func (d *http2Doors) Door() (plainhttp.Inspector, func()) {
	q := d.p.child()
	d.wg.Add(1)
	return &httpDoor{p: q, secure: true}, func() {
		d.p.g.open.forget(q)
		d.wg.Done()
	}
}

// Dial connects to the dialled name.
func (d *http2Doors) Dial(ctx context.Context, protocols ...string) (*tls.Conn, *plainhttp.Refusal) {
	q := d.p.child()
	q.crossing = q.arrival.crossing(policy.HTTPS)
	d.mu.Lock()
	d.dialled = append(d.dialled, q)
	d.mu.Unlock()
	server, refused, err := q.reach(ctx)
	if refused != nil {
		return nil, q.refusal(q.refusedAs, *refused)
	}
	if err != nil {
		return nil, unreachable(err)
	}
	secured, err := d.p.g.connect.Connect(ctx, server, d.p.host, protocols...)
	if err != nil {
		return nil, unreachable(err)
	}
	return secured, nil
}

// close waits for the requests and closes the upstream connections.
func (d *http2Doors) close() {
	d.wg.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, q := range d.dialled {
		d.p.g.open.remove(q)
	}
}
