package audit

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestClean(t *testing.T) {
	long := strings.Repeat("a", MaxText)
	for in, want := range map[string]string{
		"":                          "",
		"plain ümlaut 漢字 \\x":       "plain ümlaut 漢字 \\x",
		"\x1b[31mred\x1b[0m":        `\x1b[31mred\x1b[0m`,
		"a\nb\r\tc\x00\x7f":         `a\nb\r\tc\x00\x7f`,
		"\u009b31m":                 `\u009b31m`,
		"\u202egnp.exe\u2066":       `\u202egnp.exe\u2066`,
		"zero\u200bwidth\ufeff":     `zero\u200bwidth\ufeff`,
		"a\u00a0b\u2028":            `a\u00a0b\u2028`,
		"bad \xff\xc3 end \xef":     `bad \xff\xc3 end \xef`,
		"real \uFFFD":               "real \uFFFD",
		"\U000e0041":                `\U000e0041`,
		long:                        long,
		long + "b":                  long[:MaxText-3] + "…",
		long[:MaxText-1] + "é":      long[:MaxText-3] + "…",
		long[:MaxText-4] + "\x1bxx": long[:MaxText-4] + "…",
	} {
		if got := Clean(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func FuzzClean(f *testing.F) {
	f.Add("a\x1b\xffé\u202e")
	f.Add(strings.Repeat("\x00", MaxText))
	f.Fuzz(func(t *testing.T, s string) {
		c := Clean(s)
		if len(c) > MaxText || !utf8.ValidString(c) || Clean(c) != c {
			t.Fatalf("%q becomes %q", s, c)
		}
		for _, r := range c {
			if !visible(r) {
				t.Fatalf("%q keeps %U", s, r)
			}
		}
	})
}

func TestCleanList(t *testing.T) {
	many := make([]string, 1000)
	got := cleanList(many)
	if len(got) != maxList+1 || got[maxList] != "… 936 more" {
		t.Errorf("%d entries, last %q", len(got), got[len(got)-1])
	}
	if again := cleanList(got); len(again) != len(got) || again[maxList] != got[maxList] {
		t.Error("cleaning a clean list changes it")
	}
}

// TestLargestRecord: the bounds on texts keep any event below the bound on lines.
func TestLargestRecord(t *testing.T) {
	worst := strings.Repeat("<", 2*MaxText)
	list := make([]string, 1000)
	for i := range list {
		list[i] = worst
	}
	b, err := newBody(Event{Kind: Kind(worst), Host: worst, Path: worst, Detail: worst, Process: worst, Reason: worst, Error: worst, Command: list, Weaker: list})
	if err != nil || len(b.json) > maxLine-1000 {
		t.Errorf("%d bytes, %v", len(b.json), err)
	}
}

// FuzzRecord: any event becomes one line that is JSON, reads back as the cleaned event, and is intact; any changed byte makes it not so.
func FuzzRecord(f *testing.F) {
	f.Add("crossing.decided", "x.example.com", "\",\"hash\":\"", uint16(3), int64(5), 17)
	f.Fuzz(func(t *testing.T, kind, host, detail string, port uint16, unix int64, at int) {
		e := Event{Kind: Kind(kind), Host: host, Detail: detail, Port: port, Time: time.Unix(unix%(1<<36), 1).UTC(), Command: []string{host}}
		b, err := newBody(e)
		if err != nil {
			t.Skip()
		}
		p := place{hash: noHash}
		ln := p.appendRecord(nil, b, time.Now())
		ln = ln[:len(ln)-1]
		lk, ok := readLink(ln)
		if !ok || !lk.intact || lk.seq != 1 || lk.hash != p.hash || lk.prev != noHash || p.size != int64(len(ln)+1) {
			t.Fatalf("%s: %+v", ln, lk)
		}
		var back Event
		if err := json.Unmarshal(ln, &back); err != nil {
			t.Fatal(err)
		}
		if back.Host != Clean(host) || back.Detail != Clean(detail) || !back.Time.Equal(e.Time) || back.Port != port {
			t.Fatalf("got %+v from %+v", back, e)
		}
		ln[(at%len(ln)+len(ln))%len(ln)] ^= 1
		if lk, ok := readLink(ln); ok && lk.intact {
			t.Fatalf("changed and still intact: %s", ln)
		}
	})
}

func FuzzHead(f *testing.F) {
	f.Add([]byte(`{"seq":0,"hash":"` + noHash + `","size":0}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := decodeHead(data)
		if err != nil {
			return
		}
		out, err := h.encode()
		if err != nil || len(out) != headSize {
			t.Fatal(err, len(out))
		}
		if again, err := decodeHead(out); err != nil || again != h {
			t.Fatalf("%+v becomes %+v, %v", h, again, err)
		}
	})
}
