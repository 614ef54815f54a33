package main

import (
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"time"
)

// sayHello dials an address and speaks TLS with any server name: ADDRESS NAME [how…]. How is any of: plain, segments, records, huge, ech, none, upper, dot.
func sayHello(args []string) (string, error) {
	raw, err := net.DialTimeout("tcp", arg(args, 0, ""), patience())
	if err != nil {
		return "", err
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(2 * patience())) // fails only for a closed connection
	how := strings.Join(args[min(2, len(args)):], " ")
	config := &tls.Config{ServerName: arg(args, 1, ""), InsecureSkipVerify: true} // who answers is not the question
	if strings.Contains(how, "none") {
		config.ServerName = ""
	}
	if strings.Contains(how, "huge") {
		for range 255 {
			config.NextProtos = append(config.NextProtos, strings.Repeat("x", 200))
		}
	}
	if strings.Contains(how, "ech") {
		if config.EncryptedClientHelloConfigList, err = encryptedHello("allowed.example.com"); err != nil {
			return "", broken("%v", err)
		}
		config.InsecureSkipVerify, config.EncryptedClientHelloRejectionVerify = true, func(tls.ConnectionState) error { return nil }
	}
	c := tls.Client(&splitter{Conn: raw, how: how}, config)
	if err := c.Handshake(); err != nil {
		if rejected, ok := errors.AsType[*tls.ECHRejectionError](err); ok {
			return "the server answered an encrypted hello: " + rejected.Error(), nil
		}
		return "", err
	}
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return "", err
	}
	return answered(c)
}

// splitter takes the first thing that is written apart, into segments or TLS records of a few bytes.
type splitter struct {
	net.Conn
	how  string
	done bool
}

func (s *splitter) Write(p []byte) (int, error) {
	if s.done || len(p) < 5 {
		return s.Conn.Write(p)
	}
	s.done = true
	out, step := p, len(p)
	if strings.Contains(s.how, "records") {
		out = nil
		for rest := p[5:]; len(rest) > 0; {
			n := min(len(rest), max(1, len(p)/12)) // the parser takes no more than 16 records
			out = append(append(out, p[0], p[1], p[2]), byte(n>>8), byte(n))
			out, rest = append(out, rest[:n]...), rest[n:]
		}
		step = len(out)
	}
	if strings.Contains(s.how, "segments") {
		step = 1
		if tcp, ok := s.Conn.(*net.TCPConn); ok {
			_ = tcp.SetNoDelay(true) // the default already
		}
	}
	for ; len(out) > 0; out = out[min(step, len(out)):] {
		if _, err := s.Conn.Write(out[:min(step, len(out))]); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// encryptedHello makes a list of one configuration (RFC 9849, section 4) with a key of our own.
func encryptedHello(public string) ([]byte, error) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	body := []byte{7, 0, 0x20, 0, 32} // id, KEM X25519, length of the key
	body = append(body, key.PublicKey().Bytes()...)
	body = append(body, 0, 4, 0, 1, 0, 1, 32, byte(len(public))) // HKDF-SHA256 with AES-128-GCM; longest name; length of the public name
	body = append(append(body, public...), 0, 0)
	config := binary.BigEndian.AppendUint16([]byte{0xfe, 0x0d}, uint16(len(body)))
	config = append(config, body...)
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(config))), config...), nil
}
