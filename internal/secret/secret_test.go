package secret

import (
	"bytes"
	"encoding/base64"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"testing"
)

const canary = "cAnArY-9f3b7+/=z\"'end"

// forms are the ways in which the canary could come out.
func forms() []string {
	b := []byte(canary)
	list := []string{canary, hex.EncodeToString(b), strings.ToUpper(hex.EncodeToString(b)), url.QueryEscape(canary),
		strings.Trim(fmt.Sprint(b), "[]"), strings.Trim(fmt.Sprintf("%#v", b), "[]byte{}"), strings.Trim(fmt.Sprintf("% x", b), " "), fmt.Sprintf("%q", canary)}
	for skip := range 3 {
		list = append(list, base64.RawStdEncoding.EncodeToString(b[skip:skip+15]), base64.RawURLEncoding.EncodeToString(b[skip:skip+15]))
	}
	return list
}

func leaks(t *testing.T, how, text string) {
	t.Helper()
	for _, form := range forms() {
		if strings.Contains(text, form) {
			t.Errorf("%s lets it out: %s", how, text)
			return
		}
	}
}

// holder has a secret in every position in which printers treat it differently.
type holder struct {
	Exported Bytes
	hidden   Bytes
	pointer  *Bytes
	any      any
	list     []Bytes
	table    map[string]Bytes
	nested   struct{ inner Bytes }
}

func newHolder() holder {
	s := New([]byte(canary))
	h := holder{Exported: s, hidden: s, pointer: &s, any: s, list: []Bytes{s}, table: map[string]Bytes{"k": s}}
	h.nested.inner = s
	return h
}

func TestNothingPrintsIt(t *testing.T) {
	h := newHolder()
	values := map[string]any{"value": h.Exported, "pointer": h.pointer, "holder": h, "holder pointer": &h, "list": h.list, "table": h.table,
		"error": fmt.Errorf("with %v: %w", h.Exported, errors.New("x")), "func": h.Exported.get}
	for name, v := range values {
		for _, flag := range []string{"", "+", "#", " ", "0", "-", "20.3"} {
			for _, verb := range "vTtbcdoOqxXUeEfFgGsp" {
				leaks(t, name+" %"+flag+string(verb), fmt.Sprintf("%"+flag+string(verb), v))
			}
		}
		leaks(t, name+" Sprint", fmt.Sprint(v)+fmt.Sprintln(v))
		if out, err := json.Marshal(v); err == nil {
			leaks(t, name+" json", string(out))
		}
		if out, err := xml.Marshal(v); err == nil {
			leaks(t, name+" xml", string(out))
		}
		var b bytes.Buffer
		_ = gob.NewEncoder(&b).Encode(v) // an error is as good as silence
		leaks(t, name+" gob", b.String())
		b.Reset()
		for _, handler := range []slog.Handler{slog.NewTextHandler(&b, nil), slog.NewJSONHandler(&b, nil)} {
			log := slog.New(handler)
			log.With("a", v).WithGroup("g").Info("m", "k", v, slog.Any("x", v), slog.Group("y", "z", v))
		}
		leaks(t, name+" slog", b.String())
		func() {
			defer func() { leaks(t, name+" panic", fmt.Sprintf("%v %+v", recover(), v)) }()
			panic(v)
		}()
	}
}

// TestTheSearchFinds is the positive control: the same search finds what a careless type lets out.
func TestTheSearchFinds(t *testing.T) {
	for _, text := range []string{fmt.Sprintf("%v", struct{ b []byte }{[]byte(canary)}), fmt.Sprintf("%x", canary), "x" + canary, base64.StdEncoding.EncodeToString([]byte("xy" + canary))} {
		found := false
		for _, form := range forms() {
			found = found || strings.Contains(text, form)
		}
		if !found {
			t.Errorf("not found in %q", text)
		}
	}
}

func TestEncodersRefuse(t *testing.T) {
	var s Bytes
	if err := json.Unmarshal([]byte(`"••••"`), &s); err == nil {
		t.Error("dots were read as a secret")
	}
	if err := gob.NewEncoder(&bytes.Buffer{}).Encode(New([]byte(canary))); err == nil {
		t.Error("gob encoded it")
	}
	if err := s.UnmarshalBinary([]byte("x")); err == nil {
		t.Error("bytes were read as a secret")
	}
}

func TestMask(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{"", "••••"}, {"a", "••••"}, {"elevenbytes", "••••"}, {"twelve-bytes", "••••ytes"}, {"ghp_0123456789abcdef", "••••cdef"},
		{"-----BEGIN KEY-----\nabc\n", "••••"}, {"twelve bytes and more", "••••"}, {"päßwörter-lang", "••••"}, {"twelve-byte\x1b", "••••"},
	} {
		if got := New([]byte(test.in)).Mask(); got != test.want {
			t.Errorf("%q: %q, want %q", test.in, got, test.want)
		}
	}
}

func TestBytes(t *testing.T) {
	source := []byte("abcdefgh")
	s := Take(source)
	if !bytes.Equal(source, make([]byte, 8)) {
		t.Error("the source was not cleared")
	}
	if string(s.Reveal()) != "abcdefgh" || s.Len() != 8 || s.Empty() {
		t.Error("lost")
	}
	for _, test := range []struct {
		a, b Bytes
		want bool
	}{
		{s, New([]byte("abcdefgh")), true}, {s, New([]byte("abcdefgx")), false}, {s, New([]byte("abc")), false}, {s, Bytes{}, false},
		{Bytes{}, Bytes{}, false}, {New(nil), New([]byte{}), false},
	} {
		if test.a.Equal(test.b) != test.want {
			t.Errorf("%q = %q: want %v", test.a.Reveal(), test.b.Reveal(), test.want)
		}
	}
	alias := s
	s.Wipe()
	if !bytes.Equal(alias.Reveal(), make([]byte, 8)) {
		t.Error("not wiped")
	}
	Bytes{}.Wipe()
}
