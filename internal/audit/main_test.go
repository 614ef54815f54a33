package audit

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// childEnv makes the test binary play another process: its value names the part, its arguments follow.
const childEnv = "AUDIT_TEST_CHILD"

func TestMain(m *testing.M) {
	parts := map[string]func(dir string) error{"write": childWrite, "flood": childFlood, "full": childFull}
	if part, ok := parts[os.Getenv(childEnv)]; ok {
		if err := part(os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func child(t *testing.T, part, dir string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, dir)
	cmd.Env = append(os.Environ(), childEnv+"="+part)
	cmd.Stderr = os.Stderr
	return cmd
}

func open(t testing.TB, dir string) *Log {
	t.Helper()
	l, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func appendN(t testing.TB, l *Log, n int) {
	t.Helper()
	for i := range n {
		e := Event{Kind: CrossingDecided, Run: "abcdefgh", Host: fmt.Sprintf("h%d.example.com", i), Port: 443, Verdict: "deny", Rule: "default"}
		if err := l.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
}

// newLog returns a directory with a closed log of n records.
func newLog(t testing.TB, n int) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "audit")
	l := open(t, dir)
	appendN(t, l, n)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

func readLines(t testing.TB, dir string) []string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, logName))
	if err != nil {
		t.Fatal(err)
	}
	return slices.Collect(strings.Lines(string(data)))
}

func writeLines(t testing.TB, dir string, lines []string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, logName), []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
}

func mustVerify(t testing.TB, dir string) Report {
	t.Helper()
	r, err := Verify(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !r.OK() {
		t.Fatalf("problems: %+v", r.Problems)
	}
	return r
}

func events(t testing.TB, dir string, f Filter) []Event {
	t.Helper()
	var all []Event
	for e, err := range Read(dir, f) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	return all
}

func diff(t *testing.T, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// childWrite appends 200 events from each of 4 goroutines.
func childWrite(dir string) error {
	l, err := Open(dir)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	errs := make(chan error, 4)
	for g := range 4 {
		wg.Go(func() {
			for i := range 100 {
				pair := []Event{{Kind: CrossingDecided, PID: os.Getpid(), Crossing: uint64(g), Count: uint64(2*i + 1)},
					{Kind: CrossingFinished, PID: os.Getpid(), Crossing: uint64(g), Count: uint64(2*i + 2)}}
				if err := l.Append(contextForChild(), pair...); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	if err := <-errs; err != nil {
		return err
	}
	return l.Close()
}

// childFlood appends until it is killed, and says after each append which it was.
func childFlood(dir string) error {
	l, err := Open(dir)
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(os.Stdout, 0)
	for i := 1; ; i++ {
		if err := l.Append(contextForChild(), Event{Kind: CrossingDecided, PID: os.Getpid(), Count: uint64(i), Detail: strings.Repeat("x", 400)}); err != nil {
			return err
		}
		fmt.Fprintln(out, i)
		out.Flush()
	}
}

func lastNumber(b []byte) int {
	b = b[:bytes.LastIndexByte(b, '\n')+1]
	var n int
	for field := range bytes.FieldsSeq(b) {
		_, _ = fmt.Sscan(string(field), &n)
	}
	return n
}
