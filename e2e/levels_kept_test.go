package e2e

import (
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// TestLevelsKept holds every level to the part of the contract that a service needs: a sandbox that waits, in which commands are started later, with and without a terminal,
// and whose files are read and written from outside.
func TestLevelsKept(t *testing.T) {
	testenv.Need(t, "userns")
	for _, a := range levels() {
		if a.image { // a keeper's sandbox has an image by its policy only; the tests of images have that
			continue
		}
		for _, u := range users() {
			t.Run(a.level+"/"+u.name, func(t *testing.T) {
				testenv.Need(t, a.needs...)
				t.Parallel()
				u.level = a.level
				u.inPerson(t, levelKept)
			})
		}
	}
}

func levelKept(t *testing.T, h *house) {
	k := h.keep(keeper.Spec{Env: []string{"HELLO=world"}})
	keptCommands(t, k)
	keptTerminal(t, k)
	keptFiles(t, k)
	if err := k.client.Stop(t.Context(), "enough"); err != nil {
		t.Fatal(err)
	}
	if how, _ := k.record(); how != "stopped: enough" {
		t.Errorf("ended by %q", how)
	}
}

// keptCommands starts commands, ends one by a signal, and leaves one whose caller goes.
func keptCommands(t *testing.T, k *kept) {
	s := k.exec(keeper.Exec{Command: []string{"sh", "-c", "cat; echo $HELLO $MORE; pwd; echo no >&2; exit 7"}, Env: []string{"MORE=x"}, Dir: "/tmp"}, "in\n")
	if s.out != "in\nworld x\n/tmp\n" || s.err != "no\n" || s.code != 7 {
		t.Errorf("exec said %+v", s)
	}
	if s := k.exec(keeper.Exec{Command: []string{"no-such-command"}}, ""); s.problem == "" {
		t.Errorf("a command that is missing said %+v", s)
	}
	p, err := k.client.Exec(t.Context(), keeper.Exec{Command: []string{"sleep", "100"}, NoStdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Signal(int(syscall.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	_, _ = p.Stdout().Close(), p.Stderr().Close() // it says nothing
	if exit, err := p.Wait(); err != nil || exit.Signal != int(syscall.SIGTERM) {
		t.Errorf("a signalled command ended %+v, %v", exit, err)
	}
	lost, err := k.client.Exec(t.Context(), keeper.Exec{Command: []string{"sh", "-c", "echo on; exec sleep 4711"}, NoStdin: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(lost.Stdout(), make([]byte, len("on\n"))); err != nil {
		t.Fatal(err)
	}
	_ = lost.Close() // its going is what is tried
	if s := k.sh(`for i in $(seq 50); do grep -qsz '471[1]' /proc/[0-9]*/cmdline && sleep 0.1 || { echo gone; exit; }; done`); s.out != "gone\n" {
		t.Errorf("a command outlives its caller: %+v", s)
	}
}

// keptTerminal has a command at a terminal that changes its size, types a line, and interrupts it by the key.
func keptTerminal(t *testing.T, k *kept) {
	p, err := k.client.Exec(t.Context(), keeper.Exec{Command: []string{"sh", "-c", "trap 'stty size' WINCH; trap 'exit 3' INT; stty size; while :; do read line && echo got $line; done"}, TTY: true, Rows: 11, Cols: 22})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	stop := time.AfterFunc(20*time.Second, func() { _ = p.Close() }) // so that a read ends
	defer stop.Stop()
	_ = p.Stderr().Close() // a terminal has one stream
	var seen strings.Builder
	expect := func(text string) {
		t.Helper()
		for b := make([]byte, 1000); !strings.Contains(seen.String(), text); {
			n, err := p.Stdout().Read(b)
			seen.Write(b[:n])
			if err != nil {
				t.Fatalf("%v after %q, want %q", err, seen.String(), text)
			}
		}
	}
	expect("11 22")
	if err := p.Resize(33, 44); err != nil {
		t.Fatal(err)
	}
	expect("33 44")
	if _, err := io.WriteString(p.Stdin(), "words\n"); err != nil {
		t.Fatal(err)
	}
	expect("got words")
	if _, err := io.WriteString(p.Stdin(), "\x03"); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, p.Stdout()) }()
	if exit, err := p.Wait(); err != nil || exit.Code != 3 {
		t.Errorf("ended %+v, %v", exit, err)
	}
}

// keptFiles writes, reads and lists as the service does it, and follows links of the sandbox's no further than the sandbox.
func keptFiles(t *testing.T, k *kept) {
	file := func(stdin string, words ...string) said {
		return k.exec(keeper.Exec{Command: append([]string{"cofferdam-file", "file"}, words...), Self: true, NoStdin: stdin == ""}, stdin)
	}
	content := strings.Repeat("0123456789abcdef", 20000)
	if s := file(content, "write", "-p", "/tmp/deep/er/file", "0640"); s.code != 0 {
		t.Errorf("write: %+v", s)
	}
	if s := file("", "read", "/tmp/deep/er/file"); s.code != 0 || s.out != content {
		t.Errorf("read: exit %d, %d bytes: %s", s.code, len(s.out), s.err)
	}
	if s := file("", "list", "/tmp/deep/er"); s.code != 0 || !strings.Contains(s.out, "file") {
		t.Errorf("list: %+v", s)
	}
	if s := file("", "read", "/tmp/absent"); s.code != 3 {
		t.Errorf("what is not there: %+v", s)
	}
	secret := k.home + "/secret.txt"
	if err := os.WriteFile(secret, []byte("canary-4711"), 0o644); err != nil {
		t.Fatal(err)
	}
	k.sh("ln -s " + secret + " /tmp/link; ln -s /proc/1/root" + secret + " /tmp/link2")
	for _, path := range []string{"/tmp/link", "/tmp/link2", secret, "/proc/1/root" + secret} {
		if s := file("", "read", path); s.code == 0 || strings.Contains(s.out, "canary") {
			t.Errorf("%s leads out: %+v", path, s)
		}
	}
}
