package main

import (
	"context"
	"os/exec"
	"runtime"
)

const (
	loopback    = "127.0.0.1"
	directName  = "direct"
	haproxyHTTP = "HAProxy, HTTP"
)

// streamRows moves one TCP stream up and down.
func streamRows(ctx context.Context, b *bench) ([]row, error) {
	s, err := b.serve(ctx)
	if err != nil {
		return nil, err
	}
	defer s.stop()
	in, err := b.inside(ctx, s, nil, nil)
	if err != nil {
		return nil, err
	}
	defer in.stop()
	out, err := b.outside(ctx)
	if err != nil {
		return nil, err
	}
	defer out.stop()
	var ha *proxy
	if b.have("haproxy", "haproxy") {
		if ha, err = b.haproxy(ctx, "tcp", s.Stream, runtime.NumCPU()); err != nil {
			b.skip("haproxy", err.Error())
		} else {
			defer ha.stop()
		}
	}
	var rows []row
	for _, way := range []struct {
		what string
		down bool
	}{{"up", false}, {"down", true}} {
		t := task{Do: "stream", Host: loopback, Port: s.Stream, Down: way.down, Count: 1 << 30}
		ours := t
		ours.Host = name
		subjects := []subject{in.via("tunnel", ours), out.via(directName, t)}
		if ha != nil {
			through := t
			through.Port = ha.port
			subjects = append(subjects, out.via("HAProxy, TCP", through))
		}
		mine, others, err := b.settle(takeTurns(ctx, b.rounds(7), subjects))
		if err != nil {
			return nil, err
		}
		r := row{what: "one TCP stream, " + way.what, unit: "GB/s", higher: true, ours: mine}
		limits := map[string]float64{directName: 0.8, "HAProxy, TCP": 1}
		for _, o := range others {
			r.others = append(r.others, against(o, atLeast(limits[o.name])))
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// tlsRows makes new TLS connections, one after the other. What the tables hold is the time above that of a direct connection.
func tlsRows(ctx context.Context, b *bench) ([]row, error) {
	s, err := b.serve(ctx)
	if err != nil {
		return nil, err
	}
	defer s.stop()
	in, err := b.inside(ctx, s, nil, nil)
	if err != nil {
		return nil, err
	}
	defer in.stop()
	out, err := b.outside(ctx)
	if err != nil {
		return nil, err
	}
	defer out.stop()
	const batch = 20
	t := task{Do: "tls", Host: loopback, Port: s.TLS, Count: batch}
	ours := t
	ours.Host = name
	subjects := []subject{in.via("tunnel", ours), out.via(directName, t)}
	for _, p := range []struct {
		name  string
		start func(context.Context) (*proxy, error)
	}{{"tinyproxy", func(ctx context.Context) (*proxy, error) { return b.tinyproxy(ctx) }}, {"squid", b.squid}} {
		if !b.have(p.name, p.name) {
			continue
		}
		running, err := p.start(ctx)
		if err != nil {
			b.skip(p.name, err.Error())
			continue
		}
		defer running.stop()
		through := t
		through.Port, through.Connect = running.port, s.TLS
		subjects = append(subjects, out.via(p.name+", CONNECT", through))
	}
	mine, others, err := b.settle(takeTurns(ctx, b.rounds(50), subjects))
	if err != nil {
		return nil, err
	}
	return tlsReport(mine, others), nil
}

// tlsReport compares whole connections, and what each way adds to a direct one.
func tlsReport(mine series, others []series) []row {
	whole := row{what: "new TLS connection, whole", unit: "ms", ours: mine}
	for _, o := range others {
		whole.others = append(whole.others, against(o, noAim()))
	}
	added, ok := addedRow("new TLS connection, added to the direct p50", mine, others, 0.3, func(string) aim { return belowBoth() })
	if !ok {
		return []row{whole}
	}
	return []row{whole, added}
}

// httpRows sends plain HTTP requests through one processor: gateway or proxy has the first, client and server share the second.
func httpRows(ctx context.Context, b *bench) ([]row, error) {
	first, second := b.pins()
	s, err := b.serve(ctx, second...)
	if err != nil {
		return nil, err
	}
	defer s.stop()
	in, err := b.inside(ctx, s, first, second)
	if err != nil {
		return nil, err
	}
	defer in.stop()
	out, err := b.outside(ctx, second...)
	if err != nil {
		return nil, err
	}
	defer out.stop()
	subjects, stop := b.httpSubjects(ctx, s, in, out, first)
	defer stop()
	mine, others, err := b.settle(takeTurns(ctx, b.rounds(10), subjects))
	if err != nil {
		return nil, err
	}
	r := row{what: "plain HTTP requests, 16 connections, one processor for gateway or proxy", unit: "1/s", higher: true, ours: mine}
	for _, o := range others {
		a := noAim()
		if o.name == haproxyHTTP {
			a = atLeast(0.5)
		}
		r.others = append(r.others, against(o, a))
	}
	return []row{r}, nil
}

// pins are what a command line begins with to stay on the first processor, and on the second.
func (b *bench) pins() (first, second []string) {
	if _, err := exec.LookPath("taskset"); err != nil || runtime.NumCPU() < 2 {
		b.skip("pinning to one processor", "it needs taskset and two processors")
		return nil, nil
	}
	return []string{"taskset", "-c", "0"}, []string{"taskset", "-c", "1"}
}

// httpSubjects starts the proxies that are there, on the gateway's processor.
func (b *bench) httpSubjects(ctx context.Context, s *serving, in, out *worker, pin []string) (subjects []subject, stop func()) {
	t := task{Do: "http", Host: loopback, Port: s.HTTP, Target: "/", Count: 1000, Clients: 16}
	ours := t
	ours.Host = name
	subjects = []subject{in.via("gateway", ours), out.via(directName, t)}
	var running []*proxy
	add := func(name string, p *proxy, err error, t task) {
		if err != nil {
			b.skip(name, err.Error())
			return
		}
		running = append(running, p)
		t.Port = p.port
		subjects = append(subjects, out.via(name, t))
	}
	if b.have("haproxy", "haproxy") {
		p, err := b.haproxy(ctx, "http", s.HTTP, 1, pin...)
		add(haproxyHTTP, p, err, t)
	}
	if b.have("tinyproxy", "tinyproxy") {
		whole := t
		whole.Target, whole.Close = urlOf(s.HTTP), true
		p, err := b.tinyproxy(ctx, pin...)
		add("tinyproxy, which keeps no connection", p, err, whole)
	}
	return subjects, func() {
		for _, p := range running {
			p.stop()
		}
	}
}
