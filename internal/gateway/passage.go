package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/gateway/tunnel"
	"github.com/cofferdam/cofferdam/internal/netname"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// passage is one client connection from its acceptance to its end.
type passage struct {
	g      *Gateway
	client *net.TCPConn
	arrival
	cancel context.CancelFunc
	// answer is what a human said about this connection.
	answer *answer

	id      uint64 // of the crossing under way
	started time.Time
	dialled netip.Addr
	// credential names what policy lends to the crossing, and grant where it says so, for the record.
	credential, grant string
	// refusedAs is the crossing with the address that was refused after resolution.
	refusedAs policy.Crossing

	mu       sync.Mutex
	crossing policy.Crossing // the one under way, if decided
	decided  bool
	once     *Once   // let it through
	grants   []Grant // lent to it
	server   *net.TCPConn
	cut      string // why it was cut off; empty while it was not
}

// handle takes one accepted connection through the pipeline and closes it.
func (g *Gateway) handle(ctx context.Context, c *net.TCPConn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := &passage{g: g, client: c, cancel: cancel, answer: new(answer)}
	g.open.add(p)
	defer g.open.remove(p)
	if ctx.Err() != nil { // ended before it joined the list
		reset(c)
		return
	}
	var refused policy.Decision
	p.arrival, refused = g.identify(c)
	switch {
	case refused.Rule != "":
		p.refuse(ctx, p.arrival.crossing(guess(p.dest.Port())), refused, "")
	case p.control:
		p.serveControl(ctx)
	case p.proxy:
		p.serveGit(ctx)
	default:
		p.pass(ctx)
	}
}

// serveControl hands the connection to the run's control plane.
func (p *passage) serveControl(ctx context.Context) {
	if p.g.config.Control == nil || !p.g.config.Control(p.client) {
		p.refuse(ctx, p.arrival.crossing(policy.TCP), policy.Decision{Rule: RuleGatewayClosed, Reason: "the control address is the runner's, which has called"}, "")
	}
}

// guess is the protocol of a refusal which comes before any byte was read: the port says what the program most likely wanted, and so what
// flag to suggest. It opens nothing.
func guess(port uint16) policy.Protocol {
	switch port {
	case 443, 4443, 8443, 9443:
		return policy.TLS
	case 80, 3000, 8000, 8080, 8081, 8888:
		return policy.HTTP
	}
	return policy.TCP
}

// pass decides as early as it can: an opaque rule before a byte is read, since servers may speak first; a refusal that no
// byte could change, at once; everything else once the client has said what it speaks.
func (p *passage) pass(ctx context.Context) {
	law := p.g.policy.Load()
	opaque := p.arrival.crossing(policy.TCP)
	if law.Opaque(opaque) {
		p.tunnel(ctx, opaque, nil, "")
		return
	}
	if law.Decide(p.arrival.crossing(policy.TLS)).Verdict != policy.Deny || law.Decide(p.arrival.crossing(policy.HTTP)).Verdict != policy.Deny {
		p.listen(ctx, opaque)
		return
	}
	if law.Decide(opaque).Verdict == policy.Ask {
		p.tunnel(ctx, opaque, nil, "")
		return
	}
	c := p.arrival.crossing(guess(p.dest.Port()))
	p.refuse(ctx, c, law.Decide(c), "")
}

// listen reads until the protocol is known, and goes on by it.
func (p *passage) listen(ctx context.Context, opaque policy.Crossing) {
	if p.client.SetReadDeadline(time.Now().Add(p.g.limits.FirstByte)) != nil {
		reset(p.client)
		return
	}
	buf := p.g.headBuffer()
	defer p.g.heads.Put(buf)
	first := (*buf)[:0]
	kind := tunnel.Partial
	for kind == tunnel.Partial {
		n, err := p.client.Read(first[len(first):cap(first)])
		first = first[:len(first)+n]
		if p.g.meter.pass(ctx, int64(n)) != nil {
			n = 0
		}
		if n == 0 {
			p.unsaid(ctx, opaque, err)
			return
		}
		kind = tunnel.Recognise(first)
	}
	switch kind {
	case tunnel.TLS:
		p.tls(ctx, first)
	case tunnel.HTTP:
		p.plainHTTP(ctx, first)
	default:
		p.opaque(ctx, opaque, first)
	}
}

// headBuffer returns a pooled buffer for the first bytes of a connection.
func (g *Gateway) headBuffer() *[]byte {
	if b, ok := g.heads.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, 4096)
	return &b
}

// unsaid ends a connection whose client did not say what it speaks. If it just went away, nothing was attempted.
func (p *passage) unsaid(ctx context.Context, c policy.Crossing, err error) {
	switch {
	case !errors.Is(err, os.ErrDeadlineExceeded):
		reset(p.client)
	case p.g.policy.Load().Decide(c).Verdict == policy.Ask:
		p.tunnel(ctx, c, nil, "") // a protocol in which the server speaks first: a human may know it
	default:
		p.refuse(ctx, c, policy.Decision{
			Rule:   RuleOpaqueProtocol,
			Reason: "the program sent nothing for " + p.g.limits.FirstByte.String() + ", and only TLS and HTTP, in which the client speaks first, are allowed here",
		}, "")
	}
}

