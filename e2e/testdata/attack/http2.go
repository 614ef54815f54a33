package main

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http2/hpack"
)

// h2 is one HTTP/2 connection of which every byte is chosen here (RFC 9113).
type h2 struct {
	c       *tls.Conn
	out     bytes.Buffer
	fields  bytes.Buffer
	encoder *hpack.Encoder
	decoder *hpack.Decoder

	refused, reached int // answers with a status of refusal, and answers of the server
}

const (
	frameData, frameHeaders, frameReset, frameSettings, framePing, frameGoAway, frameWindow, frameContinuation = 0, 1, 3, 4, 6, 7, 8, 9
	flagEndStream, flagAck, flagEndHeaders                                                                     = 1, 1, 4
)

func openH2(to string, w wished) (*h2, error) {
	c, err := secured(to, w, "h2")
	if err != nil {
		return nil, err
	}
	if c.ConnectionState().NegotiatedProtocol != "h2" {
		return nil, broken("no HTTP/2")
	}
	x := &h2{c: c, decoder: hpack.NewDecoder(4096, nil)}
	x.encoder = hpack.NewEncoder(&x.fields)
	x.out.WriteString("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	x.frame(frameSettings, 0, 0, nil)
	if err := x.flush(); err != nil {
		return nil, err
	}
	for {
		kind, flags, _, _, err := x.read()
		if err != nil {
			return nil, err
		}
		if kind == frameSettings && flags&flagAck == 0 { // what the server then asks for has been agreed
			x.frame(frameSettings, flagAck, 0, nil)
			return x, x.flush()
		}
	}
}

func (x *h2) frame(kind, flags byte, stream uint32, payload []byte) {
	n := len(payload)
	x.out.Write([]byte{byte(n >> 16), byte(n >> 8), byte(n), kind, flags})
	x.out.Write(binary.BigEndian.AppendUint32(nil, stream))
	x.out.Write(payload)
}

func (x *h2) flush() error {
	_, err := x.c.Write(x.out.Bytes())
	x.out.Reset()
	return err
}

// encode compresses fields NAME: VALUE.
func (x *h2) encode(fields [][2]string) []byte {
	x.fields.Reset()
	for _, f := range fields {
		_ = x.encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}) // into memory
	}
	return bytes.Clone(x.fields.Bytes())
}

func (x *h2) read() (kind, flags byte, stream uint32, payload []byte, err error) {
	var head [9]byte
	if _, err = io.ReadFull(x.c, head[:]); err != nil {
		return 0, 0, 0, nil, err
	}
	payload = make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
	_, err = io.ReadFull(x.c, payload)
	return head[3], head[4], binary.BigEndian.Uint32(head[5:]), payload, err
}

// h2Error names the code of a reset or of the connection's end.
func h2Error(what string, code uint32) error {
	names := []string{"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED", "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM"}
	if int(code) < len(names) {
		return fmt.Errorf("%s: %s", what, names[code])
	}
	return fmt.Errorf("%s: %d", what, code)
}

// answers reads the answers to n requests, or what ended them.
func (x *h2) answers(n int) (all []answer, err error) {
	byStream := map[uint32]*answer{}
	ended := 0
	for ended < n {
		kind, flags, stream, payload, readErr := x.read()
		if readErr != nil {
			err = errors.Join(err, readErr)
			break
		}
		switch kind {
		case frameHeaders:
			fields, decodeErr := x.decoder.DecodeFull(payload)
			if decodeErr != nil {
				return all, broken("%v", decodeErr)
			}
			if byStream[stream] == nil {
				byStream[stream] = &answer{header: map[string]string{}}
			}
			for _, f := range fields {
				fmt.Printf("%s: %.200s\n", f.Name, f.Value)
				switch byStream[stream].header[f.Name] = f.Value; {
				case f.Name == ":status":
					byStream[stream].status = f.Value
					if f.Value[0] != '2' {
						x.refused++
					}
				case f.Name == "x-server":
					x.reached++
				}
			}
		case frameData:
			fmt.Printf("%.300q\n", payload)
			if len(payload) > 0 {
				for _, s := range []uint32{0, stream} {
					x.frame(frameWindow, 0, s, binary.BigEndian.AppendUint32(nil, uint32(len(payload))))
				}
				_ = x.flush() // what comes tells
			}
		case frameReset:
			err = errors.Join(err, h2Error("the stream is reset", binary.BigEndian.Uint32(payload)))
			ended++
		case frameGoAway:
			err = errors.Join(err, h2Error("the connection is ended", binary.BigEndian.Uint32(payload[4:])))
			if binary.BigEndian.Uint32(payload[4:]) != 0 {
				ended = n
			}
		}
		if (kind == frameData || kind == frameHeaders) && flags&flagEndStream != 0 {
			ended++
		}
	}
	for _, a := range byStream {
		all = append(all, *a)
	}
	return all, err
}

