package audit

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// rehash gives a line the hash that belongs to its content, as someone would who knows the format.
func rehash(ln string) string {
	ln = strings.TrimSuffix(ln, "\n")
	covered := ln[:len(ln)-hashTail]
	return covered + hashMember + hashOf([]byte(covered)) + recordEnd + "\n"
}

func edit(ln string) string { return strings.Replace(ln, `"deny"`, `"allow"`, 1) }

// renumber gives a line another number and hash.
func renumber(ln string, seq int) string {
	_, rest, _ := strings.Cut(ln, ",")
	return rehash(fmt.Sprintf(`{"seq":%d,%s`, seq, rest))
}

func TestVerifyNamesTheRecord(t *testing.T) {
	const n = 9
	for name, c := range map[string]struct {
		tamper func(l []string) []string
		want   []string // "SEQ/LINE part of the sentence", in order
	}{
		"untouched": {func(l []string) []string { return l }, nil},
		"changed": {func(l []string) []string { l[3] = edit(l[3]); return l },
			[]string{"4/4 record 4 was changed"}},
		"first changed": {func(l []string) []string { l[0] = edit(l[0]); return l }, []string{"1/1 record 1 was changed"}},
		"last changed":  {func(l []string) []string { l[8] = edit(l[8]); return l }, []string{"9/9 record 9 was changed"}},
		"two changed": {func(l []string) []string { l[3] = edit(l[3]); l[4] = edit(l[4]); return l },
			[]string{"4/4 record 4 was changed", "5/5 record 5 was changed"}},
		"changed and rehashed": {func(l []string) []string { l[3] = rehash(edit(l[3])); return l },
			[]string{"4/4 record 4 was changed and given a new hash"}},
		"last changed and rehashed": {func(l []string) []string { l[8] = rehash(edit(l[8])); return l },
			[]string{"9/9 record 9 is not the one that head.json names"}},
		"number changed":    {func(l []string) []string { l[3] = strings.Replace(l[3], `"seq":4`, `"seq":7`, 1); return l }, []string{"4/4 record 4 was changed"}},
		"made unreadable":   {func(l []string) []string { l[3] = "rubbish\n"; return l }, []string{"4/4 record 4 was changed"}},
		"last unreadable":   {func(l []string) []string { l[8] = "rubbish\n"; return l }, []string{"9/9 record 9 was changed"}},
		"white space added": {func(l []string) []string { l[3] = strings.Replace(l[3], ",", ", ", 1); return l }, []string{"4/4 record 4 was changed"}},
		"deleted":           {func(l []string) []string { return slices.Delete(l, 3, 4) }, []string{"4/4 record 4 is missing"}},
		"first deleted":     {func(l []string) []string { return l[1:] }, []string{"1/1 record 1 is missing"}},
		"three deleted":     {func(l []string) []string { return slices.Delete(l, 3, 6) }, []string{"4/4 records 4 to 6 are missing"}},
		"two places deleted": {func(l []string) []string { return slices.Delete(slices.Delete(l, 5, 6), 3, 4) },
			[]string{"4/4 record 4 is missing", "6/5 record 6 is missing"}},
		"last deleted": {func(l []string) []string { return l[:8] }, []string{"9/0 record 9 is missing at the end, but known to head.json"}},
		"cut off":      {func(l []string) []string { return l[:3] }, []string{"4/0 records 4 to 9 are missing at the end"}},
		"emptied":      {func(l []string) []string { return nil }, []string{"1/0 records 1 to 9 are missing at the end"}},
		"neighbours swapped": {func(l []string) []string { l[3], l[4] = l[4], l[3]; return l },
			[]string{"5/4 record 5 was moved: it stands at line 4"}},
		"last two swapped": {func(l []string) []string { l[7], l[8] = l[8], l[7]; return l }, []string{"9/8 record 9 was moved"}},
		"moved back":       {func(l []string) []string { m := l[6]; return slices.Insert(slices.Delete(l, 6, 7), 2, m) }, []string{"7/3 record 7 was moved"}},
		"moved on":         {func(l []string) []string { m := l[2]; return slices.Insert(slices.Delete(l, 2, 3), 6, m) }, []string{"3/7 record 3 was moved"}},
		"copied":           {func(l []string) []string { return slices.Insert(l, 6, l[2]) }, []string{"3/7 this record was put in"}},
		"put in, no record": {func(l []string) []string { return slices.Insert(l, 3, "rubbish\n") },
			[]string{"0/4 this line is not a record of the log: it was put in after record 3"}},
		"put in behind, rehashed": {func(l []string) []string { return slices.Insert(l, 4, rehash(edit(l[3]))) },
			[]string{"4/5 this record was put in"}},
		"put in before, rehashed": {func(l []string) []string { return slices.Insert(l, 3, rehash(edit(l[3]))) },
			[]string{"4/4 record 4 was put in: the real one follows it"}},
		"put in with a far number": {func(l []string) []string { return slices.Insert(l, 3, renumber(l[3], 1000)) },
			[]string{"1000/4 this record was put in"}},
		"replaced by another": {func(l []string) []string { l[3] = renumber(l[7], 4); return l },
			[]string{"3/3 record 3 was changed and given a new hash, or record 4 was replaced", "4/4 record 4 was changed and given"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := newLog(t, n)
			writeLines(t, dir, c.tamper(readLines(t, dir)))
			r, err := Verify(dir)
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Problems) != len(c.want) || r.OK() != (len(c.want) == 0) {
				t.Fatalf("got %+v\nwant %q", r.Problems, c.want)
			}
			for i, p := range r.Problems {
				if got := fmt.Sprintf("%d/%d %s", p.Seq, p.Line, p.What); !strings.HasPrefix(got, c.want[i]) {
					t.Errorf("got  %s\nwant %s", got, c.want[i])
				}
			}
		})
	}
}

