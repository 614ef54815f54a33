package plainhttp

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
)

// maxFields bounds the fields of one head; browsers send about 20, and every server has some such limit.
const maxFields = 128

// field is one header field; both parts alias the reader's buffer.
type field struct{ name, value []byte }

// fields is the parsed field section of a head, with everything that decides about framing taken out of it.
type fields struct {
	list    []field // end-to-end fields in their order, framing and hop-by-hop fields left out
	length  int64   // Content-Length, or -1
	chunked bool
	close   bool // Connection: close
	keep    bool // Connection: keep-alive
	upgrade []byte
	upgrad  bool // Connection: upgrade
	host    []byte
	hosts   int
	named   []byte // all that Connection named, comma separated, for taking it out
}

var errFraming = errors.New("both Content-Length and Transfer-Encoding are given")

// parseFields reads the lines of a field section (RFC 9112 §5), each ended by CRLF, without the closing empty line.
func (f *fields) parse(lines []byte) error {
	*f = fields{list: f.list[:0], length: -1, named: f.named[:0]}
	for count := 0; len(lines) > 0; count++ {
		if count == maxFields {
			return fmt.Errorf("more than %d fields", maxFields)
		}
		end := bytes.IndexByte(lines, '\r')
		if end < 0 || end+1 >= len(lines) || lines[end+1] != '\n' {
			return errBareCR
		}
		one, err := parseField(lines[:end])
		if err != nil {
			return err
		}
		lines = lines[end+2:]
		if err := f.take(one); err != nil {
			return err
		}
	}
	if f.chunked && f.length >= 0 {
		return errFraming
	}
	return f.dropNamed()
}

func parseField(line []byte) (field, error) {
	if line[0] == ' ' || line[0] == '\t' {
		return field{}, errors.New("a field is folded over lines")
	}
	colon := bytes.IndexByte(line, ':')
	if colon <= 0 {
		return field{}, errors.New("a line is no field")
	}
	name, value := line[:colon], bytes.Trim(line[colon+1:], " \t")
	for _, c := range name {
		if !isToken(c) {
			return field{}, fmt.Errorf("character %q in a field's name", c)
		}
	}
	for _, c := range value {
		if c < ' ' && c != '\t' || c == 0x7f {
			return field{}, fmt.Errorf("control character %q in a field's value", c)
		}
	}
	return field{name, value}, nil
}

// take sorts one field: framing and hop-by-hop fields are understood and left out, since they are written anew; the rest is kept.
func (f *fields) take(one field) error {
	switch {
	case is(one.name, "content-length"):
		if f.length >= 0 {
			return errors.New("Content-Length is given twice")
		}
		n, err := parseLength(one.value)
		f.length = n
		return err
	case is(one.name, "transfer-encoding"):
		if f.chunked || !is(one.value, "chunked") {
			return errors.New("Transfer-Encoding is not exactly one chunked")
		}
		f.chunked = true
	case is(one.name, "host"):
		f.host = one.value
		f.hosts++
	case is(one.name, "connection"):
		f.named = append(append(f.named, one.value...), ',')
	case is(one.name, "upgrade"):
		if f.upgrade != nil {
			return errors.New("field Upgrade is given twice")
		}
		f.upgrade = one.value
	case is(one.name, "te"), is(one.name, "keep-alive"), is(one.name, "proxy-connection"),
		is(one.name, "proxy-authorization"), is(one.name, "proxy-authenticate"), is(one.name, "http2-settings"):
	default:
		f.list = append(f.list, one)
	}
	return nil
}

// parseLength accepts digits only (RFC 9110 §8.6), and no more than fit any real body.
func parseLength(value []byte) (int64, error) {
	if len(value) == 0 || len(value) > 18 {
		return -1, errors.New("Content-Length is not a plain number")
	}
	var n int64
	for _, c := range value {
		if c < '0' || c > '9' {
			return -1, errors.New("Content-Length is not a plain number")
		}
		n = n*10 + int64(c-'0')
	}
	return n, nil
}

// dropNamed reads the Connection options and takes the fields they name out of the list. Naming Host or a framing field would make
// the two ends see different messages, so that is an error.
func (f *fields) dropNamed() error {
	for rest := f.named; len(rest) > 0; {
		var option []byte
		option, rest, _ = bytes.Cut(rest, []byte(","))
		option = bytes.Trim(option, " \t")
		switch {
		case len(option) == 0:
		case is(option, "close"):
			f.close = true
		case is(option, "keep-alive"):
			f.keep = true
		case is(option, "upgrade"):
			f.upgrad = true
		case is(option, "host"), is(option, "content-length"), is(option, "transfer-encoding"):
			return fmt.Errorf("field Connection names the field %s", option)
		default:
			f.list = drop(f.list, option)
		}
	}
	return nil
}

