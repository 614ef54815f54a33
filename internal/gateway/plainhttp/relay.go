package plainhttp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/cofferdam/cofferdam/internal/gateway/tunnel"
)

const (
	// maxInterim bounds 1xx responses before the real one.
	maxInterim = 16
	// lateBody is how long an upload may go on after its answer has been given in full.
	lateBody = 2 * time.Second
	// cutShort is how long an upstream may take to answer a request whose body ended in an error.
	cutShort = 5 * time.Second
)

// once sends the request over the upstream connection and relays the answer. repeat says that a reused connection was found dead
// before it answered anything, and that the request may be sent again.
func (c *exchange) once(ctx context.Context) (again, repeat bool) {
	q := &c.request
	upgrade, method, alive := q.websocket(), q.method, q.keepAlive()
	c.upTo.buf = q.append(c.upTo.buf[:0], c.origin.Authority)
	upload, err := c.send()
	if err == nil {
		err = c.answer(method, upgrade)
	}
	if err != nil && c.reused && c.to.n == 0 && q.safeToRepeat() && ctx.Err() == nil && gone(err) {
		return false, true
	}
	uploaded, uploadErr := c.settle(upload)
	c.result.Out += c.upTo.n
	if refused, ok := errors.AsType[refusedBody](uploadErr); ok {
		err = refused
	}
	if err != nil {
		c.fail(err)
		return false, false
	}
	if c.response.status == http.StatusSwitchingProtocols {
		c.upgraded(ctx)
		return false, false
	}
	if !uploaded || !c.reusable(method) {
		c.drop()
	}
	return alive && uploaded && c.relayed(method) != untilClose, false
}

// gone says whether an error means that the peer had closed the connection.
func gone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || tunnel.Orderly(err)
}

// send writes the head, and the body if it is here already. Otherwise it starts an upload beside the answer, since an upstream may
// answer before it has read all, or want to be waited for (100-continue).
func (c *exchange) send() (upload chan error, err error) {
	q := &c.request
	have := c.from.buffered()
	if !q.fields.chunked && q.fields.length <= int64(len(have)) {
		if n := max(q.fields.length, 0); n > 0 {
			b := body{dst: &c.upTo, look: c.admitted.Upload}
			if err := b.write(have[:n]); err != nil {
				return nil, err
			}
			c.from.r += int(n)
		}
		return nil, c.upTo.flush()
	}
	if err := c.upTo.flush(); err != nil {
		return nil, err
	}
	as, length := counted, q.fields.length
	if q.fields.chunked {
		as = chunked
	}
	upload = make(chan error, 1)
	go func() {
		b := body{dst: &c.upTo, src: &c.from, limit: c.server.limits.Head, look: c.admitted.Upload}
		err := b.relay(as, length)
		if _, refused := errors.AsType[refusedBody](err); refused {
			_ = c.up.SetReadDeadline(time.Unix(1, 0)) // no answer to it is wanted
		} else if err != nil {
			// The request is cut short: the upstream must not go on waiting for it, and has this long to say what it thinks.
			_ = c.up.CloseWrite()
			_ = c.up.SetReadDeadline(time.Now().Add(cutShort))
		}
		upload <- err
	}()
	return upload, nil
}

