package redact

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

const canary = `ghp_CANARY/0123+456"789=abcdefXYZ`

func one(value, instead string) *Set {
	return NewSet([]Entry{{Value: []byte(value), Instead: []byte(instead)}})
}

// encodings are how an upstream may write a text.
func encodings(s string) map[string]string {
	inJSON, _ := json.Marshal(s)
	all := map[string]string{
		"raw": s, "hex": hex.EncodeToString([]byte(s)), "HEX": strings.ToUpper(hex.EncodeToString([]byte(s))), "json": string(inJSON),
		"query": url.QueryEscape(s), "path": url.PathEscape(s), "lower": string(lowerEscapes([]byte(url.QueryEscape(s)))),
	}
	for i := range 3 {
		padded := strings.Repeat("u", i) + s + strings.Repeat(":", i)
		all[fmt.Sprint("base64 ", i)] = base64.StdEncoding.EncodeToString([]byte(padded))
		all[fmt.Sprint("base64url ", i)] = base64.RawURLEncoding.EncodeToString([]byte(padded))
	}
	return all
}

func TestForms(t *testing.T) {
	set := one(canary, "")
	for name, text := range encodings(canary) {
		around := "before " + text + " after"
		got, n := set.Text(around)
		if n != 1 || len(got) != len(around) || !strings.HasPrefix(got, "before ") || !strings.HasSuffix(got, " after") {
			t.Errorf("%s: %d finds in %q: %q", name, n, around, got)
		}
		if len(text) > 12 && strings.Contains(got, text[4:len(text)-6]) {
			t.Errorf("%s: still there: %q", name, got)
		}
	}
	for _, other := range []string{"", "ghp_", canary[:7], canary[1:], strings.ToLower(canary), strings.Repeat("g", 1000)} {
		if got, n := set.Text(other); n != 0 || got != other {
			t.Errorf("%q became %q", other, got)
		}
	}
}

func TestInstead(t *testing.T) {
	instead := strings.Repeat("p", len(canary))
	set := one(canary, instead)
	if got, _ := set.Text("token " + canary + "!"); got != "token "+instead+"!" {
		t.Errorf("%q", got)
	}
	if got, _ := set.Text(hex.EncodeToString([]byte(canary))); got != hex.EncodeToString([]byte(instead)) {
		t.Errorf("%q", got)
	}
	short := NewSet([]Entry{{Value: []byte("short")}, {}})
	if short != nil || short.Replace([]byte("short")) != 0 {
		t.Error("a short text is looked for")
	}
	two := NewSet([]Entry{{Value: []byte("secret-one")}, {Value: []byte("secret-one-and-more")}})
	for text, want := range map[string]string{
		"secret-one!": "**********!", "secret-one-and-more!": "*******************!", "secret-one-and-": "**********-and-", "secret-one": "**********",
	} {
		if got, n := two.Text(text); got != want || n != 1 {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
	if got, n := two.Text("cut off: secret-on"); got != "cut off: *********" || n != 1 {
		t.Errorf("%q", got)
	}
}

// TestSplit cuts a text with finds in it at every place, and byte by byte.
func TestSplit(t *testing.T) {
	set := one(canary, "")
	for name, text := range encodings(canary) {
		whole := "x" + text + "y" + text
		want, _ := set.Text(whole)
		for i := range len(whole) {
			count := 0
			parts := io.MultiReader(strings.NewReader(whole[:i]), strings.NewReader(whole[i:]))
			got, err := io.ReadAll(set.Reader(parts, func(n int) { count += n }))
			if err != nil || count != 2 || len(got) != len(whole) {
				t.Fatalf("%s at %d: %d finds, %q %v", name, i, count, got, err)
			}
			if strings.Contains(string(got), text[4:]) || seen(string(got), want) > 3 {
				t.Fatalf("%s at %d: %q, want %q", name, i, got, want)
			}
		}
		got, err := io.ReadAll(set.Reader(iotest.OneByteReader(strings.NewReader(whole)), func(int) {}))
		if err != nil || seen(string(got), want) > 6 {
			t.Errorf("%s byte by byte: %q, want %q %v", name, got, want, err)
		}
	}
}

// seen counts bytes that were let out although they should have been replaced.
func seen(got, want string) (n int) {
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			n++
		}
	}
	return n
}

// TestPromptly: what cannot be the beginning of a find does not wait for more.
func TestPromptly(t *testing.T) {
	w := one(canary, "").Stream()
	for _, p := range []string{"data: hello\n\n", "ends in g", "gh", "x"} {
		if got := w.Next([]byte(p)); string(got) != p {
			t.Errorf("%q: %q went on", p, got)
		}
	}
	if got := w.Next([]byte(canary[:10])); len(got) != 0 {
		t.Errorf("%q went on", got)
	}
	if got := w.Next([]byte("other")); string(got) != canary[:10]+"other" {
		t.Errorf("%q went on", got)
	}
}

