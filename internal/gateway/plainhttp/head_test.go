package plainhttp

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
)

// FuzzRequest: a head that passes is read in the same way by net/http, as it came and as it is written anew; and writing anew is stable.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST /x?y HTTP/1.1\r\nHost: a:1\r\nContent-Length: 5\r\nConnection: close, X\r\nX: 1\r\n\r\n",
		"PUT * HTTP/1.0\r\nhost:a\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\nTrailer: X\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n y\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		head := wholeHead(raw)
		var q request
		if head == nil || q.parse(head) != nil {
			return
		}
		target, ok := originForm(q.method, q.target, Origin{Authority: "a"})
		if !ok || !(Origin{Authority: "a"}).Same(string(q.fields.host)) {
			return
		}
		q.target = target
		out := q.append(nil, "a")
		std, err := http.ReadRequest(bufio.NewReader(io.MultiReader(bytes.NewReader(out), strings.NewReader(strings.Repeat("0", 4096)))))
		if err != nil {
			if _, e := strconv.Unquote(`"` + q.target + `"`); e == nil && !strings.Contains(q.target, "%") {
				t.Logf("net/http is stricter: %v\n%q", err, out) // its URL parser refuses more; a refusal is no disagreement
			}
			return
		}
		length := q.fields.length
		if q.fields.chunked || length < 0 && std.ContentLength == 0 {
			length = std.ContentLength
		}
		if std.Method != q.method || std.Host != "a" || std.ContentLength != length || (len(std.TransferEncoding) == 1) != q.fields.chunked {
			t.Fatalf("%q\nours %+v\nnet/http %+v", out, q, std)
		}
		var again request
		if err := again.parse(out); err != nil {
			t.Fatalf("%q is not read again: %v", out, err)
		}
		if twice := again.append(nil, "a"); !bytes.Equal(twice, out) {
			t.Fatalf("%q\nagain\n%q", out, twice)
		}
	})
}

// wholeHead cuts what block would return for raw, nil if there is nothing.
func wholeHead(raw []byte) []byte {
	i := bytes.Index(raw, []byte("\r\n\r\n"))
	if i < 0 {
		return nil
	}
	head := raw[:i+4]
	for j, c := range head {
		if c == '\n' && (j == 0 || head[j-1] != '\r') {
			return nil
		}
	}
	return head
}

// FuzzResponse: what passes is written anew as something that net/http reads with the same status and framing.
func FuzzResponse(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "HTTP/1.0 404\r\n\r\n", "HTTP/1.1 304 x y\r\nTransfer-Encoding: chunked\r\n\r\n",
		"HTTP/1.1 204 \r\nConnection: a,b\r\nA: 1\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		head := wholeHead(raw)
		var p response
		if head == nil || p.parse(head) != nil {
			return
		}
		as := p.framing(http.MethodGet)
		out := p.append(nil, as, as == untilClose, false)
		std, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(out)), &http.Request{Method: http.MethodGet})
		if err != nil || std.StatusCode != p.status {
			t.Fatalf("%q: %+v %v", out, std, err)
		}
		if as == counted && std.ContentLength != p.fields.length || as == chunked && len(std.TransferEncoding) != 1 || as == untilClose && !std.Close {
			t.Fatalf("%q: framing %d, net/http %+v", out, as, std)
		}
	})
}

func TestParseChunk(t *testing.T) {
	for _, test := range []struct {
		line string
		n    int64
		ok   bool
	}{
		{"0", 0, true}, {"1f", 31, true}, {"1F;a=b", 31, true}, {"fffffffffffffff", 1<<60 - 1, true},
		{"", 0, false}, {"+5", 0, false}, {"0x5", 0, false}, {" 5", 0, false}, {"5 ", 0, false}, {"-1", 0, false}, {";a", 0, false},
		{"5;\x00", 0, false}, {"5\r", 0, false}, {"ffffffffffffffff", 0, false}, {"10000000000000005", 0, false},
	} {
		if n, err := parseChunk([]byte(test.line)); n != test.n && test.ok || (err == nil) != test.ok {
			t.Errorf("%q: %d %v", test.line, n, err)
		}
	}
}

func TestSameAuthority(t *testing.T) {
	for _, test := range []struct {
		got, want string
		same      bool
	}{
		{"a.example", "a.example", true}, {"A.Example", "a.example", true}, {"a.example.", "a.example", true}, {"a.example:80", "a.example", true},
		{"a.example:8080", "a.example:8080", true}, {"a.example.:8080", "a.example:8080", true}, {"[2001:db8::1]", "[2001:db8::1]", true},
		{"[2001:db8::1]:80", "[2001:db8::1]", true},
		{"", "", true}, {"", "a.example", false}, {".", "a.example", false}, {"b.example", "a.example", false}, {"a.example:81", "a.example", false},
		{"a.example", "a.example:81", false}, {"a.example:080", "a.example", false}, {"a.example..", "a.example", false}, {"a.example@b", "a.example", false},
		{"a.example:", "a.example", false}, {"[[2001:db8::1]]", "[2001:db8::1]", false}, {"a.example,b", "a.example", false},
	} {
		if got := (Origin{Authority: test.want}).Same(test.got); got != test.same {
			t.Errorf("%q for %q: %v", test.got, test.want, got)
		}
	}
}