// lentH2 makes one request over HTTP/2: HOST:PORT OPTIONS NAME=VALUE… Fields stand in the order given, before them those of an ordinary request that are not given; a minus
// before a name leaves it out. Options: those of lentRaw; body=BYTES, pieces (each byte of it a frame), trailer=NAME:VALUE, drip (each byte of the head a frame), late (ordinary fields first), twice.
func lentH2(args []string) (string, error) {
	to, w := arg(args, 0, ""), wishes(arg(args, 1, ""))
	fields, err := h2Fields(to, args[min(2, len(args)):], w)
	if err != nil {
		return "", err
	}
	body, err := spelled(w["body"])
	if err != nil {
		return "", err
	}
	x, err := openH2(to, w)
	if err != nil {
		return "", err
	}
	defer x.c.Close()
	n := 1
	if w.has("twice") {
		n = 2
	}
	for i := range n {
		if err := x.request(uint32(1+2*i), fields, body, w); err != nil {
			return "", err
		}
	}
	_ = x.flush() // it may be refused before it is all sent: what comes back tells
	all, err := x.answers(n)
	if text, refused := through(all, w, err); refused == nil || errors.Is(refused, errBroken) {
		return text, refused
	} else if err != nil {
		return "", errors.Join(refused, err)
	} else {
		return "", refused
	}
}

func h2Fields(to string, given []string, w wished) (fields [][2]string, err error) {
	stated := map[string]bool{}
	for _, f := range given {
		name, value, _ := strings.Cut(strings.TrimPrefix(f, ":"), "=")
		if strings.HasPrefix(f, ":") {
			name = ":" + name
		}
		if stated[strings.TrimPrefix(name, "-")] = true; strings.HasPrefix(name, "-") {
			continue
		}
		var pair [2]string
		for i, text := range []string{name, value} {
			if pair[i], err = spelled(text); err != nil {
				return nil, err
			}
		}
		fields = append(fields, pair)
	}
	method := "GET"
	if w.has("body") {
		method = "POST"
	}
	var usual [][2]string
	for _, f := range [][2]string{{":method", method}, {":scheme", "https"}, {":authority", to}, {":path", "/v1/x"}} {
		if !stated[f[0]] {
			usual = append(usual, f)
		}
	}
	if w.has("late") {
		return append(fields, usual...), nil
	}
	return append(usual, fields...), nil
}

// request writes one request.
func (x *h2) request(stream uint32, fields [][2]string, body string, w wished) error {
	trailer, hasTrailer := w["trailer"]
	end := byte(0)
	if body == "" && !hasTrailer {
		end = flagEndStream
	}
	block := x.encode(fields)
	if w.has("drip") {
		x.frame(frameHeaders, end, stream, block[:1])
		for i := range block[1:] {
			x.frame(frameContinuation, 0, stream, block[i+1:i+2])
		}
		x.frame(frameContinuation, flagEndHeaders, stream, nil)
	} else {
		x.frame(frameHeaders, end|flagEndHeaders, stream, block)
	}
	step := min(max(1, len(body)), 16<<10)
	if w.has("pieces") {
		step = 1
	}
	for rest := body; rest != ""; rest = rest[min(step, len(rest)):] {
		last := byte(0)
		if len(rest) <= step && !hasTrailer {
			last = flagEndStream
		}
		x.frame(frameData, last, stream, []byte(rest[:min(step, len(rest))]))
	}
	if hasTrailer {
		name, value, _ := strings.Cut(trailer, ":")
		name, err1 := spelled(name)
		value, err2 := spelled(value)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		x.frame(frameHeaders, flagEndStream|flagEndHeaders, stream, x.encode([][2]string{{name, value}}))
	}
	return nil
}

