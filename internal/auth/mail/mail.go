// Package mail (CONTROL) sends the few messages that the service writes: by SMTP, or to whoever runs the service.
package mail

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"net/netip"
	"net/smtp"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/secret"
)

// Message is plain text to one person.
type Message struct {
	To      string // an address, nothing else
	Subject string
	Body    string
}

// check refuses what could become a header or a further recipient. Addresses and names come from strangers.
func (m Message) check() error {
	a, err := mail.ParseAddress(m.To)
	if err != nil || a.Address != m.To || a.Name != "" || strings.ContainsFunc(m.To, unicode.IsControl) {
		return fault.New(fault.Invalid, "the mail's recipient is not one address")
	}
	if strings.ContainsFunc(m.Subject, unicode.IsControl) {
		return fault.New(fault.Invalid, "the mail's subject has control characters")
	}
	return nil
}

// compose writes the message as it goes over the wire.
func (m Message) compose(from mail.Address, now time.Time) ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	_, domain, _ := strings.Cut(from.Address, "@")
	var b bytes.Buffer
	for _, h := range [][2]string{
		{"From", from.String()},
		{"To", (&mail.Address{Address: m.To}).String()},
		{"Subject", mime.QEncoding.Encode("utf-8", m.Subject)},
		{"Date", now.Format(time.RFC1123Z)},
		{"Message-ID", "<" + strings.ToLower(rand.Text()) + "@" + domain + ">"},
		{"Auto-Submitted", "auto-generated"}, // RFC 3834: no holiday replies
		{"MIME-Version", "1.0"},
		{"Content-Type", "text/plain; charset=utf-8"},
		{"Content-Transfer-Encoding", "quoted-printable"},
	} {
		fmt.Fprintf(&b, "%s: %s\r\n", h[0], h[1])
	}
	b.WriteString("\r\n")
	w := quotedprintable.NewWriter(&b)
	_, err := io.WriteString(w, m.Body)
	if err := errors.Join(err, w.Close()); err != nil {
		return nil, fmt.Errorf("encode a mail: %w", err)
	}
	return b.Bytes(), nil
}

// Security says how a connection to a mail server is protected. The zero value is the right one for port 587.
type Security uint8

// The ways.
const (
	StartTLS    Security = iota // asked for, and nothing is sent without, except to a server on this machine
	ImplicitTLS                 // from the first byte: port 465
)

var securityNames = [...]string{"starttls", "tls"}

// String names the way.
func (s Security) String() string {
	if int(s) < len(securityNames) {
		return securityNames[s]
	}
	return fmt.Sprintf("security(%d)", uint8(s))
}

// Server is a mail server that takes our messages.
type Server struct {
	Address  string // HOST:PORT
	Security Security
	User     string // no authentication if empty
	Password secret.Bytes
	From     mail.Address
	TLS      *tls.Config // nil: the system's certificate authorities
	Timeout  time.Duration
}

// SMTP sends through a server. It is safe for concurrent use; each message has its own connection.
type SMTP struct {
	server Server
	host   string
}

// NewSMTP checks the settings. Nothing is dialled yet.
func NewSMTP(s Server) (*SMTP, error) {
	host, port, err := net.SplitHostPort(s.Address)
	if err != nil || host == "" || port == "" {
		return nil, fault.New(fault.Invalid, "the mail server's address %q is not HOST:PORT", s.Address)
	}
	if int(s.Security) >= len(securityNames) {
		return nil, fault.New(fault.Invalid, "the mail server's security %v is not known", s.Security)
	}
	if from, err := mail.ParseAddress(s.From.Address); err != nil || from.Address != s.From.Address || strings.ContainsFunc(s.From.Name, unicode.IsControl) {
		return nil, fault.New(fault.Invalid, "the mail's sender %q is not an address", s.From.Address)
	}
	if (s.User == "") != s.Password.Empty() {
		return nil, fault.New(fault.Invalid, "the mail server wants a user and a password, or neither")
	}
	if s.Timeout <= 0 {
		s.Timeout = 30 * time.Second
	}
	return &SMTP{server: s, host: host}, nil
}

// Send hands one message to the server.
func (s *SMTP) Send(ctx context.Context, m Message) error {
	data, err := m.compose(s.server.From, time.Now())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.server.Timeout)
	defer cancel()
	if err := s.deliver(ctx, m.To, data); err != nil {
		return fault.New(fault.Unavailable, "the mail server took no mail").WithHint("look at the mail settings and the server %s", s.server.Address).Because(err)
	}
	return nil
}

func (s *SMTP) deliver(ctx context.Context, to string, data []byte) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.server.Address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // after Quit it is closed already
	// The deadline covers the whole conversation; giving up closes it at once.
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	client, err := s.greet(conn)
	if err != nil {
		return err
	}
	if s.server.User != "" {
		// PlainAuth itself refuses to say the password without TLS, except to this machine.
		if err := client.Auth(smtp.PlainAuth("", s.server.User, string(s.server.Password.Reveal()), s.host)); err != nil {
			return err
		}
	}
	if err := client.Mail(s.server.From.Address); err != nil {
		return err
	}
	if err := client.Rcpt(to); err != nil {
		return err
	}
	w, err := client.Data()
	if err != nil {
		return err
	}
	_, err = w.Write(data)
	if err := errors.Join(err, w.Close()); err != nil {
		return err
	}
	return client.Quit()
}

// greet brings the connection to where mail may be sent: under TLS, or on this machine.
func (s *SMTP) greet(conn net.Conn) (*smtp.Client, error) {
	config := &tls.Config{}
	if s.server.TLS != nil {
		config = s.server.TLS.Clone()
	}
	config.ServerName, config.MinVersion = s.host, tls.VersionTLS12
	remote := conn.RemoteAddr()
	if s.server.Security == ImplicitTLS {
		conn = tls.Client(conn, config)
	}
	client, err := smtp.NewClient(conn, s.host)
	if err != nil {
		return nil, err
	}
	if s.server.Security == ImplicitTLS {
		return client, nil
	}
	if ok, _ := client.Extension("STARTTLS"); ok {
		return client, client.StartTLS(config)
	}
	// Judged by the address that was dialled, not by the name. A link in clear on the network would be somebody else's way to sign in.
	if to, err := netip.ParseAddrPort(remote.String()); err != nil || !to.Addr().Unmap().IsLoopback() {
		return nil, errors.New("the server offers no STARTTLS")
	}
	return client, nil
}

// Print shows messages to whoever runs the service, where there is no mail server. It is safe for concurrent use.
type Print struct {
	mu sync.Mutex
	to io.Writer
}

// NewPrint returns a mailer that writes to a terminal or log.
func NewPrint(to io.Writer) *Print { return &Print{to: to} }

// Send writes the message.
func (p *Print) Send(_ context.Context, m Message) error {
	if err := m.check(); err != nil {
		return err
	}
	// What a person chose, such as a name, is in the body: it must not steer the terminal.
	body := strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' {
			return unicode.ReplacementChar
		}
		return r
	}, m.Body)
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := fmt.Fprintf(p.to, "mail to %s: %s\n\n%s\n", m.To, m.Subject, body); err != nil {
		return fmt.Errorf("show a mail: %w", err)
	}
	return nil
}
