package main

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// exchange sends one question and returns the answer.
func exchange(network, server string, query []byte) ([]byte, error) {
	c, err := net.DialTimeout(network, server, patience())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(3 * time.Second)) // fails only for a closed connection
	if network == "tcp" {
		query = append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)
	}
	if _, err := c.Write(query); err != nil {
		return nil, err
	}
	buf := make([]byte, 65536)
	if network == "tcp" {
		if _, err := io.ReadFull(c, buf[:2]); err != nil {
			return nil, err
		}
		n := int(binary.BigEndian.Uint16(buf))
		_, err := io.ReadFull(c, buf[:n])
		return buf[:n], err
	}
	n, err := c.Read(buf)
	return buf[:n], err
}

// askDNS asks: SERVER NAME [TYPE] [NETWORK]. A name's labels may hold \xNN escapes as hexadecimal after a plus sign. It got through if there is an answer that is no synthetic address.
func askDNS(args []string) (string, error) {
	query := question(arg(args, 1, ""), uint16(number(args, 2, 1)))
	reply, err := exchange(arg(args, 3, "udp"), net.JoinHostPort(arg(args, 0, "198.18.0.1"), arg(args, 4, "53")), query)
	if err != nil {
		return "", err
	}
	var m dnsmessage.Message
	if err := m.Unpack(reply); err != nil {
		return "", broken("answer %x: %v", reply, err)
	}
	for _, a := range m.Answers {
		switch body := a.Body.(type) {
		case *dnsmessage.AResource:
			if body.A[0] != 198 || body.A[1]&^1 != 18 {
				return fmt.Sprint(body.A), nil
			}
			return "", fmt.Errorf("the synthetic address %v stands for it", body.A)
		case *dnsmessage.AAAAResource:
			if !strings.HasPrefix(net.IP(body.AAAA[:]).String(), "fdcf:d0::") {
				return fmt.Sprint(net.IP(body.AAAA[:])), nil
			}
			return "", fmt.Errorf("a synthetic address stands for it")
		default:
			return a.GoString(), nil
		}
	}
	return "", fmt.Errorf("%v with %d answers", m.RCode, len(m.Answers))
}

// question packs a question by hand, so that names may be as wrong as wanted: "+68690a" is a label given in hexadecimal.
func question(name string, typ uint16) []byte {
	q := []byte{0x47, 0x11, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		raw := []byte(label)
		if text, ok := strings.CutPrefix(label, "+"); ok {
			raw, _ = hex.DecodeString(text) // an odd one gives an odd label
		}
		q = append(append(q, byte(len(raw))), raw...)
	}
	q = append(q, 0)
	return append(binary.BigEndian.AppendUint16(q, typ), 0, 1)
}

// rawDNS sends a packet as it is, in hexadecimal. It got through if it is answered with records.
func rawDNS(args []string) (string, error) {
	query, err := hex.DecodeString(arg(args, 0, ""))
	if err != nil {
		return "", broken("%v", err)
	}
	reply, err := exchange(arg(args, 1, "udp"), "198.18.0.1:53", query)
	if err != nil {
		return "", err
	}
	var p dnsmessage.Parser
	h, err := p.Start(reply)
	if err != nil {
		return "", broken("answer %x", reply)
	}
	if binary.BigEndian.Uint16(reply[6:]) > 0 {
		return fmt.Sprintf("%x", reply), nil
	}
	return "", fmt.Errorf("%v without records", h.RCode)
}

// fuzzDNS sends wrong packets of every kind, and then asks for an allowed name: the door must still work.
func fuzzDNS(args []string) (string, error) {
	random := rand.New(rand.NewPCG(uint64(number(args, 0, 1)), 2))
	c, err := net.Dial("udp", "198.18.0.1:53")
	if err != nil {
		return "", err
	}
	defer c.Close()
	whole := question("s3cret-4711.denied.example.com", 1)
	for i := range number(args, 1, 2000) {
		p := append([]byte(nil), whole...)
		switch i % 4 {
		case 0:
			p = p[:random.IntN(len(p))]
		case 1:
			for range 1 + random.IntN(8) {
				p[random.IntN(len(p))] = byte(random.Uint32())
			}
		case 2:
			p = append(p, make([]byte, random.IntN(3000))...)
		default:
			p = make([]byte, random.IntN(600))
			for j := range p {
				p[j] = byte(random.Uint32())
			}
		}
		if _, err := c.Write(p); err != nil && i < 10 {
			return "", broken("%v", err)
		}
	}
	time.Sleep(200 * time.Millisecond)
	if _, err := askDNS([]string{"198.18.0.1", "allowed.example.com"}); err == nil || !strings.Contains(err.Error(), "synthetic") {
		return fmt.Sprintf("the door is broken: %v", err), nil
	}
	return "", errors.New("the door works as before")
}

// slowly opens connections that say little or nothing: ADDRESS BYTES COUNT. The gateway must end them in time, and serve others meanwhile.
func slowly(args []string) (string, error) {
	var conns []net.Conn
	for range number(args, 2, 20) {
		c, err := net.DialTimeout("tcp", arg(args, 0, ""), patience())
		if err != nil {
			return "", err
		}
		defer c.Close()
		_, _ = io.WriteString(c, arg(args, 1, "")) // refused or not, the end counts
		conns = append(conns, c)
	}
	if got, err := dialTCP([]string{"allowed.example.com:80", "GET / HTTP/1.1\r\nHost: allowed.example.com\r\n\r\n"}); err != nil {
		return "nobody else is served meanwhile: " + got + err.Error(), nil
	}
	began := time.Now()
	for _, c := range conns {
		_ = c.SetReadDeadline(began.Add(14 * time.Second)) // as above
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			return "held open for 14 s", nil
		}
	}
	return "", fmt.Errorf("all ended after %v", time.Since(began).Round(time.Second))
}