// opaque ends a connection in some other protocol, unless policy wants a human to be asked about it.
func (p *passage) opaque(ctx context.Context, c policy.Crossing, first []byte) {
	if p.g.policy.Load().Decide(c).Verdict != policy.Deny {
		p.tunnel(ctx, c, first, "")
		return
	}
	p.refuse(ctx, c, policy.Decision{
		Rule: RuleOpaqueProtocol, Reason: "what the program speaks is neither TLS nor HTTP, and no rule of protocol tcp allows other bytes here",
	}, "")
}

// tls reads the ClientHello and lets the tunnel through if the server name is the dialled name.
func (p *passage) tls(ctx context.Context, first []byte) {
	hello, err := tunnel.ReadHello(first, p.client)
	c := p.arrival.crossing(policy.TLS)
	if err != nil {
		reason := "the bytes look like TLS but are no complete ClientHello"
		if !errors.Is(err, tunnel.ErrNotTLS) {
			reason = "the ClientHello did not arrive in full"
		}
		p.refuse(ctx, c, policy.Decision{Rule: RuleOpaqueProtocol, Reason: reason}, "")
		return
	}
	if d := p.checkName(hello); d.Rule != "" {
		p.refuse(ctx, c, d, "server name "+quoted(hello.ServerName))
		return
	}
	if p.g.policy.Load().Inspects(p.host, p.dest.Port()) {
		p.inspect(ctx, c, hello.Raw)
		return
	}
	p.tunnel(ctx, c, hello.Raw, "")
}

// checkName compares the server name with the dialled name. A Decision with a rule refuses.
func (p *passage) checkName(hello tunnel.Hello) policy.Decision {
	if hello.Encrypted {
		return policy.Decision{Rule: RuleEncryptedHello, Reason: "the client may hide the server name (encrypted client hello), so it cannot be judged"}
	}
	if hello.ServerName == "" {
		if p.host == "" {
			return policy.Decision{} // a raw address: policy has it by its network
		}
		return policy.Decision{Rule: RuleNoServerName, Reason: "the TLS hello has no server name to compare with " + string(p.host)}
	}
	name, err := netname.NormaliseHost(hello.ServerName)
	if p.host != "" {
		if err == nil && name == p.host {
			return policy.Decision{}
		}
		return policy.Decision{Rule: RuleNameMismatch, Reason: "the TLS server name is not the dialled name, " + string(p.host)}
	}
	if err != nil {
		return policy.Decision{Rule: RuleNameMismatch, Reason: "the TLS server name is no host name"}
	}
	// Dialled by address, but asking for a name: both must be allowed, else a rule for an address would open every name behind it.
	law := p.g.policy.Load()
	d := law.Decide(policy.Crossing{Protocol: policy.TLS, Host: name, Port: p.dest.Port()})
	if d.Verdict == policy.Allow && law.Inspects(name, p.dest.Port()) {
		return policy.Decision{Rule: RuleNameMismatch, Reason: "requests to " + string(name) + " are judged one by one: dial it by its name"}
	}
	if d.Verdict == policy.Allow {
		return policy.Decision{}
	}
	d.Verdict = policy.Deny
	d.Reason = "the TLS server name is judged as well as the address: " + d.Reason
	return d
}

// tunnel has the crossing judged, recorded and dialled, and moves bytes until it ends. first is what was read from the client already.
func (p *passage) tunnel(ctx context.Context, c policy.Crossing, first []byte, detail string) {
	if d := p.admit(ctx, c, detail); d.Verdict != policy.Allow {
		p.refuse(ctx, c, d, detail)
		return
	}
	server, refused, err := p.reach(ctx)
	if refused != nil {
		err = errors.New("refused after resolution: " + refused.Reason)
	}
	if err != nil {
		reset(p.client)
		p.finish(audit.Event{Error: err.Error()})
		return
	}
	var r tunnel.Result
	if len(first) > 0 {
		err = errors.Join(server.SetWriteDeadline(time.Now().Add(p.g.limits.FirstByte)), write(server, first))
	}
	if err == nil {
		r, err = p.g.splicer.Splice(p.client, server, p.g.limits.Idle, p.pace(ctx))
		r.Out += int64(len(first))
	}
	ended := audit.Event{BytesIn: r.In, BytesOut: r.Out}
	if err != nil {
		reset(p.client)
		reset(server)
		if !tunnel.Orderly(err) {
			ended.Error = err.Error()
		}
	}
	_ = p.client.Close() // both directions have ended; closing twice is harmless
	_ = server.Close()
	p.finish(ended)
}

func write(w io.Writer, b []byte) error {
	_, err := w.Write(b)
	return err
}

// reset closes a connection so that the peer gets an RST at once.
func reset(c *net.TCPConn) { tunnel.Break(c) }
