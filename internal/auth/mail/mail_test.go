package mail

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"math/big"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/secret"
)

// server is a small SMTP server on loopback, for one conversation after the other.
type server struct {
	address  string
	config   *tls.Config
	roots    *x509.CertPool
	implicit bool
	starttls bool
	auth     string   // what AUTH PLAIN must say
	log      chan got // one for each message
}

type got struct {
	from, to, auth string
	tls            bool
	data           []byte
}

func start(t *testing.T, s *server) *server {
	t.Helper()
	cert, pool := certificate(t)
	s.config, s.roots, s.log = &tls.Config{Certificates: []tls.Certificate{cert}}, pool, make(chan got, 10)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { _ = l.Close(); <-done })
	s.address = l.Addr().String()
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.serve(conn)
		}
	}()
	return s
}

func (s *server) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	var g got
	if s.implicit {
		conn, g.tls = tls.Server(conn, s.config), true
	}
	r := bufio.NewReader(conn)
	say := func(format string, args ...any) { fmt.Fprintf(conn, format+"\r\n", args...) }
	say("220 test")
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		verb, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch verb {
		case "EHLO":
			say("250-test")
			if s.starttls && !g.tls {
				say("250-STARTTLS")
			}
			say("250-AUTH PLAIN")
			say("250 OK")
		case "STARTTLS":
			say("220 go on")
			conn, g.tls = tls.Server(conn, s.config), true
			r = bufio.NewReader(conn)
		case "AUTH":
			plain, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(rest, "PLAIN "))
			if g.auth = string(plain); g.auth != s.auth {
				say("535 no")
				continue
			}
			say("235 OK")
		case "MAIL":
			g.from = rest
			say("250 OK")
		case "RCPT":
			g.to = rest
			say("250 OK")
		case "DATA":
			say("354 go on")
			for {
				line, err := r.ReadString('\n')
				if err != nil {
					return
				}
				if line == ".\r\n" {
					break
				}
				g.data = append(g.data, line...)
			}
			s.log <- g
			say("250 OK")
		case "QUIT":
			say("221 bye")
			return
		default:
			say("500 what")
		}
	}
}

func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

func sender(t *testing.T, s Server) *SMTP {
	t.Helper()
	s.From = mail.Address{Name: "Cofferdam", Address: "service@example.com"}
	m, err := NewSMTP(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestSend(t *testing.T) {
	for _, c := range []struct {
		name   string
		server *server
		with   Server
		tls    bool
	}{
		{"starttls", &server{starttls: true, auth: "\x00me\x00pw"}, Server{User: "me", Password: secret.New([]byte("pw"))}, true},
		{"implicit", &server{implicit: true}, Server{Security: ImplicitTLS}, true},
		{"in clear on this machine", &server{}, Server{}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := start(t, c.server)
			c.with.Address, c.with.TLS = s.address, &tls.Config{RootCAs: s.roots}
			body := "Grüße\n.\n" + strings.Repeat("long ", 50) + "\nhttps://example.com/reset#x=1\n"
			if err := sender(t, c.with).Send(t.Context(), Message{To: "ada@example.com", Subject: "Über “you”", Body: body}); err != nil {
				t.Fatal(err)
			}
			g := <-s.log
			if g.tls != c.tls || g.auth != s.auth || !strings.HasPrefix(g.from, "FROM:<service@example.com>") || g.to != "TO:<ada@example.com>" {
				t.Errorf("%+v", g)
			}
			m, err := mail.ReadMessage(bytes.NewReader(bytes.ReplaceAll(g.data, []byte("\r\n.."), []byte("\r\n."))))
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(quotedprintable.NewReader(m.Body))
			if err != nil || strings.ReplaceAll(strings.TrimRight(string(text), "\r\n"), "\r\n", "\n") != strings.TrimRight(body, "\n") {
				t.Errorf("%q, %v", text, err)
			}
			if len(m.Header["To"]) != 1 || m.Header.Get("To") != "<ada@example.com>" {
				t.Errorf("%v", m.Header)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	s := start(t, &server{starttls: true, auth: "\x00me\x00pw"})
	other := start(t, &server{})
	for name, with := range map[string]Server{
		"an unknown certificate": {Address: s.address},
		"a wrong password":       {Address: s.address, TLS: &tls.Config{RootCAs: s.roots}, User: "me", Password: secret.New([]byte("wrong"))},
		"nobody there":           {Address: "127.0.0.1:1"},
	} {
		if err := sender(t, with).Send(t.Context(), Message{To: "ada@example.com"}); fault.KindOf(err) != fault.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := sender(t, Server{Address: other.address}).Send(ctx, Message{To: "ada@example.com"}); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("given up: %v", err)
	}
	if len(s.log)+len(other.log) != 0 {
		t.Error("something was sent")
	}
}

// notLoopback is a connection whose other end is said to be elsewhere.
type notLoopback struct{ net.Conn }

func (notLoopback) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 25} }

func TestInClearElsewhere(t *testing.T) {
	s := start(t, &server{})
	conn, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := sender(t, Server{Address: s.address}).greet(notLoopback{conn}); err == nil {
		t.Error("mail goes over the network in clear")
	}
}

func TestInjection(t *testing.T) {
	s := start(t, &server{})
	m := sender(t, Server{Address: s.address})
	for _, bad := range []Message{
		{To: "ada@example.com\r\nBcc: eve@example.com"},
		{To: "ada@example.com, eve@example.com"},
		{To: "Ada <ada@example.com>"},
		{To: "<ada@example.com>"},
		{To: ""},
		{To: "ada@example.com", Subject: "x\r\nBcc: eve@example.com"},
		{To: "ada@example.com", Subject: "x\ny"},
	} {
		if err := m.Send(t.Context(), bad); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%+v: %v", bad, err)
		}
		if err := NewPrint(io.Discard).Send(t.Context(), bad); fault.KindOf(err) != fault.Invalid {
			t.Errorf("printed: %+v: %v", bad, err)
		}
	}
	if len(s.log) != 0 {
		t.Error("something was sent")
	}
}

func TestSettings(t *testing.T) {
	from := mail.Address{Address: "service@example.com"}
	for name, bad := range map[string]Server{
		"no port":     {Address: "mail.example.com", From: from},
		"no sender":   {Address: "mail.example.com:587"},
		"half a user": {Address: "mail.example.com:587", From: from, User: "me"},
		"a header":    {Address: "mail.example.com:587", From: mail.Address{Name: "x\r\nBcc: y", Address: from.Address}},
		"security":    {Address: "mail.example.com:587", From: from, Security: 9},
	} {
		if _, err := NewSMTP(bad); fault.KindOf(err) != fault.Invalid || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for s := StartTLS; s <= ImplicitTLS; s++ {
		if strings.HasPrefix(s.String(), "security(") {
			t.Errorf("%d has no name", s)
		}
	}
	if !strings.HasPrefix((ImplicitTLS + 1).String(), "security(") {
		t.Error("what is not known has a name")
	}
}

func TestPrint(t *testing.T) {
	var b strings.Builder
	if err := NewPrint(&b).Send(t.Context(), Message{To: "ada@example.com", Subject: "Hi", Body: "a\x1b[2Jb\nc"}); err != nil {
		t.Fatal(err)
	}
	if got := b.String(); strings.Contains(got, "\x1b") || !strings.Contains(got, "mail to ada@example.com: Hi\n\na") {
		t.Errorf("%q", got)
	}
}
