package gateway

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/netname"
	"github.com/cofferdam/cofferdam/internal/policy"
)

func TestAsk(t *testing.T) {
	port := serve(t, echo)
	yaml := "egress:\n  default: ask\n  networks: [127.0.0.0/8]\n"
	for _, test := range []struct {
		name   string
		ask    func(context.Context, policy.Crossing, frame.Owner) policy.Decision
		passed bool
	}{
		{"yes", func(context.Context, policy.Crossing, frame.Owner) policy.Decision {
			return policy.Decision{Verdict: policy.Allow, Rule: "asked"}
		}, true},
		{"no", func(context.Context, policy.Crossing, frame.Owner) policy.Decision {
			return policy.Decision{Rule: "asked"}
		}, false},
		{"nobody in time", func(ctx context.Context, _ policy.Crossing, _ frame.Owner) policy.Decision {
			<-ctx.Done()
			return policy.Decision{Rule: "asked"}
		}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			var asked atomic.Int32
			b := start(t, yaml, func(c *Config) {
				c.Limits.Ask = 300 * time.Millisecond
				c.Ask = func(ctx context.Context, x policy.Crossing, o frame.Owner) policy.Decision {
					asked.Add(1)
					time.Sleep(100 * time.Millisecond)
					return test.ask(ctx, x, o)
				}
			})
			b.zone.set("new.example.com", "127.0.0.1")
			var wg sync.WaitGroup
			for range 4 {
				c := b.to("new.example.com", port)
				defer c.Close()
				_, _ = c.Write([]byte("\x00hello"))
				wg.Go(func() {
					_, err := io.ReadFull(c, make([]byte, 6))
					if (err == nil) != test.passed {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if n := asked.Load(); n != 1 {
				t.Errorf("asked %d times", n)
			}
		})
	}
	t.Run("nobody", func(t *testing.T) {
		b := start(t, yaml, nil)
		if r := b.g.Lookup(t.Context(), "new.example.com", netip.AddrPort{}); r.V4.IsValid() {
			t.Error("name has an address")
		}
		c := b.connect(netip.AddrPortFrom(netip.MustParseAddr("8.8.4.4"), port))
		_, _ = c.Write([]byte("GET / HTTP/1.1\r\nHost: 8.8.4.4:" + fmt.Sprint(port) + "\r\n\r\n"))
		r, err := http.ReadResponse(newReader(c), nil)
		if err != nil || r.StatusCode != 403 || r.Header.Get("Cofferdam-Denied") != RuleNobodyToAsk {
			t.Errorf("%+v %v", r, err)
		}
	})
}

func TestOwnerAndDenied(t *testing.T) {
	var asked atomic.Int32
	b := start(t, "", func(c *Config) {
		c.Owner = func(_ context.Context, q frame.Query) frame.Owner {
			asked.Add(1)
			return frame.Owner{PID: 7, Name: "npm", ID: q.ID}
		}
	})
	for range 3 {
		if c := b.connect(netip.MustParseAddrPort("203.0.113.5:443")); !isReset(c) {
			t.Error("not reset")
		}
	}
	list := b.g.Denials()
	if len(list) != 1 || list[0].Count != 3 || list[0].Owner.Name != "npm" || asked.Load() != 1 || len(b.denied) != 1 {
		t.Errorf("%+v, asked %d, told %d", list, asked.Load(), len(b.denied))
	}
	if s := b.g.Stats(); s.Denied != 3 || s.Connections != 3 {
		t.Errorf("%+v", s)
	}
	if e := b.deniedBy(list[0].Decision.Rule); e.Process != "npm" || e.PID != 7 || e.Address != "203.0.113.5" {
		t.Errorf("%+v", e)
	}
}

// TestFlood counts every denial of a flood although few are recorded apart.
func TestFlood(t *testing.T) {
	b := start(t, "", nil)
	const n = 5000
	for i := range n {
		b.g.Lookup(t.Context(), netname.Host(fmt.Sprintf("x%d.evil.example.com", i%3000)), netip.AddrPort{})
	}
	_ = b.stop()
	var counted uint64
	events := b.log.all()
	for _, e := range events {
		counted += max(e.Count, 1)
	}
	if counted != n || len(events) > 3000 || b.g.Stats().Denied != n {
		t.Errorf("%d counted in %d events, %d in stats", counted, len(events), b.g.Stats().Denied)
	}
}

func TestControl(t *testing.T) {
	b := start(t, "", func(c *Config) {
		c.Control = func(c net.Conn) bool { defer c.Close(); _, _ = c.Write([]byte("runner")); return true }
	})
	for _, dest := range []string{"198.18.0.1:1", "[fdcf:d0::1]:1"} {
		got, err := io.ReadAll(b.connect(netip.MustParseAddrPort(dest)))
		if string(got) != "runner" || err != nil {
			t.Errorf("%s: %q %v", dest, got, err)
		}
	}
}
