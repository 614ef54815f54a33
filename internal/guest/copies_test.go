package guest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
)

// monitor speaks to QEMU's own control socket.
type monitor struct {
	conn  net.Conn
	lines *bufio.Scanner
}

// control connects to a machine that was started with controlled.
func control(t *testing.T, path string) monitor {
	t.Helper()
	var conn net.Conn
	var err error
	for range 1000 {
		if conn, err = net.Dial("unix", path); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	m := monitor{conn, bufio.NewScanner(conn)}
	m.do(t, "qmp_capabilities", nil)
	return m
}

// controlled are the arguments for a control socket.
func controlled(path string) []string {
	return []string{"-qmp", "unix:" + path + ",server=on,wait=off"}
}

// do carries out a command and returns its answer.
func (m monitor) do(t *testing.T, command string, arguments any) map[string]any {
	t.Helper()
	words, err := json.Marshal(map[string]any{"execute": command, "arguments": arguments})
	if arguments == nil {
		words, err = json.Marshal(map[string]any{"execute": command})
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(m.conn, "%s\n", words); err != nil {
		t.Fatal(err)
	}
	for m.lines.Scan() {
		var answer struct {
			Return any
			Error  any
		}
		if err := json.Unmarshal(m.lines.Bytes(), &answer); err != nil {
			t.Fatal(err)
		}
		if answer.Error != nil {
			t.Fatalf("%s: %v", command, answer.Error)
		}
		if answer.Return != nil {
			all, _ := answer.Return.(map[string]any) // some answers are lists
			return all
		}
	}
	t.Fatalf("%s: no answer", command)
	return nil
}

// moved waits for the end of saving or loading.
func (m monitor) moved(t *testing.T) {
	t.Helper()
	for range 6000 {
		switch m.do(t, "query-migrate", nil)["status"] {
		case "completed":
			return
		case "failed":
			t.Fatal("saving or loading the machine failed")
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("saving or loading the machine does not end")
}

// TestCopies starts copies of one machine that is ready. They draw different randomness, from the kernel and from Go; and what was once read of the placeholders is not
// what is mounted.
func TestCopies(t *testing.T) {
	needMachine(t)
	dir := t.TempDir()
	saved := filepath.Join(dir, "saved")
	placeholder := image(t, write(t, map[string]string{"placeholder": "x"}))
	first := startWith(t, controlled(filepath.Join(dir, "first")), placeholder, placeholder)
	if _, err := first.Ready(); err != nil {
		t.Fatal(err)
	}
	q := control(t, filepath.Join(dir, "first"))
	time.Sleep(patience + time.Second) // so that the init has waited for longer than it is patient
	q.do(t, "stop", nil)
	q.do(t, "migrate", map[string]string{"uri": "exec:cat > " + saved})
	q.moved(t)
	q.do(t, "quit", nil)
	first.ended(t)

	seen := map[string]string{}
	for i := range 3 {
		name := fmt.Sprintf("copy %d", i)
		socket := filepath.Join(dir, fmt.Sprint(i))
		m := startWith(t, append(controlled(socket), "-incoming", "exec:cat "+saved), root(t), image(t, write(t, map[string]string{"its own": name})))
		q := control(t, socket)
		q.moved(t)
		q.do(t, "cont", nil)
		q.do(t, "query-status", nil)
		b := doing("random")
		b.Seed = [boot.SeedSize]byte{7, byte(i)}
		at := time.Now()
		if err := m.Boot(b); err != nil {
			t.Fatal(err)
		}
		if err := m.Started(); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s had started its runner after %v", name, time.Since(at))
		if _, err := m.Ended(); err != nil {
			t.Fatal(err)
		}
		all := m.changed(t)
		if got := all["its own"].data; got != name+", seen" {
			t.Errorf("%s: its disk holds %q", name, got)
		}
		for _, kind := range []string{"kernel", "go", "start", "uuid", "boot"} {
			value := all[kind].data
			if other, ok := seen[value]; ok || value == "" {
				t.Errorf("%s, %s: drew %q as %s did", name, kind, value, other)
			}
			seen[value] = name
		}
		m.kill(t)
	}
}