func TestVerifyAgainstCheckpoint(t *testing.T) {
	dir := newLog(t, 5)
	kept, err := Head(dir)
	if err != nil {
		t.Fatal(err)
	}
	appendN(t, open(t, dir), 2)
	if r, err := Verify(dir, kept); err != nil || !r.OK() {
		t.Fatalf("true checkpoint: %+v %v", r, err)
	}
	forged := newLog(t, 7) // the whole log written anew, with its head: nothing in the directory shows it
	if r := mustVerify(t, forged); r.Records != 7 {
		t.Fatal(r)
	}
	short := newLog(t, 3)
	for name, c := range map[string]struct {
		dir  string
		want string
	}{
		"rewritten": {forged, "record 5 is not the one that the checkpoint names"},
		"shortened": {short, "records 4 to 5 are missing at the end, but known to the checkpoint"},
	} {
		r, err := Verify(c.dir, kept)
		if err != nil || len(r.Problems) != 1 || !strings.HasPrefix(r.Problems[0].What, c.want) {
			t.Errorf("%s: %+v %v", name, r, err)
		}
	}
}

func TestVerifyOtherStates(t *testing.T) {
	if _, err := Verify(t.TempDir()); fault.KindOf(err) != fault.NotFound {
		t.Errorf("no log: %v", err)
	}
	if r := mustVerify(t, newLog(t, 0)); r.Records != 0 || r.Head.Hash != noHash {
		t.Errorf("empty log: %+v", r)
	}
	torn := newLog(t, 2)
	addBytes("{half")(t, torn)
	if r := mustVerify(t, torn); r.Torn != 5 || r.Records != 2 {
		t.Errorf("torn: %+v", r)
	}
	lagging := newLog(t, 5)
	oldHead(2)(t, lagging)
	if r := mustVerify(t, lagging); r.Head.Seq != 5 {
		t.Errorf("head lags: %+v", r)
	}
	headless := newLog(t, 2)
	if err := os.Remove(filepath.Join(headless, headName)); err != nil {
		t.Fatal(err)
	}
	if r, err := Verify(headless); err != nil || len(r.Problems) != 1 || !strings.HasPrefix(r.Problems[0].What, "head.json") {
		t.Errorf("no head: %+v %v", r, err)
	}
	if _, err := Head(headless); fault.KindOf(err) != fault.Conflict {
		t.Errorf("no head: %v", err)
	}
}

func TestVerifyBoundsItsReport(t *testing.T) {
	dir := newLog(t, 1)
	addBytes(strings.Repeat("x\n", 5000))(t, dir)
	r, err := Verify(dir)
	if err != nil || len(r.Problems) > maxProblems || uint64(len(r.Problems))+r.More != 5000 || r.OK() {
		t.Errorf("%d problems, %d more, %v", len(r.Problems), r.More, err)
	}
}

func TestCheckpointText(t *testing.T) {
	h := strings.Repeat("0a", 32)
	for s, ok := range map[string]bool{
		"5:" + h: true, "0:" + noHash: true, "0:" + h: false, "5:" + noHash: false, "05:" + h: false, "+5:" + h: false, "5" + h: false,
		"5:" + strings.ToUpper(h): false, "5:" + h[1:]: false, "": false, ":": false, "-1:" + h: false, " 5:" + h: false,
	} {
		c, err := ParseCheckpoint(s)
		if (err == nil) != ok || ok && c.String() != s {
			t.Errorf("%q: %v %v", s, c, err)
		}
	}
}

// FuzzVerify: whatever is done to the bytes of a log, Verify notices it.
func FuzzVerify(f *testing.F) {
	dir := newLog(f, 4)
	original, err := os.ReadFile(filepath.Join(dir, logName))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(10, 1, []byte("x"))
	f.Add(0, len(original), []byte(nil))
	f.Add(len(original)-1, 1, []byte(" \n"))
	f.Fuzz(func(t *testing.T, at, drop int, put []byte) {
		if at < 0 || drop < 0 || at > len(original) || drop > len(original)-at {
			t.Skip()
		}
		text := slices.Concat(original[:at], put, original[at+drop:])
		if err := os.WriteFile(filepath.Join(dir, logName), text, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := Verify(dir)
		if err != nil {
			t.Fatal(err)
		}
		torn := strings.HasPrefix(string(text), string(original)) && !strings.Contains(string(text[len(original):]), "\n")
		if same := torn && r.Torn == int64(len(text)-len(original)); r.OK() != same {
			t.Fatalf("OK=%v for %q", r.OK(), text)
		}
	})
}