// settle waits for the upload to end, not for long since the answer is complete, and says whether the request was sent in full.
func (c *exchange) settle(upload chan error) (bool, error) {
	if upload == nil {
		return true, nil
	}
	timer := time.NewTimer(lateBody)
	defer timer.Stop()
	select {
	case err := <-upload:
		return err == nil, err
	case <-timer.C:
	}
	// Deadlines in the past wake both of its calls; the connections are not used again.
	past := time.Unix(1, 0)
	c.from.fixed = true
	for {
		_ = c.client.SetReadDeadline(past)
		_ = c.up.SetWriteDeadline(past)
		select {
		case err := <-upload:
			return false, err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// answer relays the response, interim ones included.
func (c *exchange) answer(method string, upgrade bool) error {
	p := &c.response
	for range maxInterim {
		if err := c.upFrom.hold(c.server.limits.Answer); err != nil {
			return err
		}
		head, err := c.upFrom.block(c.server.limits.Head, false)
		c.upFrom.release()
		if err != nil {
			return err
		}
		if err := p.parse(head); err != nil {
			return malformed{err}
		}
		if err := c.inspect(); err != nil {
			return err
		}
		switch {
		case p.status == http.StatusSwitchingProtocols:
			if !upgrade || !p.fields.upgrad || !is(p.fields.upgrade, "websocket") {
				return malformed{errors.New("it switched to a protocol that was not asked for")}
			}
			c.result.Status = p.status
			c.to.buf = p.append(c.to.buf, none, false, true)
			return c.to.flush()
		case p.status >= 200:
			return c.final(method)
		case c.request.minor == 1:
			c.to.buf = p.append(c.to.buf, none, false, false)
			if err := c.to.flush(); err != nil {
				return err
			}
		}
	}
	return malformed{fmt.Errorf("more than %d interim responses", maxInterim)}
}

// relayed is the framing in which the answer goes to the client.
func (c *exchange) relayed(method string) framing {
	as := c.response.framing(method)
	if as == counted && c.seen.Recoded {
		as = chunked
	}
	if as == chunked && c.request.minor == 0 {
		return untilClose
	}
	return as
}

// reusable says whether the upstream connection may carry another request of this client.
func (c *exchange) reusable(method string) bool {
	p := &c.response
	return !p.fields.close && (p.minor == 1 || p.fields.keep) && p.framing(method) != untilClose
}

// final relays the head and the body of the answer proper.
func (c *exchange) final(method string) error {
	p := &c.response
	c.result.Status = p.status
	as, length := p.framing(method), p.fields.length
	to := c.relayed(method)
	closing := to == untilClose || !c.request.keepAlive()
	if c.seen.Recoded && as == none && length > 0 {
		p.fields.length = -1 // of an answer without a body: the length it would have is not known
	}
	c.to.buf = p.append(c.to.buf, to, closing, false)
	b := body{dst: &c.to, src: &c.upFrom, limit: c.server.limits.Head, plain: to == untilClose}
	if as == none {
		return c.to.flush()
	}
	if c.seen.Filter != nil || c.seen.Trailer != nil && as == chunked {
		return c.filtered(as, to, length)
	}
	return b.relay(as, length)
}

// malformed is an answer of the upstream that cannot be passed on.
type malformed struct{ err error }

func (m malformed) Error() string { return "the upstream's answer is malformed: " + m.err.Error() }
func (m malformed) Unwrap() error { return m.err }

// fail ends a request that was sent but not answered in full: with 502 if the client has seen nothing yet, else by breaking the connection,
// so that half an answer is never taken for a whole one.
func (c *exchange) fail(err error) {
	c.result.Err = err
	c.drop()
	c.to.buf = c.to.buf[:0]
	if c.to.n > 0 {
		tunnel.Break(below(c.client))
		return
	}
	if refused, ok := errors.AsType[refusedBody](err); ok {
		c.result.Status = refused.refusal.Status
		c.refuse(refused.refusal)
		return
	}
	r := &Refusal{Status: http.StatusBadGateway, Rule: "upstream", Reason: "the upstream did not answer: " + err.Error()}
	if m, ok := errors.AsType[malformed](err); ok {
		r.Reason = m.Error()
	}
	if c.inspector != nil {
		r.Reason = c.inspector.Clean(r.Reason)
	}
	c.result.Status = r.Status
	c.refuse(r)
}

// upgraded splices a WebSocket. What either side has sent already lies in the buffers and goes first.
func (c *exchange) upgraded(ctx context.Context) {
	c.upFrom.release()
	client, plain := c.client.(*net.TCPConn)
	up, _ := c.up.(*net.TCPConn)
	if !plain || up == nil || c.seen.Filter != nil {
		c.converse()
		return
	}
	in, out := c.upFrom.buffered(), c.from.buffered()
	if err := c.to.write(in); err == nil {
		err = errors.Join(c.to.flush(), c.upTo.write(out), c.upTo.flush())
		c.result.Err = err
	}
	if c.result.Err != nil || ctx.Err() != nil {
		return
	}
	r, err := c.server.splicer.Splice(client, up, c.server.limits.Tunnel, nil)
	c.to.n += r.In
	c.result.Out += int64(len(out)) + r.Out
	if !tunnel.Orderly(err) {
		c.result.Err = err
	}
}