// floodH2 breaks the rules of HTTP/2 at length: HOST:PORT KIND. It is refused if the connection is ended for it, or each request.
func floodH2(args []string) (string, error) {
	to, kind := arg(args, 0, ""), arg(args, 1, "")
	x, err := openH2(to, nil)
	if err != nil {
		return "", err
	}
	defer x.c.Close()
	ended := make(chan error, 1)
	answered := make(chan int, 1)
	go func() {
		all, err := x.answers(1 << 30)
		answered <- len(all)
		ended <- err
	}()
	usual, err := h2Fields(to, nil, nil)
	if err != nil {
		return "", err
	}
	if kind == "bomb" || kind == "open" { // each request is refused by itself
		for n := range 300 {
			x.one(kind, n, usual)
			if err := x.flush(); err != nil {
				break // refused: what came back tells
			}
		}
		_ = x.c.SetReadDeadline(time.Now().Add(patience())) // fails only for a closed connection
		_, why := <-answered, <-ended
		refused := strings.Count(why.Error(), "the stream is reset") + x.refused
		if refused < 300-128 && !strings.Contains(why.Error(), "the connection is ended") {
			return fmt.Sprintf("%d of 300 requests are refused", refused), nil
		}
		return "", fmt.Errorf("%d of 300 requests are refused, %d reached the server", refused, x.reached)
	}
	sent, bytesSent, err := x.flood(kind, usual)
	if err == nil {
		return fmt.Sprintf("%d frames, %d bytes, and the connection is still open", sent, bytesSent), nil
	}
	select {
	case why := <-ended:
		return "", fmt.Errorf("ended after %d frames and %d bytes, %d answers: %w", sent, bytesSent, <-answered, why)
	case <-time.After(patience()):
		return "", fmt.Errorf("ended after %d frames and %d bytes: %w", sent, bytesSent, err)
	}
}

// one writes the nth of a kind of frames.
func (x *h2) one(kind string, n int, usual [][2]string) {
	stream := uint32(1 + 2*n)
	switch kind {
	case "continuation":
		if n == 0 {
			x.frame(frameHeaders, flagEndStream, 1, x.encode(usual))
		}
		x.frame(frameContinuation, 0, 1, x.encode([][2]string{{"x-" + strconv.Itoa(n), strings.Repeat("s", 1000)}}))
	case "bomb": // one long field, and then thousands of times one byte that means it
		block := x.encode(append(usual[:len(usual):len(usual)], [2]string{"x-bomb", strings.Repeat("s", 4000)}))
		x.frame(frameHeaders, flagEndStream|flagEndHeaders, stream, append(block, bytes.Repeat([]byte{0x80 | 62}, 12000)...))
	case "table": // a table larger than was agreed
		x.frame(frameHeaders, flagEndStream|flagEndHeaders, stream, []byte{0x3f, 0xff, 0xff, 0xff, 0x7f})
	case "reset":
		for i := range uint32(100) {
			s := uint32(200*n) + 1 + 2*i
			x.frame(frameHeaders, flagEndStream|flagEndHeaders, s, x.encode(usual))
			x.frame(frameReset, 0, s, []byte{0, 0, 0, 8})
		}
	case "data": // before any head
		x.frame(frameData, flagEndStream, stream, []byte("secret"))
	case "even":
		x.frame(frameHeaders, flagEndStream|flagEndHeaders, 2, x.encode(usual))
	case "window":
		x.frame(frameWindow, 0, 0, []byte{0x7f, 0xff, 0xff, 0xff})
	case "huge": // a frame longer than was agreed
		x.frame(frameHeaders, flagEndStream|flagEndHeaders, stream, make([]byte, 1<<20))
	case "between": // another frame amid a head
		x.frame(frameHeaders, flagEndStream, 1, x.encode(usual))
		x.frame(framePing, 0, 0, make([]byte, 8))
	case "open": // streams that never end their body, more than were agreed
		x.frame(frameHeaders, flagEndHeaders, stream, x.encode(usual))
	}
}

// flood sends one kind of frame without end, up to 64 MiB or 15 seconds, until the connection ends.
func (x *h2) flood(kind string, usual [][2]string) (frames, sent int, err error) {
	for began := time.Now(); time.Since(began) < 15*time.Second && sent < 64<<20; frames++ {
		x.one(kind, frames, usual)
		n := x.out.Len()
		if err := x.flush(); err != nil {
			return frames, sent, err
		}
		if sent += n; kind == "data" || kind == "even" || kind == "window" || kind == "between" || kind == "table" {
			time.Sleep(20 * time.Millisecond) // the end is seen by the next
		}
	}
	return frames, sent, nil
}
