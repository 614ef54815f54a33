package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}` + "\n"

// fakeQEMU answers each line with the next of the script; what is empty is not answered. It returns what it was told.
func fakeQEMU(t *testing.T, script ...string) (ours *os.File, told func() []string) {
	t.Helper()
	ours, theirs, err := pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ours.Close() })
	heard := make(chan []string, 1)
	go func() {
		defer theirs.Close()
		var lines []string
		in := bufio.NewReader(theirs)
		_, _ = io.WriteString(theirs, script[0]) // a client that is gone has failed, or is meant to
		for _, answer := range script[1:] {
			line, err := in.ReadString('\n')
			if err != nil {
				break
			}
			lines = append(lines, strings.TrimSpace(line))
			if _, err := io.WriteString(theirs, answer); err != nil {
				break
			}
		}
		heard <- lines
	}()
	return ours, func() []string { return <-heard }
}

func TestQMP(t *testing.T) {
	done := `{"return": {}}` + "\n"
	event := `{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}` + "\n"
	conn, told := fakeQEMU(t, event+greeting, done, event+done+event, done, done, `{"return": {"status": "active"}}`+"\n", event+`{"return": {"status": "completed"}}`+"\n", done)
	q, err := newQMP(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	if err := q.pause(t.Context()); err != nil {
		t.Error(err)
	}
	if err := q.load(t.Context(), 9); err != nil {
		t.Error(err)
	}
	if err := q.resume(t.Context()); err != nil {
		t.Error(err)
	}
	var commands []string
	for _, line := range told() {
		var c struct{ Execute string }
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			t.Errorf("%s: %v", line, err)
		}
		commands = append(commands, c.Execute)
	}
	if got := strings.Join(commands, " "); got != "qmp_capabilities stop migrate-set-capabilities migrate-incoming query-migrate query-migrate cont" {
		t.Errorf("commands: %s", got)
	}
}

// TestQMPGivesFiles hands over a file with the command that names it.
func TestQMPGivesFiles(t *testing.T) {
	ours, theirs, err := pair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	defer theirs.Close()
	q := &qmp{conn: ours, answers: make(chan answer, 1)}
	q.answers <- answer{Return: json.RawMessage("{}")}
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := q.give(t.Context(), "state", f); err != nil {
		t.Fatal(err)
	}
	line, oob := make([]byte, 200), make([]byte, 100)
	n, oobn, _, _, err := unix.Recvmsg(int(theirs.Fd()), line, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil || string(line[:n]) != `{"execute": "getfd", "arguments": {"fdname": "state"}}`+"\n" {
		t.Errorf("%q, %v", line[:max(n, 0)], err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		t.Fatalf("%d messages, %v", len(messages), err)
	}
	if fds, err := unix.ParseUnixRights(&messages[0]); err != nil || len(fds) != 1 {
		t.Errorf("files %v, %v", fds, err)
	} else {
		_ = unix.Close(fds[0]) // only its arrival matters
	}
}

// TestHostileQEMU is a QEMU that was taken over, which harms nobody but its machine: no answer hangs the supervisor, fills its memory or reaches a terminal.
func TestHostileQEMU(t *testing.T) {
	done := `{"return": {}}` + "\n"
	for name, c := range map[string]struct {
		script []string
		want   string
	}{
		"hangs up":             {[]string{""}, "did not greet"},
		"no JSON":              {[]string{"SSH-2.0-hello\n"}, "no JSON"},
		"endless line":         {[]string{strings.Repeat("a", 1<<20)}, "buffer full"},
		"endless line, later":  {[]string{greeting, done, strings.Repeat("a", 1<<20)}, "buffer full"},
		"greets twice":         {[]string{greeting + greeting, "", ""}, "EOF"},
		"refuses":              {[]string{greeting, `{"error": {"class": "GenericError", "desc": "no\u001b]0;x\u0007"}}` + "\n"}, "GenericError: no?]0;x?"},
		"long refusal":         {[]string{greeting, `{"error": {"class": "` + strings.Repeat("x", 10000) + `"}}` + "\n"}, strings.Repeat("x", 300)},
		"says nothing":         {[]string{greeting, done, "\n"}, "no JSON"},
		"hangs up in between":  {[]string{greeting, done}, "QEMU"},
		"another kind of JSON": {[]string{greeting, done, "[1]\n"}, "no JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			conn, _ := fakeQEMU(t, c.script...)
			q, err := newQMP(t.Context(), conn)
			if err == nil {
				err = q.pause(t.Context())
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || len(err.Error()) > 500 {
				t.Errorf("%.600v", err)
			}
		})
	}
	t.Run("answers nothing", func(t *testing.T) {
		ours, theirs, err := pair()
		if err != nil {
			t.Fatal(err)
		}
		defer ours.Close()
		defer theirs.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := newQMP(ctx, ours); err == nil {
			t.Error("a QEMU that does not greet was taken for one")
		}
	})
	t.Run("floods", func(t *testing.T) {
		ours, theirs, err := pair()
		if err != nil {
			t.Fatal(err)
		}
		defer ours.Close()
		go func() {
			defer theirs.Close()
			_, _ = io.WriteString(theirs, greeting) // a reader that is gone is the end of the test
			for range 10000 {
				if _, err := io.WriteString(theirs, strings.Repeat(`{"event": "X"}`+"\n", 20)+done); err != nil {
					return
				}
			}
		}()
		q, err := newQMP(t.Context(), ours)
		for range 10 {
			if err == nil {
				err = q.pause(t.Context())
			}
		}
		if err != nil {
			t.Errorf("answers in advance are to its own harm only, but: %v", err)
		}
	})
}