// FuzzStream: a split stream comes out as the whole text does, but for the first three bytes of a find, in the same length.
func FuzzStream(f *testing.F) {
	f.Add([]byte("a"+canary+canary[:9]+canary), uint64(1))
	f.Add([]byte(base64.StdEncoding.EncodeToString([]byte("xx"+canary))), uint64(7))
	set := one(canary, "")
	f.Fuzz(func(t *testing.T, text []byte, seed uint64) {
		random := rand.New(rand.NewPCG(seed, 0))
		want := bytes.Clone(text)
		finds := set.Replace(want)
		w, got := set.Stream(), []byte(nil)
		for rest := text; len(rest) > 0; {
			n := 1 + random.IntN(min(len(rest), 40))
			got = append(got, w.Next(rest[:n])...)
			rest = rest[n:]
		}
		got = append(got, w.End()...)
		if len(got) != len(text) || w.Count != finds || seen(string(got), string(want)) > 3*finds {
			t.Fatalf("%q: %q (%d), want %q (%d)", text, got, w.Count, want, finds)
		}
	})
}

func wsFrame(fin bool, opcode byte, payload string) []byte {
	out := []byte{opcode, 0}
	if fin {
		out[0] |= 128
	}
	switch n := len(payload); {
	case n < 126:
		out[1] = byte(n)
	case n < 1<<16:
		out[1] = 126
		out = binary.BigEndian.AppendUint16(out, uint16(n))
	default:
		out[1] = 127
		out = binary.BigEndian.AppendUint64(out, uint64(n))
	}
	return append(out, payload...)
}

func TestWebSocket(t *testing.T) {
	set := one(canary, "")
	long := strings.Repeat("z", 70000)
	stream := slices.Concat(
		wsFrame(true, 1, "hello"), wsFrame(true, 1, "a "+canary+" b"), wsFrame(true, 9, canary), wsFrame(false, 2, canary[:11]), wsFrame(true, 10, "pong"),
		wsFrame(false, 0, ""), wsFrame(true, 0, canary[11:]+"!"), wsFrame(true, 1, long+canary+long), wsFrame(true, 8, "\x03\xe8bye"))
	for name, from := range map[string]io.Reader{"whole": bytes.NewReader(stream), "by byte": iotest.OneByteReader(bytes.NewReader(stream))} {
		count := 0
		got, err := io.ReadAll(set.WebSocket(from, func(n int) { count += n }))
		if err != nil || len(got) != len(stream) || count != 4 {
			t.Fatalf("%s: %d of %d bytes, %d finds, %v", name, len(got), len(stream), count, err)
		}
		if bytes.Contains(got, []byte(canary[4:12])) || bytes.Contains(got, []byte(canary[12:])) || !bytes.Contains(got, []byte("hello")) {
			t.Errorf("%s: %.300q", name, got)
		}
	}
	for name, bad := range map[string][]byte{
		"masked": {0x81, 0x85, 1, 2, 3, 4}, "compressed": {0xc1, 5}, "opcode": {0x83, 0}, "long ping": {0x89, 126, 1, 0}, "split close": {0x08, 0},
		"huge": {0x82, 127, 255, 0, 0, 0, 0, 0, 0, 0},
	} {
		if _, err := io.ReadAll(set.WebSocket(bytes.NewReader(bad), func(int) {})); err == nil {
			t.Errorf("%s passes", name)
		}
	}
}

func TestFind(t *testing.T) {
	set := NewSet([]Entry{{Value: []byte("placeholder-one")}, {Value: []byte("placeholder-two")}})
	for text, want := range map[string]int{
		"x=placeholder-two": 1, "Basic " + base64.StdEncoding.EncodeToString([]byte("u:placeholder-one")): 0, "placeholder-thr": -1, "": -1,
		`\u0070\u006c\u0061\u0063\u0065\u0068\u006f\u006c\u0064\u0065\u0072\u002d\u006f\u006e\u0065`: 0,
	} {
		if got, ok := set.Find([]byte(text)); ok != (want >= 0) || ok && got != want {
			t.Errorf("%q: %d %v", text, got, ok)
		}
	}
}

// TestEverywhere holds the strides to finding a text wherever it stands among others.
func TestEverywhere(t *testing.T) {
	set := one(canary, "")
	random := rand.New(rand.NewPCG(1, 2))
	for at := range 300 {
		text := make([]byte, 400)
		for i := range text {
			text[i] = "abcghp_CANRY/0123"[random.IntN(17)]
		}
		copy(text[at:], canary)
		if n := set.Replace(text); n != 1 || bytes.Contains(text, []byte(canary)) {
			t.Errorf("at %d: %d finds", at, n)
		}
	}
}

// TestReaderLeavesNothing looks at what a reader's caller holds beside what it was given: the reader reads into that.
func TestReaderLeavesNothing(t *testing.T) {
	for _, length := range []int{8, 40, 200} {
		r := one(canary, "").Reader(strings.NewReader("x "+canary+" y "+canary[:20]), func(int) {})
		p := make([]byte, length)
		for {
			n, err := r.Read(p)
			if bytes.Contains(p[n:], []byte(canary[:MinLength])) {
				t.Errorf("buffer of %d: %q", length, p)
			}
			if clear(p); err != nil {
				break
			}
		}
	}
}

func BenchmarkReader(b *testing.B) {
	set := one(canary, "")
	text := []byte(strings.Repeat(`{"id":12345,"name":"some ordinary JSON","url":"https://api.example.com/repos/acme/site"}`, 200))
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		_, _ = io.Copy(io.Discard, set.Reader(bytes.NewReader(text), func(int) {}))
	}
}
