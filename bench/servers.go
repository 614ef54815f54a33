package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os/exec"
	"time"
)

// addresses are where the servers listen, all on 127.0.0.1.
type addresses struct {
	Stream int `json:"stream"` // see serveStream
	TLS    int `json:"tls"`    // ends a handshake and closes
	HTTP   int `json:"http"`   // answers every request alike
	API    int `json:"api"`    // see serveAPI
	Git    int `json:"git"`    // see serveForge; of the program that serves nothing else
	// Registry has the image imageName; of the program that serves nothing else.
	Registry int `json:"registry"`
	// Certificate is that of TLS, API, Git and Registry, in PEM: its own authority.
	Certificate string `json:"certificate"`
}

// name is what the servers are called inside the sandbox.
const name = "bench.example.com"

// servers is the program that serves; it says where and ends with its standard input.
func servers(ctx context.Context, stdin io.Reader, stdout io.Writer) error {
	var a addresses
	certificate, err := selfSigned()
	if err != nil {
		return err
	}
	for _, s := range []struct {
		port  *int
		serve func(net.Conn)
	}{
		{&a.Stream, serveStream},
		{&a.TLS, func(c net.Conn) { serveTLS(c, certificate) }},
		{&a.HTTP, serveHTTP},
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer l.Close()
		*s.port = l.Addr().(*net.TCPAddr).Port
		go accept(l, s.serve) // ends with the listener, at the latest with the process
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	a.API, a.Certificate = l.Addr().(*net.TCPAddr).Port, certificatePEM(certificate)
	go serveAPI(l, certificate) // likewise
	if err := writeLine(stdout, a); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, stdin)
	return errors.Join(err, ctx.Err())
}

func accept(l net.Listener, serve func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			serve(c)
		}()
	}
}

const chunk = 256 << 10

// serveStream reads a direction and a length; it takes that many bytes and answers with one, or sends that many.
func serveStream(c net.Conn) {
	var head [9]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return
	}
	length := int64(binary.BigEndian.Uint64(head[1:]))
	if head[0] == 'd' {
		_ = pour(c, length) // the client counts
		return
	}
	if drain(c, length) == nil {
		_, _ = c.Write(head[:1]) // the client waits for it
	}
}

// pour writes n bytes.
func pour(w io.Writer, n int64) error {
	buf := make([]byte, chunk)
	for n > 0 {
		k, err := w.Write(buf[:min(n, chunk)])
		if err != nil {
			return err
		}
		n -= int64(k)
	}
	return nil
}

// drain reads n bytes. It reads itself, since io.Copy would have the kernel throw them away.
func drain(r io.Reader, n int64) error {
	buf := make([]byte, chunk)
	for n > 0 {
		k, err := r.Read(buf)
		n -= int64(k)
		if err != nil && n > 0 {
			return err
		}
	}
	return nil
}

func serveTLS(c net.Conn, certificate tls.Certificate) {
	_ = c.SetDeadline(time.Now().Add(30 * time.Second)) // fails only on a closed connection
	s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{certificate}, SessionTicketsDisabled: true})
	if s.Handshake() == nil {
		_, _ = s.Write([]byte("x"))   // the client's clock stops here
		_, _ = io.Copy(io.Discard, s) // until the client leaves
	}
}

func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

func certificatePEM(c tls.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}))
}

// serveHTTP answers every request with the same hundred bytes. It is as little of a server as there can be: it is not what is measured.
func serveHTTP(c net.Conn) {
	body := bytes.Repeat([]byte("x"), 100)
	answer := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	r := bufio.NewReader(c)
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		if len(bytes.TrimSpace(line)) > 0 {
			continue
		}
		if _, err := c.Write(answer); err != nil {
			return
		}
	}
}

// serving is the running program of servers.
type serving struct {
	addresses
	cmd *exec.Cmd
	in  io.Closer
}

// serve starts the servers, under taskset where they are to stay on one processor.
func (b *bench) serve(ctx context.Context, pin ...string) (*serving, error) {
	return b.launch(ctx, append(pin, b.self, "servers")...)
}

// launch starts a program that serves, and learns where.
func (b *bench) launch(ctx context.Context, argv ...string) (*serving, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &serving{cmd: cmd, in: in}
	if err := json.NewDecoder(out).Decode(&s.addresses); err != nil {
		s.stop()
		return nil, fmt.Errorf("start the servers: %w", err)
	}
	return s, nil
}

func (s *serving) stop() {
	_ = s.in.Close() // they read the end
	_ = s.cmd.Wait() // whatever they say now
}
