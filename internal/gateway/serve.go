package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/policy"
)

// Serve works until ctx ends or one of the doors breaks, and then closes the listeners, cuts what is open, writes what is
// still to be recorded, and returns when everything it started has ended. The error says which door broke; it is nil after ctx.
func (g *Gateway) Serve(ctx context.Context, l Listeners) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var broken []error
	start := func(serve func(context.Context) error) {
		wg.Go(func() {
			if err := serve(ctx); err != nil {
				mu.Lock()
				broken = append(broken, err)
				mu.Unlock()
				cancel() // half a gateway is none: the sandbox must not go on with one of its doors unwatched
			}
		})
	}
	if l.TCP != nil {
		start(func(ctx context.Context) error { return g.serveTCP(ctx, l.TCP) })
	}
	start(g.http2.Run)
	if g.config.Lend != nil {
		start(g.watchGrants)
	}
	if l.DNSPacket != nil {
		start(func(ctx context.Context) error { return g.dns.ServePacket(ctx, l.DNSPacket) })
	}
	if l.DNSStream != nil {
		start(func(ctx context.Context) error { return g.dns.ServeStream(ctx, l.DNSStream) })
	}
	if l.Refused != nil {
		start(func(ctx context.Context) error { return g.serveRefused(ctx, l) })
	}
	var late sync.WaitGroup
	done := make(chan struct{})
	late.Go(func() { g.ledger.run(done) })
	<-ctx.Done()
	wg.Wait()
	close(done)
	late.Wait()
	return errors.Join(broken...)
}

// watchEvery is how soon an open connection is cut after its credential was removed, or has got conditions that it is outside of. New requests are refused at once.
const watchEvery = 200 * time.Millisecond

// watchGrants cuts crossings whose credentials were removed meanwhile, or are not for them any more.
func (g *Gateway) watchGrants(ctx context.Context) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			for _, p := range g.open.all() {
				p.revoked()
			}
		}
	}
}

func (g *Gateway) serveTCP(ctx context.Context, l *net.TCPListener) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		<-ctx.Done()
		_ = l.Close()
		for _, p := range g.open.all() {
			p.cutOff("the sandbox ended")
		}
	})
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if passing(err) {
				time.Sleep(5 * time.Millisecond)
				continue
			}
			return fmt.Errorf("accept: %w", err)
		}
		g.counters.connections.Add(1)
		if g.held.Add(1) > int64(g.limits.Connections) {
			g.held.Add(-1)
			if g.config.Control != nil && g.calls(c) { // a sandbox that holds all it may must not keep its runner from calling; Control has bounds of its own
				wg.Go(func() { g.handle(ctx, c) })
				continue
			}
			g.tooMany(c)
			continue
		}
		wg.Go(func() {
			defer g.held.Add(-1)
			g.handle(ctx, c)
		})
	}
}

// passing tells accept errors that pass: no descriptors or memory for now, or a client that was gone before it was accepted.
func passing(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOBUFS) ||
		errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.ECONNABORTED) || errors.Is(err, unix.EINTR)
}

// tooMany refuses a connection over the limit. Such refusals are only ever recorded summed up: whoever causes one causes thousands.
func (g *Gateway) tooMany(c *net.TCPConn) {
	g.counters.refused.Add(1)
	reset(c)
	d := policy.Decision{Rule: RuleConnectionLimit, Reason: fmt.Sprintf("more than %d connections are open at once", g.limits.Connections)}
	crossing := policy.Crossing{Protocol: policy.TCP}
	g.denials.add(crossing, d, 1)
	g.ledger.sum(crossing, d, "summed up")
}
