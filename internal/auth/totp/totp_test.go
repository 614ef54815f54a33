package totp

import (
	"encoding/xml"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/secret"
)

// The secret and values of RFC 6238, appendix B, whose eight digits end in our six.
func TestRFC6238(t *testing.T) {
	s := secret.New([]byte("12345678901234567890"))
	for _, c := range []struct {
		at   int64
		code string
	}{{59, "94287082"}, {1111111109, "07081804"}, {1111111111, "14050471"}, {1234567890, "89005924"}, {2000000000, "69279037"}, {20000000000, "65353130"}} {
		if got := Code(s, Step(time.Unix(c.at, 0))); got != c.code[2:] {
			t.Errorf("at %d: %s, want %s", c.at, got, c.code[2:])
		}
	}
}

func TestCheck(t *testing.T) {
	s := secret.New([]byte("12345678901234567890"))
	now := time.Unix(1_700_000_010, 0)
	this := Step(now)
	for _, c := range []struct {
		name string
		code string
		last int64
		ok   bool
	}{
		{"now", Code(s, this), 0, true},
		{"one early", Code(s, this-1), 0, true},
		{"one late", Code(s, this+1), 0, true},
		{"two early", Code(s, this-2), 0, false},
		{"two late", Code(s, this+2), 0, false},
		{"used", Code(s, this), this, false},
		{"before one that was used", Code(s, this-1), this, false},
		{"after one that was used", Code(s, this+1), this, true},
		{"as shown", Code(s, this)[:3] + " " + Code(s, this)[3:], 0, true},
		{"empty", "", 0, false},
		{"short", "12345", 0, false},
		{"long", Code(s, this) + "0", 0, false},
		{"letters", "abcdef", 0, false},
		{"other digits", "１２３４５６", 0, false},
	} {
		if step, ok := Check(s, c.code, now, c.last); ok != c.ok || ok && step <= c.last {
			t.Errorf("%s: step %d, %v", c.name, step, ok)
		}
	}
	if _, ok := Check(secret.Bytes{}, Code(secret.Bytes{}, this), now, 0); ok {
		t.Error("no secret proves something")
	}
}

func TestURL(t *testing.T) {
	s := secret.New([]byte("12345678901234567890"))
	u, err := url.Parse(URL(s, "Coffer dam", "ada+x@example.com"))
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	if u.Scheme != "otpauth" || u.Host != "totp" || u.Path != "/Coffer dam:ada+x@example.com" || q.Get("secret") != "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ" || q.Get("issuer") != "Coffer dam" {
		t.Errorf("%s", u)
	}
	if a, b := NewSecret(), NewSecret(); a.Len() != 20 || a.Equal(b) {
		t.Error("secrets are not fresh")
	}
}

func TestSVG(t *testing.T) {
	svg, err := SVG("otpauth://totp/x")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		XMLName xml.Name
		Path    struct {
			D string `xml:"d,attr"`
		} `xml:"path"`
	}
	if err := xml.Unmarshal(svg, &doc); err != nil || doc.XMLName.Local != "svg" {
		t.Fatalf("%v: %s", err, svg)
	}
	// The finder pattern in the corner: a black line of seven modules, behind the margin.
	if want := fmt.Sprintf("M%d %dh7v1h-7z", quiet, quiet); !strings.HasPrefix(doc.Path.D, want) {
		t.Errorf("%.40s", doc.Path.D)
	}
	if _, err := SVG(strings.Repeat("x", 10000)); err == nil {
		t.Error("10,000 bytes fit into a QR code")
	}
}
