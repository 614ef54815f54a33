package frame

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"
)

func TestTypeAndStreamNames(t *testing.T) {
	seen := make(map[string]bool)
	for typ := Type(1); typ < typeEnd; typ++ {
		if name := typ.String(); name == "" || seen[name] {
			t.Errorf("type %d has the name %q", typ, name)
		} else {
			seen[name] = true
		}
	}
	if got := Type(0).String() + typeEnd.String(); got != "type(0)type(16)" {
		t.Errorf("invalid types are named %q", got)
	}
	for s, want := range map[Stream]string{Stdin: "stdin", Stdout: "stdout", Stderr: "stderr", 3: "stream(3)"} {
		if s.String() != want {
			t.Errorf("stream %d is named %q, want %q", uint8(s), s, want)
		}
	}
}

func TestReaderIsStrict(t *testing.T) {
	big := bytes.Repeat([]byte{'x'}, MaxPayload+1)
	tests := []struct {
		name string
		wire []byte
		want error // nil: accepted
	}{
		{"data of one byte", Append(nil, Frame{TypeData, Stdout, []byte("x")}), nil},
		{"data of the largest size", Append(nil, Frame{TypeData, Stdout, big[1:]}), nil},
		{"data beyond it", Append(nil, Frame{TypeData, Stdout, big}), ErrProtocol},
		{"data of nothing", Append(nil, Frame{TypeData, Stdout, nil}), ErrProtocol},
		{"data of a fourth stream", Append(nil, Frame{TypeData, 3, []byte("x")}), ErrProtocol},
		{"type zero", Append(nil, Frame{0, 0, nil}), ErrProtocol},
		{"type beyond the last", Append(nil, Frame{typeEnd, 0, nil}), ErrProtocol},
		{"close", Append(nil, Frame{TypeClose, Stderr, nil}), nil},
		{"close with a payload", Append(nil, Frame{TypeClose, Stderr, []byte("x")}), ErrProtocol},
		{"signal", Append(nil, Frame{TypeSignal, 0, []byte{2}}), nil},
		{"signal of two bytes", Append(nil, Frame{TypeSignal, 0, []byte{2, 0}}), ErrProtocol},
		{"signal with a stream", Append(nil, Frame{TypeSignal, 1, []byte{2}}), ErrProtocol},
		{"credit", Append(nil, Frame{TypeCredit, 0, []byte{0, 0, 0, 1}}), nil},
		{"short credit", Append(nil, Frame{TypeCredit, 0, []byte{0, 0, 1}}), ErrProtocol},
		{"exit beyond its bound", Append(nil, Frame{TypeExit, 0, big[:maxMessage+1]}), ErrProtocol},
		{"hello beyond its bound", Append(nil, Frame{TypeHello, 0, big[:maxHello+1]}), ErrProtocol},
		{"spawn", Append(nil, Frame{TypeSpawn, 0, []byte("t")}), nil},
		{"spawn without a token", Append(nil, Frame{TypeSpawn, 0, nil}), ErrProtocol},
		{"spawn beyond a token", Append(nil, Frame{TypeSpawn, 0, big[:256]}), ErrProtocol},
		{"four gigabytes announced", []byte{byte(TypeData), 1, 255, 255, 255, 255}, ErrProtocol},
		{"end inside a header", []byte{byte(TypeData), 1}, io.ErrUnexpectedEOF},
		{"end after a header", []byte{byte(TypeData), 1, 0, 0, 0, 5}, io.ErrUnexpectedEOF},
		{"end inside a payload", []byte{byte(TypeData), 1, 0, 0, 0, 5, 'x'}, io.ErrUnexpectedEOF},
		{"end between frames", nil, io.EOF},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if _, err := NewReader(bytes.NewReader(test.wire)).Next(); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

// Whatever the bytes, what Reader accepts is exactly what Append writes.
func FuzzReader(f *testing.F) {
	f.Add(Append(Append(nil, Frame{TypeData, Stdout, []byte("hello")}), Frame{TypeClose, Stdout, nil}))
	f.Add(Append(nil, Frame{TypeCredit, Stdin, []byte{0, 1, 0, 0}}))
	f.Add([]byte{4, 1, 0, 1, 0, 1})
	f.Fuzz(func(t *testing.T, wire []byte) {
		r := NewReader(bytes.NewReader(wire))
		var back []byte
		for {
			fr, err := r.Next()
			if err != nil {
				break
			}
			if len(fr.Payload) > MaxPayload {
				t.Fatalf("%s frame of %d bytes", fr.Type, len(fr.Payload))
			}
			back = Append(back, fr)
		}
		if !bytes.HasPrefix(wire, back) {
			t.Fatalf("read %x, wrote %x", wire, back)
		}
	})
}

// What arrives over the wire in place of a message is either refused or survives a round trip and keeps its bounds.
func FuzzMessages(f *testing.F) {
	start, _ := marshalStart(Start{Args: []string{"a\xff", "<"}, Env: []string{"A=\xfe"}, Dir: "/"})
	f.Add(start)
	f.Add([]byte(`{"code":3}`))
	f.Add([]byte(`{"id":1,"pid":4,"name":"a\u001b[2J"}`))
	f.Add([]byte("\x00\x01\x01t{\"kernel\":\"6\"}"))
	f.Fuzz(func(t *testing.T, p []byte) {
		if s, err := parseStart(p); err == nil {
			again, err := marshalStart(s)
			if err != nil {
				t.Fatalf("accepted %+v, refused to send it: %v", s, err)
			}
			back, err := parseStart(again)
			if err != nil || !slices.Equal(back.Args, s.Args) || !slices.Equal(back.Env, s.Env) || back.Dir != s.Dir {
				t.Fatalf("%+v came back as %+v, %v", s, back, err)
			}
		}
		if e, err := parseExit(p); err == nil && (e.Code < 0 || e.Code > 255 || e.Signal < 0 || e.Signal > 64 || Inert(e.Error, maxText) != e.Error) {
			t.Fatalf("accepted %+v", e)
		}
		if o, err := parseOwner(p); err == nil && (o.PID < 0 || len(o.Name) > maxName || Inert(o.Name, maxName) != o.Name) {
			t.Fatalf("accepted %+v", o)
		}
		if len(p) >= 3 {
			if h, err := parseHello(p); err == nil && (len(h.Token) > 255 || len(h.Facts.Kernel) > 64) {
				t.Fatalf("accepted %+v", h)
			}
		}
	})
}
