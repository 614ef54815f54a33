package main

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestQuantile(t *testing.T) {
	s := series{values: []float64{5, 1, 4, 2, 3}}
	for _, c := range []struct{ p, want float64 }{{0, 1}, {0.5, 3}, {0.99, 5}, {1, 5}} {
		if got := s.quantile(c.p); got != c.want {
			t.Errorf("quantile(%v) = %v, want %v", c.p, got, c.want)
		}
	}
}

func TestAims(t *testing.T) {
	ours, other := series{values: []float64{2}}, series{values: []float64{4}}
	for _, c := range []struct {
		name string
		aim  aim
		met  bool
	}{
		{"at most half", atMost(0.5), true}, {"at most a third", atMost(0.33), false},
		{"at least half", atLeast(0.5), true}, {"at least as much", atLeast(1), false},
		{"below", belowBoth(), true}, {"at most three by itself", aimAdded(3), true}, {"at most one by itself", aimAdded(1), false},
		{"at most one more", atMostMore(1), true},
		{"both at most half", atMostBoth(0.5), true}, {"both at most a third", atMostBoth(0.33), false},
		{"at most two alone", atMostAlone(2), true}, {"at most one alone", atMostAlone(1), false},
	} {
		if _, met := c.aim.judge(ours, other); met != c.met {
			t.Errorf("%s: met is %v, want %v", c.name, met, c.met)
		}
	}
}

func TestRewrite(t *testing.T) {
	file := filepath.Join(t.TempDir(), "page.md")
	beginMark, endMark := marks("some")
	otherBegin, otherEnd := marks("some more")
	for _, c := range []struct {
		name, old, want string
	}{
		{"not between others", otherBegin + "x\n" + otherEnd + beginMark + endMark, otherBegin + "x\n" + otherEnd + beginMark + "new\n" + endMark},
		{"between the marks", "a\n" + beginMark + "old\n" + endMark + "z\n", "a\n" + beginMark + "new\n" + endMark + "z\n"},
		{"no marks", "a\n", ""},
		{"no end", beginMark, ""},
	} {
		if err := os.WriteFile(file, []byte(c.old), 0o600); err != nil {
			t.Fatal(err)
		}
		err := rewrite(file, "some", "new\n")
		got, _ := os.ReadFile(file)
		if c.want == "" && (err == nil || string(got) != c.old) || c.want != "" && string(got) != c.want {
			t.Errorf("%s: %q, %v", c.name, got, err)
		}
	}
}

// TestExchange holds the client to what ends an answer, since a misread answer would be counted.
func TestExchange(t *testing.T) {
	for _, c := range []struct {
		name, answer string
		keep, fails  bool
	}{
		{"kept", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", true, false},
		{"closed by its word", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", false, false},
		{"of old", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", false, false},
		{"until the end", "HTTP/1.1 200 OK\r\n\r\nok", false, false},
		{"refused", "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", false, true},
		{"cut off", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", true, true},
	} {
		ours, theirs := net.Pipe()
		go func() {
			_, _ = bufio.NewReader(theirs).ReadString('\n') // the request
			_, _ = theirs.Write([]byte(c.answer))           // whoever does not read it fails below
			_ = theirs.Close()
		}()
		keep, err := exchange(ours, bufio.NewReader(ours), []byte("GET / HTTP/1.1\n"))
		if (err != nil) != c.fails || !c.fails && keep != c.keep {
			t.Errorf("%s: keep %v, error %v", c.name, keep, err)
		}
		_ = ours.Close()
	}
}

func TestAddedRow(t *testing.T) {
	ours, other := series{name: "ours", values: []float64{3}}, series{name: "other", values: []float64{5}}
	if _, ok := addedRow("x", ours, []series{other}, 1, func(string) aim { return noAim() }); ok {
		t.Error("added to nothing")
	}
	r, ok := addedRow("x", ours, []series{{name: directName, values: []float64{2}}, other}, 1, func(string) aim { return atMost(0.4) })
	if !ok || r.ours.median() != 1 || len(r.others) != 2 {
		t.Fatalf("%+v", r)
	}
	for _, c := range r.others {
		if measure, met := c.aim.judge(r.ours, c.other); !met {
			t.Errorf("%s: %s misses %s", c.other.name, measure, c.aim.text)
		}
	}
}

func TestVersion(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct{ says, want string }{
		{"Mitmproxy: 8.1.1\nPython: 3.11.2", "mitmproxy 8.1.1"}, {"Squid Cache: Version 5.7\nService", "squid 5.7"}, {"", "program"},
	} {
		program := filepath.Join(dir, "program")
		if err := os.WriteFile(program, []byte("#!/bin/sh\ncat <<'E'\n"+c.says+"\nE\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
		if got := version(t.Context(), "program", ""); got != c.want {
			t.Errorf("%q is %q", c.says, got)
		}
	}
}

func TestTreePSS(t *testing.T) {
	mib, err := treePSS(os.Getpid())
	if err != nil {
		t.Skip("needs smaps_rollup: ", err)
	}
	if mib < 0.5 || mib > 1000 {
		t.Errorf("this test holds %v MiB", mib)
	}
}

func TestReport(t *testing.T) {
	r := row{what: "thing", unit: "ms", ours: series{name: "ours", values: []float64{1}}, others: []comparison{against(series{name: "other", values: []float64{4}}, atMost(1))}}
	text := (&table{rows: []row{r}, skipped: []string{"x left out: not there"}}).report("0.50")
	for _, want := range []string{"load average before 0.50.", "| thing, ms | 1.00 (1.00), 1 | other | 4.00 (4.00), 1 | 0.25 × | ≤ 1 × | met |", "- x left out: not there"} {
		if !strings.Contains(text, want) {
			t.Errorf("the report lacks %q:\n%s", want, text)
		}
	}
}

// TestOneMemory takes a thread for the one that shares, since the kernel compares those like processes.
func TestOneMemory(t *testing.T) {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		if id, _ := strconv.Atoi(thread.Name()); !oneMemory(os.Getpid(), id) {
			t.Errorf("thread %d has not the memory of its own process", id)
		}
	}
	cmd := exec.Command("/bin/cat")
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if oneMemory(os.Getpid(), cmd.Process.Pid) {
		t.Error("another program has the memory of this process")
	}
	_ = in.Close() // it reads the end and leaves
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}
