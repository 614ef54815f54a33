package tunnel

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"testing/iotest"
	"time"
)

// realHello returns the bytes that crypto/tls's client sends.
func realHello(t testing.TB, c *tls.Config) []byte {
	t.Helper()
	a, z := net.Pipe()
	go func() { _ = tls.Client(a, c).Handshake() }()
	buf := make([]byte, 8192)
	n, err := z.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = a.Close(), z.Close()
	return buf[:n]
}

func TestReadHello(t *testing.T) {
	good := realHello(t, &tls.Config{ServerName: "good.example.com"})
	for name, client := range map[string]io.Reader{
		"at once": bytes.NewReader(nil), "one by one": iotest.OneByteReader(bytes.NewReader(good[1:])), "with more": bytes.NewReader(append(good[1:], "early data"...)),
	} {
		first := good[:1:1]
		if name == "at once" {
			first = good
		}
		h, err := ReadHello(first, client)
		if err != nil || h.ServerName != "good.example.com" || h.Encrypted || !bytes.HasPrefix(h.Raw, good) {
			t.Errorf("%s: %+v %v", name, h, err)
		}
	}
	if h, err := ReadHello(realHello(t, &tls.Config{InsecureSkipVerify: true}), nil); err != nil || h.ServerName != "" {
		t.Errorf("no name: %+v %v", h, err)
	}
	if _, err := ReadHello(good[:20:20], bytes.NewReader(nil)); !errors.Is(err, io.EOF) || errors.Is(err, ErrNotTLS) {
		t.Errorf("cut: %v", err)
	}
	// A hello that announces more than the bound is refused without reading it all.
	endless := &counter{}
	if _, err := ReadHello([]byte{0x16, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff}, endless); err == nil || endless.n > MaxHello {
		t.Errorf("endless: %v after %d bytes", err, endless.n)
	}
}

// counter is an endless handshake record stream.
type counter struct{ n int }

func (c *counter) Read(p []byte) (int, error) {
	record := []byte{0x16, 3, 1, 0, 1, 0}
	n := copy(p, bytes.Repeat(record, len(p)/len(record)+1))
	c.n += n
	return n, nil
}

// FuzzHello: nothing panics or reads without bound, and what is kept for replay is what was sent.
func FuzzHello(f *testing.F) {
	good := realHello(f, &tls.Config{ServerName: "good.example.com"})
	f.Add(good)
	f.Add(realHello(f, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ReadHello(nil, bytes.NewReader(b))
		if !bytes.HasPrefix(b, h.Raw) || len(h.Raw) > MaxHello {
			t.Fatalf("%d bytes kept of %d", len(h.Raw), len(b))
		}
		if err == nil && (len(b) == 0 || b[0] != 0x16) {
			t.Fatalf("hello in %x", b)
		}
	})
}

func TestRecognise(t *testing.T) {
	for _, test := range []struct {
		in   string
		want Kind
	}{
		{"", Partial}, {"\x16", TLS}, {"\x16\x03\x01", TLS}, {"\x16\x01", Opaque}, {"G", Partial}, {"GET", Partial}, {"GET ", HTTP}, {"GET / HTTP/1.1", HTTP},
		{"M-SEARCH *", HTTP}, {"SSH-2", Opaque}, {"SSH-", Partial}, {" GET", Opaque}, {"\x00", Opaque}, {"EHLO\r\n", Opaque}, {"PRI * HTTP/2.0", HTTP},
		{"ABCDEFGHIJKLMNOPQRSTUVWXYZ", Opaque}, {"ABCDEFGHIJKLMNOPQRSTUVWXYZ ", Opaque}, {"GE\tT / ", Opaque}, {"\x80\x2e\x01", Opaque},
	} {
		if got := Recognise([]byte(test.in)); got != test.want {
			t.Errorf("%q: %d, want %d", test.in, got, test.want)
		}
	}
}

// pair is a TCP connection over loopback.
func pair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = c.Close(), s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

func TestSplice(t *testing.T) {
	client, front := pair(t)
	back, server := pair(t)
	type end struct {
		r   Result
		err error
	}
	done := make(chan end, 1)
	go func() {
		r, err := new(Splicer).Splice(front, back, time.Minute, nil)
		done <- end{r, err}
	}()
	data := make([]byte, 5<<20)
	_, _ = rand.Read(data)
	go func() { _, _ = client.Write(data); _ = client.CloseWrite() }()
	got, err := io.ReadAll(server)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("out: %d bytes, %v", len(got), err)
	}
	// The client has ended; the server goes on.
	go func() { _, _ = server.Write(data); _ = server.Close() }()
	got, err = io.ReadAll(client)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("in: %d bytes, %v", len(got), err)
	}
	if e := <-done; e.err != nil || e.r.In != int64(len(data)) || e.r.Out != int64(len(data)) {
		t.Errorf("%+v", e)
	}
}

func TestSpliceIdle(t *testing.T) {
	client, front := pair(t)
	back, server := pair(t)
	done := make(chan error, 1)
	go func() {
		_, err := new(Splicer).Splice(front, back, 500*time.Millisecond, nil)
		done <- err
	}()
	// One direction alone keeps the tunnel open, in small pieces and then in bulk.
	for range 8 {
		_, _ = server.Write(make([]byte, 32<<10))
		_, _ = io.ReadFull(client, make([]byte, 32<<10))
		time.Sleep(100 * time.Millisecond)
	}
	select {
	case err := <-done:
		t.Fatalf("ended while bytes moved: %v", err)
	default:
	}
	if err := <-done; !errors.Is(err, ErrIdle) {
		t.Errorf("idle: %v", err)
	}
	if _, err := client.Read(make([]byte, 1)); err == nil {
		t.Error("client still open")
	}
}
