package upstream

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// fixed answers every question with the same addresses, slowly.
type fixed struct {
	addrs []netip.Addr
	err   error
	asked atomic.Int32
	last  atomic.Value
}

func (f *fixed) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	f.asked.Add(1)
	f.last.Store(host)
	time.Sleep(10 * time.Millisecond)
	return f.addrs, f.err
}

func addrs(list string) (out []netip.Addr) {
	for s := range strings.SplitSeq(list, ",") {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func TestResolve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fixed{addrs: addrs("192.0.2.1,::ffff:192.0.2.1,2001:db8::1,fe80::1%eth0")}
		d := New(Config{Resolver: f})
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				got, err := d.Resolve(t.Context(), "a.example.com")
				if err != nil || !slices.Equal(got, addrs("192.0.2.1,2001:db8::1")) {
					t.Error(got, err)
				}
			})
		}
		wg.Wait()
		if n := f.asked.Load(); n != 1 || f.last.Load() != "a.example.com." {
			t.Errorf("asked %d times, for %v", n, f.last.Load())
		}
		time.Sleep(defaultTTL + time.Second)
		_, _ = d.Resolve(t.Context(), "a.example.com")
		if f.asked.Load() != 2 {
			t.Error("kept for too long")
		}
		// A single label is left to the host's search list.
		_, _ = d.Resolve(t.Context(), "mirror")
		if f.last.Load() != "mirror" {
			t.Error(f.last.Load())
		}
		f.err = errors.New("server misbehaving")
		for range 2 {
			if _, err := d.Resolve(t.Context(), "b.example.com"); !errors.Is(err, f.err) {
				t.Error(err)
			}
		}
		if f.asked.Load() != 5 {
			t.Error("a failure was kept")
		}
		f.err, f.addrs = nil, addrs("fe80::1%eth0")
		if got, err := d.Resolve(t.Context(), "c.example.com"); err == nil {
			t.Error(got)
		}
		if _, err := d.Resolve(t.Context(), ""); err == nil {
			t.Error("no name")
		}
	})
}

func TestDial(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	d := New(Config{Timeout: 2 * time.Second})
	for _, test := range []struct {
		list string
		ok   bool
	}{
		{"127.0.0.1", true}, {"127.0.0.2,127.0.0.1", true}, {"::1,127.0.0.2,127.0.0.1", true}, {"127.0.0.2", false}, {"127.0.0.2,127.0.0.3,::1", false},
	} {
		c, err := d.Dial(t.Context(), addrs(test.list), port)
		if (err == nil) != test.ok {
			t.Errorf("%s: %v", test.list, err)
		}
		if c != nil {
			if got := c.RemoteAddr().String(); got != l.Addr().String() {
				t.Errorf("%s: dialled %s", test.list, got)
			}
			_ = c.Close()
		}
	}
	if _, err := d.Dial(t.Context(), nil, port); err == nil {
		t.Error("dialled nothing")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Dial(ctx, addrs("127.0.0.2,127.0.0.1"), port); err == nil {
		t.Error("dialled after the end")
	}
}

func TestInterleave(t *testing.T) {
	if got := interleave(addrs("2001:db8::1,2001:db8::2,192.0.2.1,192.0.2.2,192.0.2.3")); !slices.Equal(got, addrs("2001:db8::1,192.0.2.1,2001:db8::2,192.0.2.2,192.0.2.3")) {
		t.Error(got)
	}
}
