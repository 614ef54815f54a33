package netname

import (
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/fault"
)

func TestNormaliseHost(t *testing.T) {
	long := strings.Repeat("a", 63)
	max := strings.Join([]string{long, long, long, strings.Repeat("a", 61)}, ".") // 253 bytes
	tests := []struct{ in, want string }{
		{"example.com", "example.com"},
		{"EXAMPLE.Com", "example.com"},
		{"example.com.", "example.com"},
		{"xn--bcher-kva.example", "xn--bcher-kva.example"},
		{"_http._tcp.example.com", "_http._tcp.example.com"},
		{"my_bucket.example.com", "my_bucket.example.com"},
		{"r3---sn-4g5e.example.com", "r3---sn-4g5e.example.com"},
		{"localhost", "localhost"},
		{"1.example", "1.example"},
		{"0xg", "0xg"},
		{max, max},
		{max + ".", max},

		{"", ""}, {".", ""}, {"..", ""}, {"example.com..", ""}, {".example.com", ""}, {"a..example.com", ""},
		{"a" + max, ""}, {long + "a.example", ""},
		{"-a.example", ""}, {"a-.example", ""},
		{"evil.example\x00.example.com", ""}, {"a\r\nb.example", ""}, {"a\tb.example", ""}, {"a b.example", ""}, {" example.com", ""},
		{"a%2eexample.com", ""}, {"user@example.com", ""}, {"example.com:443", ""}, {"example.com/x", ""}, {"[::1]", ""}, {"::1", ""},
		{"*.example.com", ""}, {"a\\.example.com", ""}, {"a,b.example", ""},
		{"bücher.example", ""}, {"\u212Aelvin.example", ""}, {"exаmple.com", ""}, {"example。com", ""}, {"a\xff.example", ""}, {"a\u200bb.example", ""},
		{"127.0.0.1", ""}, {"127.1", ""}, {"2130706433", ""}, {"0x7f000001", ""}, {"0x", ""}, {"0x7f.1", ""}, {"0177.0.0.01", ""}, {"example.1", ""}, {"1.2.3.4.", ""},
	}
	for _, tt := range tests {
		got, err := NormaliseHost(tt.in)
		if (err == nil) != (tt.want != "") || got.String() != tt.want {
			t.Errorf("NormaliseHost(%q) = %q, %v; want %q", tt.in, got, err, tt.want)
		}
	}
}

func TestParseHostSaysWhatToWrite(t *testing.T) {
	for in, want := range map[string]string{
		"Example.com":                "write example.com",
		"example.com.":               "write example.com",
		" example.com":               "write example.com",
		"https://example.com/a/b":    "write example.com",
		"example.com:443":            "write example.com",
		"bücher.example":             "write xn--bcher-kva.example",
		"BÜCHER.example":             "write xn--bcher-kva.example",
		"例え.テスト":                     "write xn--r8jz45g.xn--zckzah",
		"10.1.2.3":                   "networks",
		"a..example.com":             "label is empty",
		"a\x00.example":              `\x00`,
		"":                           "empty",
		strings.Repeat("a.", 200):    "longer than 253",
		"\xff.example":               "cannot occur",
		strings.Repeat("ü", 300):     "longer than",
		"user:pass@example.com":      "cannot occur",
		"https://user@example.com/x": "cannot occur",
	} {
		h, err := ParseHost(in)
		if err == nil || !strings.Contains(err.Error()+": "+fault.HintOf(err), want) {
			t.Errorf("ParseHost(%q) = %q, %v; want an error with %q", in, h, err, want)
		}
	}
	for _, in := range []string{"example.com", "mirror", "a_b.example.com", "xn--bcher-kva.example"} {
		if h, err := ParseHost(in); err != nil || h.String() != in {
			t.Errorf("ParseHost(%q) = %q, %v; want it as it is", in, h, err)
		}
	}
}

func TestParsePort(t *testing.T) {
	for in, want := range map[string]uint16{
		"1": 1, "443": 443, "65535": 65535,
		"0": 0, "65536": 0, "65537": 0, "-1": 0, "+80": 0, "080": 0, "0x50": 0, "8 0": 0, "": 0, "http": 0, "4294967377": 0, "80\n": 0,
	} {
		if got, err := ParsePort(in); got != want || (err == nil) != (want != 0) {
			t.Errorf("ParsePort(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
}

func FuzzNormaliseHost(f *testing.F) {
	for _, s := range []string{"Example.com.", "a..b", "1.2.3.4", "bücher.example", "_x._tcp.a", "a\x00b", "xn--a", "*.a.b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h, err := NormaliseHost(s)
		_, _ = ParseHost(s) // must not panic
		if err != nil {
			return
		}
		if again, err := NormaliseHost(h.String()); err != nil || again != h {
			t.Fatalf("NormaliseHost(%q) = %q, and of that %q, %v", s, h, again, err)
		}
		if parsed, err := ParseHost(h.String()); err != nil || parsed != h {
			t.Fatalf("NormaliseHost(%q) = %q, which ParseHost reads as %q, %v", s, h, parsed, err)
		}
		if !strings.EqualFold(strings.TrimSuffix(s, "."), h.String()) {
			t.Fatalf("NormaliseHost(%q) = %q changed more than case and one dot", s, h)
		}
	})
}
