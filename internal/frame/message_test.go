package frame

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestStartKeepsBytes(t *testing.T) {
	var all [255]byte
	for i := range all {
		all[i] = byte(i + 1)
	}
	s := Start{
		Args: []string{"/bin/echo", string(all[:]), "", "ünïcödé \U0001F600", "\xff\xfe"}, Env: []string{"A=" + string(all[:]), "EMPTY="},
		Dir: "/tmp/\xff", TTY: true, Rows: 24, Cols: 80, NoStdin: true, Self: true, OpenFile: 1 << 20,
	}
	p, err := marshalStart(s)
	if err != nil {
		t.Fatal(err)
	}
	back, err := parseStart(p)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(back.Args, s.Args) || !slices.Equal(back.Env, s.Env) || back.Dir != s.Dir ||
		!back.TTY || back.Rows != 24 || back.Cols != 80 || !back.NoStdin || !back.Self || back.OpenFile != 1<<20 {
		t.Errorf("%+v came back as %+v", s, back)
	}
}

func TestHoldIsNoCommand(t *testing.T) {
	p, err := marshalStart(Start{Hold: true})
	if err != nil {
		t.Fatal(err)
	}
	if back, err := parseStart(p); err != nil || !back.Hold || len(back.Args) != 0 {
		t.Errorf("came back as %+v, %v", back, err)
	}
	if _, err := marshalStart(Start{Hold: true, Self: true}); err == nil {
		t.Error("a hold is to be the runner's own file")
	}
	if _, err := marshalStart(Start{Hold: true, Args: []string{"a"}, Dir: "/"}); err == nil {
		t.Error("a hold with a command was sent")
	}
}

func TestParseStart(t *testing.T) {
	tests := []struct {
		name, in string
		ok       bool
	}{
		{"least", `{"args":["a"],"dir":"/"}`, true},
		{"no arguments", `{"args":[],"dir":"/"}`, false},
		{"empty command", `{"args":[""],"dir":"/"}`, false},
		{"relative directory", `{"args":["a"],"dir":"x"}`, false},
		{"no directory", `{"args":["a"]}`, false},
		{"NUL in an argument", `{"args":["a\u0000b"],"dir":"/"}`, false},
		{"environment without a name", `{"args":["a"],"env":["=x"],"dir":"/"}`, false},
		{"environment without a value", `{"args":["a"],"env":["A"],"dir":"/"}`, false},
		{"character beyond a byte", `{"args":["\u0100"],"dir":"/"}`, false},
		{"unknown member", `{"args":["a"],"dir":"/","user":"root"}`, false},
		{"bytes after it", `{"args":["a"],"dir":"/"}{}`, false},
		{"hold", `{"hold":true}`, true},
		{"hold and a command", `{"args":["a"],"dir":"/","hold":true}`, false},
		{"hold and a directory", `{"dir":"/","hold":true}`, false},
		{"hold and a terminal", `{"tty":true,"hold":true}`, false},
		{"neither hold nor a command", `{"dir":"/","hold":false}`, false},
		{"array", `[]`, false},
		{"nothing", ``, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := parseStart([]byte(test.in))
			if (err == nil) != test.ok {
				t.Errorf("got error %v, want accepted %v", err, test.ok)
			}
			if err != nil && !errors.Is(err, ErrProtocol) {
				t.Errorf("%v is no protocol error", err)
			}
		})
	}
}

func TestParseExitAndOwner(t *testing.T) {
	for in, ok := range map[string]bool{
		`{"code":0}`: true, `{"code":255}`: true, `{"code":0,"signal":9}`: true, `{"code":127,"error":"x","not_found":true}`: true,
		`{"code":256}`: false, `{"code":-1}`: false, `{"code":0,"signal":65}`: false, `{"code":1,"signal":9}`: false, `{"status":1}`: false,
	} {
		if _, err := parseExit([]byte(in)); (err == nil) != ok {
			t.Errorf("exit %s: error %v, want accepted %v", in, err, ok)
		}
	}
	o, err := parseOwner([]byte(`{"id":7,"pid":12,"name":"npm\u001b]0;evil\u0007 install` + strings.Repeat("x", 100) + `"}`))
	if err != nil || o.ID != 7 || o.PID != 12 || !strings.HasPrefix(o.Name, "npm?]0;evil? install") || len(o.Name) != maxName {
		t.Errorf("got %+v, %v", o, err)
	}
	if _, err := parseOwner([]byte(`{"id":7,"pid":-1}`)); err == nil {
		t.Error("a negative process id was accepted")
	}
}

func TestHello(t *testing.T) {
	h := Hello{Token: []byte("0123456789abcdef"), Facts: Facts{Kernel: "6.1\x1b[2J", Machine: "x86_64", PID: 1}}
	var wire bytes.Buffer
	if err := WriteHello(&wire, h); err != nil {
		t.Fatal(err)
	}
	f, err := NewReader(&wire).Next()
	if err != nil || f.Type != TypeHello {
		t.Fatalf("got %v, %v", f.Type, err)
	}
	back, err := parseHello(f.Payload)
	if err != nil || string(back.Token) != string(h.Token) || back.Facts != (Facts{Kernel: "6.1?[2J", Machine: "x86_64", PID: 1}) {
		t.Errorf("got %+v, %v", back, err)
	}
	f.Payload[1]++
	if _, err := parseHello(f.Payload); err == nil || !strings.Contains(err.Error(), "version 3") {
		t.Errorf("another version: %v", err)
	}
	f.Payload[1]--
	f.Payload[2] = 255
	if _, err := parseHello(f.Payload); err == nil {
		t.Error("a token longer than its frame was accepted")
	}
	if err := WriteHello(&wire, Hello{Token: make([]byte, 256)}); err == nil {
		t.Error("a token too long for its length was written")
	}
}

func TestInert(t *testing.T) {
	tests := []struct {
		in    string
		limit int
		want  string
	}{
		{"npm install", 64, "npm install"},
		{"größe \U0001F600", 64, "größe \U0001F600"},
		{"a\x1b[31mb\r\nc\x00\x7f", 64, "a?[31mb??c??"},
		{"\u009b31m\u202eevil\u200b", 64, "?31m?evil?"},
		{"\xff\xc3", 64, "??"},
		{"öö", 3, "ö"},
		{"abc", 0, ""},
	}
	for _, test := range tests {
		if got := Inert(test.in, test.limit); got != test.want {
			t.Errorf("Inert(%q, %d) = %q, want %q", test.in, test.limit, got, test.want)
		}
	}
}
