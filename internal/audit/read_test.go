package audit

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
)

func TestReadFilters(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	l := open(t, dir)
	at := func(m int) time.Time { return time.Date(2026, 1, 1, 12, m, 0, 0, time.UTC) }
	if err := l.Append(t.Context(),
		Event{Kind: RunStarted, Run: "aaaaaaaa", Time: at(1)},
		Event{Kind: CrossingDecided, Run: "aaaaaaaa", Time: at(2), Host: "a.example.com", Verdict: "allow"},
		Event{Kind: CrossingDecided, Run: "bbbbbbbb", Time: at(3), Host: "B.Example.com", Verdict: "deny"},
		Event{Kind: CrossingDecided, Run: "bbbbbbbb", Time: at(4), Address: "192.0.2.1:80", Verdict: "deny"},
		Event{Kind: CrossingDecided, Run: "aaaaaaaa", Time: at(5), Host: "example.com", Verdict: "ask", Detail: `"run":"bbbbbbbb"`},
		Event{Kind: RunEnded, Run: "aaaaaaaa", Time: at(6)},
	); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		f    Filter
		want string // the numbers of the records
	}{
		"all":             {Filter{}, "123456"},
		"run":             {Filter{Run: "bbbbbbbb"}, "34"},
		"other run":       {Filter{Run: "cccccccc"}, ""},
		"verdict":         {Filter{Verdict: "deny"}, "34"},
		"host":            {Filter{Host: "b.example.COM."}, "3"},
		"suffix":          {Filter{Host: "*.example.com"}, "23"},
		"no part of name": {Filter{Host: "ample.com"}, ""},
		"address":         {Filter{Host: "192.0.2.1"}, "4"},
		"since":           {Filter{Since: at(5)}, "56"},
		"until":           {Filter{Until: at(2)}, "1"},
		"between":         {Filter{Since: at(2), Until: at(4)}, "23"},
		"kinds":           {Filter{Kinds: []Kind{RunStarted, RunEnded}}, "16"},
		"newest":          {Filter{Limit: 2}, "56"},
		"newest of":       {Filter{Limit: 2, Kinds: []Kind{CrossingDecided}, Run: "aaaaaaaa"}, "25"},
		"more than there": {Filter{Limit: 100, Verdict: "ask"}, "5"},
		"several":         {Filter{Run: "bbbbbbbb", Host: "*.example.com", Verdict: "deny"}, "3"},
	} {
		var got strings.Builder
		for _, e := range events(t, dir, c.f) {
			got.WriteByte('0' + byte(e.Seq))
		}
		if got.String() != c.want {
			t.Errorf("%s: got records %s, want %s", name, got.String(), c.want)
		}
	}
}

func TestReadDamaged(t *testing.T) {
	dir := newLog(t, 4)
	lines := readLines(t, dir)
	lines[1] = "rubbish\n"
	lines[2] = strings.Replace(lines[2], "example", "\u202eex\u009b31m", 1)
	lines = append(lines, strings.Repeat("long", maxLine)+"\n")
	writeLines(t, dir, lines)
	addBytes("{half a line")(t, dir)
	var got []string
	for e, err := range Read(dir, Filter{}) {
		if err != nil {
			got = append(got, fault.KindOf(err).String()+" "+err.Error())
			continue
		}
		got = append(got, e.Host)
	}
	diff(t, got, []string{"h0.example.com", "conflict line 2 of the audit log is not a record", `h2.\u202eex\u009b31m.com`, "h3.example.com",
		"conflict line 5 of the audit log is not a record"})
	for range Read(dir, Filter{}) {
		break // stopping early must not panic
	}
	for _, err := range Read(t.TempDir(), Filter{}) {
		if fault.KindOf(err) != fault.NotFound {
			t.Errorf("no log: %v", err)
		}
	}
}

func TestFollow(t *testing.T) {
	dir := newLog(t, 3)
	l := open(t, dir)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var seen []uint64
	for e, err := range Follow(ctx, dir, Filter{Limit: 1}) {
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, e.Seq)
		switch e.Seq {
		case 3: // a torn line appears, is mended, and the reader neither shows nor trips over it
			addBytes("{half")(t, dir)
			go func() {
				time.Sleep(2 * followPause)
				appendN(t, l, 1)
			}()
		case 5:
			cancel()
		}
	}
	diff(t, seen, []uint64{3, 4, 5})
	if _, err := os.Stat(dir); err != nil {
		t.Fatal(err)
	}
}
