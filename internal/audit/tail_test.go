package audit

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/fault"
)

func TestTail(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	appendN(t, l, 5)
	tail, err := OpenTail(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	first, skipped, err := tail.Next(3)
	if err != nil || skipped != 0 || len(first) != 3 || first[0].Event.Seq != 1 || first[0].Offset != 0 {
		t.Fatalf("%v %d %v", first, skipped, err)
	}
	rest, _, err := tail.Next(100)
	if err != nil || len(rest) != 2 || rest[0].Offset != first[2].Offset+int64(first[2].Length) {
		t.Fatalf("%v %v", rest, err)
	}
	if none, _, err := tail.Next(100); err != nil || len(none) != 0 {
		t.Fatalf("at the end: %v %v", none, err)
	}
	appendN(t, l, 1)
	size, err := Size(dir)
	if more, _, err2 := tail.Next(100); err2 != nil || err != nil || len(more) != 1 || tail.Offset() != size {
		t.Fatalf("%v %v %v: at %d of %d", more, err, err2, tail.Offset(), size)
	}

	again, err := OpenTail(dir, first[2].Offset)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if got, _, err := again.Next(1); err != nil || len(got) != 1 || got[0].Event.Seq != 3 {
		t.Fatalf("continued: %v %v", got, err)
	}
	for _, bad := range []int64{first[2].Offset - 3, size + 1} {
		if _, err := OpenTail(dir, bad); !errors.Is(err, ErrReplaced) {
			t.Errorf("offset %d: %v", bad, err)
		}
	}
}

func TestTailTornAndForeign(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	appendN(t, l, 1)
	name := filepath.Join(dir, logName)
	add := func(s string) {
		t.Helper()
		f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(s); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	add("no record\n" + strings.Repeat("x", maxLine+10) + "\n{\"seq\":")
	tail, err := OpenTail(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	got, skipped, err := tail.Next(10)
	if err != nil || len(got) != 1 || skipped != 2 {
		t.Fatalf("%v %d %v", got, skipped, err)
	}
	at := tail.Offset()
	if got, skipped, err := tail.Next(10); err != nil || len(got)+skipped != 0 || tail.Offset() != at {
		t.Fatalf("a torn line was read: %v %d %v", got, skipped, err)
	}
	if err := os.Truncate(name, 10); err != nil {
		t.Fatal(err)
	}
	if _, _, err := tail.Next(10); !errors.Is(err, ErrReplaced) {
		t.Errorf("shorter: %v", err)
	}
}

func TestTailReplaced(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	appendN(t, l, 1)
	tail, err := OpenTail(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	for _, name := range []string{logName, headName} {
		if err := os.Rename(filepath.Join(dir, name), filepath.Join(dir, name+".old")); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := tail.Next(10); !errors.Is(err, ErrReplaced) {
		t.Errorf("gone: %v", err)
	}
	appendN(t, open(t, dir), 9)
	if _, _, err := tail.Next(10); !errors.Is(err, ErrReplaced) {
		t.Errorf("another: %v", err)
	}
}

func TestLines(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	appendN(t, l, 3)
	tail, err := OpenTail(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	entries, _, err := tail.Next(10)
	if err != nil {
		t.Fatal(err)
	}
	lines := &Lines{Dir: dir}
	defer lines.Close()
	whole, err := os.ReadFile(filepath.Join(dir, logName))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		got, raw, err := lines.Record(e.Event.Seq, e.Offset, e.Length)
		if err != nil || got.Host != e.Event.Host || !bytes.Equal(raw, bytes.TrimSuffix(whole[e.Offset:e.Offset+int64(e.Length)], []byte{'\n'})) {
			t.Errorf("%v: %v %s %v", e, got, raw, err)
		}
	}
	second := entries[1]
	for name, err := range map[string]error{
		"another number": errOf(lines.Record(3, second.Offset, second.Length)),
		"another place":  errOf(lines.Record(2, second.Offset+1, second.Length)),
		"too short":      errOf(lines.Record(2, second.Offset, second.Length-1)),
		"no length":      errOf(lines.Record(2, second.Offset, 0)),
		"beyond the end": errOf(lines.Record(2, 1<<40, second.Length)),
	} {
		if fault.KindOf(err) != fault.NotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
	forged := bytes.Replace(whole, []byte("h1.example.com"), []byte("h9.example.com"), 1)
	if err := os.WriteFile(filepath.Join(dir, logName), forged, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errOf(lines.Record(2, second.Offset, second.Length)); fault.KindOf(err) != fault.NotFound {
		t.Errorf("a changed record was returned: %v", err)
	}
}

func errOf(_ Event, _ []byte, err error) error { return err }

func TestWords(t *testing.T) {
	for _, c := range []struct {
		e    Event
		want string
	}{
		{Event{Kind: CrossingDecided, Protocol: "tls", Host: "a.example.com", Port: 443, Count: 3}, "tls a.example.com:443 ×3"},
		{Event{Kind: CrossingDecided, Protocol: "tcp", Address: "192.0.2.1:22", Port: 22}, "tcp 192.0.2.1:22"},
		{Event{Kind: CrossingFinished, Protocol: "https", Method: "GET", Host: "a.example.com", Port: 443, Path: "/x", Status: 200, BytesIn: 1500, Millis: 20, Credential: "token"},
			"https GET a.example.com:443/x: status 200, 1.5 kB in, 0 B out, 20ms, lent token"},
		{Event{Kind: CrossingDecided, Access: "write", Repository: "forge/a/b", Refs: []string{"update main"}, Host: "git.example.com", Port: 443}, "git write forge/a/b (update main) at git.example.com:443"},
		{Event{Kind: RunStarted, Command: []string{"make", "all"}, Isolation: "container", Weaker: []string{"x"}}, "run started: make all (container, x)"},
		{Event{Kind: RunEnded, Detail: "exit 0"}, "run ended: exit 0"},
		{Event{Kind: PolicyChanged, Host: "a.example.com", Detail: "allowed"}, "policy changed: a.example.com: allowed"},
	} {
		if got := c.e.Words(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}
