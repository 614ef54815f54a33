package audit

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRepair damages a log of 5 records as a crash or a thief would, appends one event, and looks at what is then on record.
func TestRepair(t *testing.T) {
	const n = 5
	for name, c := range map[string]struct {
		damage   func(t *testing.T, dir string)
		repaired string // in the Detail of the one log.repaired record; "" for none
		records  uint64 // whole records afterwards
		problem  string // in the one problem that Verify then finds; "" for none
	}{
		"nothing":                {damage: func(*testing.T, string) {}, records: n + 1},
		"torn line":              {damage: addBytes(`{"seq":6,"ti`), repaired: "12 bytes of an incomplete record", records: n + 2},
		"zeros after power loss": {damage: addBytes("\x00\x00\x00\x00"), repaired: "4 bytes", records: n + 2},
		"very long torn line":    {damage: addBytes(strings.Repeat("x", 3<<20)), repaired: "3145728 bytes", records: n + 2},
		"killed before the head": {damage: oldHead(3), records: n + 1},
		"killed before the head, torn": {damage: both(oldHead(3), addBytes("{")),
			repaired: "1 bytes", records: n + 2},
		"line break missing, head old": {damage: both(oldHead(4), cutBytes(1)), repaired: "line break", records: n + 2},
		"line break missing":           {damage: cutBytes(1), repaired: "line break", records: n + 2},
		"head lost":                    {damage: headIs(""), repaired: "head.json", records: n + 2},
		"head damaged":                 {damage: headIs(`{"seq":5}`), repaired: "head.json", records: n + 2},
		"last two records lost":        {damage: keepLines(3), repaired: "records 4 to 5", records: 5, problem: "records 4 to 5 are missing"},
		"last record torn": {damage: cutBytes(10), repaired: "record", records: 6,
			problem: "record 5 is missing"},
		"all lost":     {damage: keepLines(0), repaired: "records 1 to 5", records: 2, problem: "records 1 to 5 are missing"},
		"foreign line": {damage: addBytes("hello\n"), repaired: "1 lines", records: n + 2, problem: "not a record of the log: it was put in after record 5"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := newLog(t, n)
			c.damage(t, dir)
			l := open(t, dir)
			if err := l.Append(t.Context(), Event{Kind: RunEnded}); err != nil {
				t.Fatal(err)
			}
			appendN(t, l, 0)
			var details []string
			for e := range Read(dir, Filter{Kinds: []Kind{LogRepaired}}) {
				if e.Kind == LogRepaired {
					details = append(details, e.Detail)
				}
			}
			if got := strings.Join(details, "; "); !strings.Contains(got, c.repaired) || (c.repaired == "") != (got == "") {
				t.Errorf("repaired %q, want %q", got, c.repaired)
			}
			r, err := Verify(dir)
			if err != nil {
				t.Fatal(err)
			}
			var problems []string
			for _, p := range r.Problems {
				problems = append(problems, p.What)
			}
			if c.problem == "" && !r.OK() || c.problem != "" && (len(problems) != 1 || !strings.Contains(problems[0], c.problem)) {
				t.Errorf("problems %q, want %q", problems, c.problem)
			}
			want := c.records
			if name == "last record torn" {
				want++ // one record says what was cut off, one what is missing
			}
			if r.Records != want || r.Torn != 0 {
				t.Errorf("%d records, %d torn bytes, want %d", r.Records, r.Torn, want)
			}
			if head, err := Head(dir); err != nil || head != r.Head {
				t.Errorf("head %v %v, want %v", head, err, r.Head)
			}
		})
	}
}

func addBytes(s string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		f, err := os.OpenFile(filepath.Join(dir, logName), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(s); err != nil {
			t.Fatal(err)
		}
	}
}

func cutBytes(n int64) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		path := filepath.Join(dir, logName)
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, info.Size()-n); err != nil {
			t.Fatal(err)
		}
	}
}

func keepLines(n int) func(*testing.T, string) {
	return func(t *testing.T, dir string) { writeLines(t, dir, readLines(t, dir)[:n]) }
}

func headIs(s string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		if err := os.WriteFile(filepath.Join(dir, headName), []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// oldHead sets the head back to record n.
func oldHead(n int) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		h := head{Hash: noHash}
		for _, ln := range readLines(t, dir)[:n] {
			lk, _ := readLink([]byte(strings.TrimSuffix(ln, "\n")))
			h = head{Seq: lk.seq, Hash: lk.hash, Size: h.Size + int64(len(ln))}
		}
		data, err := h.encode()
		if err != nil {
			t.Fatal(err)
		}
		headIs(string(data))(t, dir)
	}
}

func both(a, b func(*testing.T, string)) func(*testing.T, string) {
	return func(t *testing.T, dir string) { a(t, dir); b(t, dir) }
}