func drop(list []field, name []byte) []field {
	kept := list[:0]
	for _, x := range list {
		if !bytes.EqualFold(x.name, name) {
			kept = append(kept, x)
		}
	}
	return kept
}

// header returns a copy of the kept fields.
func (f *fields) header() http.Header {
	h := make(http.Header, len(f.list))
	for _, x := range f.list {
		h.Add(string(x.name), string(x.value))
	}
	return h
}

// setHeader puts fields in the place of the kept ones, in one order.
func (f *fields) setHeader(h http.Header) {
	f.list = f.list[:0]
	for _, name := range slices.Sorted(maps.Keys(h)) {
		for _, value := range h[name] {
			f.list = append(f.list, field{[]byte(name), []byte(value)})
		}
	}
}

// append writes the kept fields.
func (f *fields) append(out []byte) []byte {
	for _, x := range f.list {
		out = append(append(append(append(out, x.name...), ": "...), x.value...), "\r\n"...)
	}
	return out
}

// is compares with a lower-case ASCII name, ignoring case.
func is(b []byte, lower string) bool {
	return len(b) == len(lower) && strings.EqualFold(string(b), lower)
}

// isToken says whether c may stand in a token (RFC 9110 §5.6.2).
func isToken(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// request is one parsed request head.
type request struct {
	method string
	target string // origin form, or "*"
	minor  byte   // HTTP/1.minor
	fields fields
}

// parse reads a head as block returned it. An error is what the client got wrong.
func (q *request) parse(head []byte) error {
	end := bytes.IndexByte(head, '\r')
	if end < 0 || end+1 >= len(head) || head[end+1] != '\n' {
		return errBareCR
	}
	method, rest, ok1 := bytes.Cut(head[:end], []byte(" "))
	target, version, ok2 := bytes.Cut(rest, []byte(" "))
	if !ok1 || !ok2 {
		return errors.New("the first line is not METHOD TARGET VERSION")
	}
	if len(method) == 0 || len(method) > 32 {
		return errors.New("the method's length is out of bounds")
	}
	for _, c := range method {
		if !isToken(c) {
			return fmt.Errorf("character %q in the method", c)
		}
	}
	switch string(version) {
	case "HTTP/1.1":
		q.minor = 1
	case "HTTP/1.0":
		q.minor = 0
	default:
		return fmt.Errorf("version %.16q is neither HTTP/1.1 nor HTTP/1.0", version)
	}
	for _, c := range target {
		if c <= ' ' || c >= 0x7f || c == '#' {
			return fmt.Errorf("character %q in the target", c)
		}
	}
	if err := q.fields.parse(head[end+2 : len(head)-2]); err != nil {
		return err
	}
	q.method, q.target = methodName(method), string(target)
	return q.check()
}

// check holds the rules that need the whole head.
func (q *request) check() error {
	switch {
	case q.fields.hosts != 1:
		return fmt.Errorf("%d Host fields instead of one", q.fields.hosts)
	case q.minor == 0 && q.fields.chunked:
		return errors.New("Transfer-Encoding in HTTP/1.0")
	case q.target == "":
		return errors.New("the target is empty")
	}
	return nil
}

// hasBody says whether bytes follow the head.
func (q *request) hasBody() bool { return q.fields.chunked || q.fields.length > 0 }

// websocket says whether this is a WebSocket handshake (RFC 6455 §4.1), the one upgrade that passes.
func (q *request) websocket() bool {
	return q.minor == 1 && q.method == http.MethodGet && q.fields.upgrad && is(q.fields.upgrade, "websocket") && !q.hasBody()
}

// keepAlive says whether the client wants to send another request.
func (q *request) keepAlive() bool {
	return !q.fields.close && (q.minor == 1 || q.fields.keep)
}

// safeToRepeat says whether the request may be sent a second time when a reused connection broke before any answer.
func (q *request) safeToRepeat() bool {
	return !q.hasBody() && (q.method == http.MethodGet || q.method == http.MethodHead || q.method == http.MethodOptions)
}

// append writes the request anew: only what was understood goes out, in one spelling.
func (q *request) append(out []byte, authority string) []byte {
	out = append(append(append(append(out, q.method...), ' '), q.target...), " HTTP/1.1\r\nHost: "...)
	out = append(append(out, authority...), "\r\n"...)
	out = q.fields.append(out)
	out = q.fields.appendFraming(out)
	if q.websocket() {
		out = append(out, "Connection: Upgrade\r\nUpgrade: websocket\r\n"...)
	}
	return append(out, "\r\n"...)
}

// methodName returns the method without allocating for the usual ones.
func methodName(b []byte) string {
	for _, m := range [...]string{http.MethodGet, http.MethodPost, http.MethodHead, http.MethodPut, http.MethodDelete, http.MethodOptions, http.MethodPatch} {
		if string(b) == m {
			return m
		}
	}
	return string(b)
}
