package plainhttp

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"strconv"
)

// response is one parsed response head.
type response struct {
	status int
	reason []byte
	minor  byte
	fields fields
}

// parse reads a head as block returned it. An error is what the upstream got wrong.
func (p *response) parse(head []byte) error {
	end := bytes.IndexByte(head, '\r')
	if end < 0 || end+1 >= len(head) || head[end+1] != '\n' {
		return errBareCR
	}
	line := head[:end]
	if len(line) < len("HTTP/1.1 200") || string(line[:7]) != "HTTP/1." || line[7] != '0' && line[7] != '1' || line[8] != ' ' {
		return errors.New("the first line is no HTTP/1 status line")
	}
	p.minor = line[7] - '0'
	if len(line) > 12 && line[12] != ' ' {
		return errors.New("the status has not three digits")
	}
	status, err := strconv.Atoi(string(line[9:12]))
	if err != nil || status < 100 || line[9] > '9' || line[9] < '1' {
		return errors.New("the status is no number from 100 to 999")
	}
	p.status, p.reason = status, nil
	if len(line) > 13 {
		p.reason = line[13:]
	}
	for _, c := range p.reason {
		if c < ' ' && c != '\t' || c == 0x7f {
			return fmt.Errorf("control character %q in the reason", c)
		}
	}
	if err := p.fields.parse(head[end+2 : len(head)-2]); err != nil {
		return err
	}
	if p.minor == 0 && p.fields.chunked {
		return errors.New("Transfer-Encoding in HTTP/1.0")
	}
	return nil
}

// framing is how a body's end is known.
type framing uint8

// The framings. Zero is none: no body.
const (
	none framing = iota
	counted
	chunked
	untilClose
)

// framing tells the body's framing of the answer to a method (RFC 9112 §6.3).
func (p *response) framing(method string) framing {
	switch {
	case method == http.MethodHead || p.status < 200 || p.status == http.StatusNoContent || p.status == http.StatusNotModified:
		return none
	case p.fields.chunked:
		return chunked
	case p.fields.length == 0:
		return none
	case p.fields.length > 0:
		return counted
	}
	return untilClose
}

// append writes the response anew for a client that wants it framed as given.
func (p *response) append(out []byte, as framing, closing, upgraded bool) []byte {
	out = append(out, "HTTP/1.1 "...)
	out = strconv.AppendInt(out, int64(p.status), 10)
	out = append(append(append(out, ' '), p.reason...), "\r\n"...)
	out = p.fields.append(out)
	switch {
	case as == chunked:
		out = append(out, "Transfer-Encoding: chunked\r\n"...)
	case as == untilClose || p.status < 200 || p.status == http.StatusNoContent:
	case p.fields.length >= 0:
		out = p.fields.appendLength(out)
	}
	switch {
	case upgraded:
		out = append(out, "Connection: Upgrade\r\nUpgrade: websocket\r\n"...)
	case closing && p.status >= 200:
		out = append(out, "Connection: close\r\n"...)
	}
	return append(out, "\r\n"...)
}

func (f *fields) appendLength(out []byte) []byte {
	out = strconv.AppendInt(append(out, "Content-Length: "...), f.length, 10)
	return append(out, "\r\n"...)
}

// appendFraming writes the one framing field of a request.
func (f *fields) appendFraming(out []byte) []byte {
	switch {
	case f.chunked:
		return append(out, "Transfer-Encoding: chunked\r\n"...)
	case f.length >= 0:
		return f.appendLength(out)
	}
	return out
}
