package main

import (
	"bytes"
	"context"
	"net"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/frame"
)

// callAs makes a connection to the control address that says something, and returns what became of it.
func callAs(c *callers, say []byte) (far net.Conn, taken <-chan bool) {
	far, near := net.Pipe()
	done := make(chan bool, 1)
	go func() {
		ok := c.take(near)
		_ = near.Close()
		done <- ok
	}()
	go func() { _, _ = far.Write(say) }() // whoever is refused is not read to its end
	return far, done
}

func introduction(token string) []byte {
	var b bytes.Buffer
	_ = frame.WriteHello(&b, frame.Hello{Token: []byte(token), Facts: frame.Facts{Kernel: "k"}})
	return b.Bytes()
}

func TestCallers(t *testing.T) {
	var c callers
	call, token := c.expect()
	text := string(token)
	for name, say := range map[string][]byte{
		"another token": introduction("x" + text[1:]), "no token": introduction(""), "half a token": introduction(text[:32]),
		"another frame": frame.Append(nil, frame.Frame{Type: frame.TypePing, Payload: make([]byte, 8)}), "a huge frame": {1, 0, 0xff, 0xff, 0xff, 0xff},
		"HTTP": []byte("GET / HTTP/1.1\r\n\r\n"), "a length beyond": {1, 0, 0, 0, 0, 4, 0, 2, 200, 'x'},
	} {
		far, taken := callAs(&c, say)
		if <-taken {
			t.Errorf("%s: taken", name)
		}
		_ = far.Close()
	}
	far, taken := callAs(&c, append(introduction(text), "rest"...))
	conn, err := call.wait(t.Context(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	want := append(introduction(""), "rest"...)
	got := make([]byte, len(want))
	for n := 0; n < len(got); {
		m, err := conn.Read(got[n:])
		if err != nil {
			t.Fatal(err)
		}
		n += m
	}
	if !bytes.Equal(got, want) {
		t.Errorf("read %q, want %q", got, want)
	}
	select {
	case <-taken:
		t.Error("the call is over before it was closed")
	default:
	}
	_ = conn.Close()
	if !<-taken {
		t.Error("not taken")
	}
	_ = far.Close()
	far, taken = callAs(&c, introduction(text))
	if <-taken {
		t.Error("a token counts twice")
	}
	_ = far.Close()
}

func TestCallersForget(t *testing.T) {
	var c callers
	call, token := c.expect()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := call.wait(ctx, time.Minute); err == nil {
		t.Error("nobody called")
	}
	far, taken := callAs(&c, introduction(string(token)))
	defer far.Close()
	if <-taken || len(c.expected)+len(c.unproven) != 0 {
		t.Error("a call that was given up is taken")
	}
}

// However many silent connections there are, the newest have their turn.
func TestCallersCrowded(t *testing.T) {
	var c callers
	var outcomes []<-chan bool
	for range 10 * maxUnproven {
		far, taken := callAs(&c, nil)
		defer far.Close()
		outcomes = append(outcomes, taken)
	}
	call, token := c.expect()
	far, taken := callAs(&c, introduction(string(token)))
	defer far.Close()
	conn, err := call.wait(t.Context(), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if !<-taken {
		t.Error("not taken")
	}
	refused := 0
	for _, outcome := range outcomes {
		select {
		case ok := <-outcome:
			if ok {
				t.Error("a silent connection is taken")
			}
			refused++
		case <-time.After(20 * time.Millisecond):
		}
	}
	if refused < 9*maxUnproven {
		t.Errorf("only %d of %d silent connections were given up", refused, len(outcomes))
	}
}
