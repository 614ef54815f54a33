package server

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

// One place has no more connections than its share; each that ends makes room.
func TestBound(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	bound := (&Server{}).Bound(l).(*boundListener)
	bound.relays = newCrowd(2)
	accepted := make(chan net.Conn, 10)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := bound.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-ended })
	dial := func() net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	take := func() net.Conn {
		select {
		case c := <-accepted:
			t.Cleanup(func() { _ = c.Close() })
			return c
		case <-time.After(5 * time.Second):
			t.Fatal("not accepted")
			return nil
		}
	}
	dial()
	dial()
	first, _ := take(), take()
	third := dial()
	_ = third.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := third.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("one too many is held: %v", err)
	}
	_ = first.Close()
	_ = first.Close() // it counts once
	fourth := dial()
	c := take()
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Error(err)
	}
	_ = fourth.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := fourth.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after CloseWrite: %v", err)
	}
	if n := bound.relays.now["127.0.0.1"]; n != 2 {
		t.Errorf("%d are counted", n)
	}
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}

func TestBoundKeys(t *testing.T) {
	l := (&Server{proxies: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/32")}}).Bound(nil).(*boundListener)
	for at, want := range map[string]*crowd{
		"203.0.113.1:1": l.others, "[2001:db8::1]:1": l.others, "[::ffff:203.0.113.1]:1": l.others, "127.0.0.1:1": l.relays, "[::1]:1": l.relays, "192.0.2.7:1": l.relays,
	} {
		before := counted(want)
		if _, ok := l.enter(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(at))); !ok || counted(want) != before+1 {
			t.Errorf("%s is not counted where it should be", at)
		}
	}
	if l.others.now["203.0.113.1"] != 2 || l.others.now["2001:db8::/64"] != 1 {
		t.Errorf("%v", l.others.now)
	}
	for i := range maxConnections {
		_, ok := l.enter(&net.TCPAddr{IP: net.ParseIP("198.51.100.1"), Port: i})
		if !ok {
			t.Fatalf("refused at %d", i)
		}
	}
	if _, ok := l.enter(&net.TCPAddr{IP: net.ParseIP("198.51.100.1"), Port: 9}); ok {
		t.Error("one more than there may be")
	}
}

func counted(c *crowd) (n int) {
	for _, k := range c.now {
		n += k
	}
	return n
}
