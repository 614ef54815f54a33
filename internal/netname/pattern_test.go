package netname

import (
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/fault"
)

func TestPatternMatch(t *testing.T) {
	tests := []struct {
		pattern, host string
		want          bool
	}{
		{"example.com", "example.com", true},
		{"example.com", "www.example.com", false},
		{"example.com", "notexample.com", false},
		{"example.com", "example.com.evil.example", false},
		{"*.example.com", "a.example.com", true},
		{"*.example.com", "b.a.example.com", true},
		{"*.example.com", "example.com", false},
		{"*.example.com", "notexample.com", false},
		{"*.example.com", "a.notexample.com", false},
		{"*.example.com", "a.example.com.evil.example", false},
		{"*.example.com", "com", false},
		{"mirror", "mirror", true},
		{"mirror", "a.mirror", false},
	}
	for _, tt := range tests {
		p, err := ParsePattern(tt.pattern)
		if err != nil {
			t.Fatal(err)
		}
		h, err := NormaliseHost(tt.host)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Match(h); got != tt.want {
			t.Errorf("%s matches %s = %v, want %v", p, h, got, tt.want)
		}
		if p.String() != tt.pattern {
			t.Errorf("pattern %s prints as %s", tt.pattern, p)
		}
	}
	if (Pattern{}).Match("") || (Pattern{}).Match("a") || Exact("a.example").Match("") || (Pattern{wildcard: true}).Match("a.b") {
		t.Error("a zero pattern or host matches something")
	}
}

func TestParsePatternRefuses(t *testing.T) {
	for in, want := range map[string]string{
		"*": "every host", "**": "every host", "*.": "every host", "": "empty",
		"*.com": "top-level", "*.localhost": "top-level", "*.co.uk": "*.example.co.uk", "*.com.au": "*.example.com.au",
		"**.com": "star", "**.example.com": "star", "*.*.example.com": "write *.example.com", "a.*.example.com": "star", "*a.example.com": "star", "example.*": "star",
		".example.com": "empty", "*.Example.com": "write example.com", "*.10.1.2.3": "address", "*.example.com.": "write example.com", "*..example.com": "empty",
		"example.com@evil": "cannot occur",
	} {
		if p, err := ParsePattern(in); err == nil || !strings.Contains(err.Error()+": "+fault.HintOf(err), want) {
			t.Errorf("ParsePattern(%q) = %s, %v; want an error with %q", in, p, err, want)
		}
	}
}

func TestPatternCovers(t *testing.T) {
	tests := []struct {
		p, q string
		want bool
	}{
		{"a.example.com", "a.example.com", true},
		{"*.example.com", "a.example.com", true},
		{"*.example.com", "*.example.com", true},
		{"*.example.com", "*.a.example.com", true},
		{"*.example.com", "example.com", false},
		{"*.a.example.com", "*.example.com", false},
		{"a.example.com", "*.a.example.com", false},
		{"*.example.com", "*.notexample.com", false},
	}
	for _, tt := range tests {
		p, _ := ParsePattern(tt.p)
		q, _ := ParsePattern(tt.q)
		if got := p.Covers(q); got != tt.want {
			t.Errorf("%s covers %s = %v, want %v", p, q, got, tt.want)
		}
	}
	if p, _ := ParsePattern("*.example.com"); p.Covers(Pattern{}) || (Pattern{}).Covers(p) {
		t.Error("a zero pattern covers or is covered")
	}
}

func FuzzPattern(f *testing.F) {
	f.Add("*.example.com", "a.example.com")
	f.Add("example.com", "notexample.com")
	f.Add("*.b.a", "b.a")
	f.Fuzz(func(t *testing.T, pattern, host string) {
		p, err := ParsePattern(pattern)
		if err != nil {
			return
		}
		if again, err := ParsePattern(p.String()); err != nil || again != p || p.String() != pattern {
			t.Fatalf("ParsePattern(%q) prints as %q, read as %v, %v", pattern, p, again, err)
		}
		h, err := NormaliseHost(host)
		if err != nil || !p.Match(h) {
			return
		}
		base := strings.TrimPrefix(pattern, "*.")
		if string(h) != base && !strings.HasSuffix(string(h), "."+base) {
			t.Fatalf("%s matches %s, which lies outside", p, h)
		}
		if string(h) == base == p.Wildcard() {
			t.Fatalf("%s matches %s: the apex and what is below are mixed up", p, h)
		}
	})
}
