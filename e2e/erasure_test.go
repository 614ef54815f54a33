package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// scratchMarks are written into encrypted scratch, as contents and as a name.
func scratchMarks() []string { return []string{"contents-mark-5b20e1", "name-mark-c4f7aa"} }

// devices are the loop devices of this house's encrypted scratch: the outer ones, over files in its state directory, and by their numbers those inside them.
func (c *crypt) devices() (outer []string, inner map[string]string) {
	c.t.Helper()
	inner = map[string]string{}
	all, _ := filepath.Glob("/sys/block/loop*/loop/backing_file") // the pattern is a good one
	numbers := map[uint64]string{}
	for _, file := range all {
		device := "/dev/" + strings.Split(file, "/")[3]
		backing, err := os.ReadFile(file)
		var s unix.Stat_t
		if err == nil && strings.HasPrefix(string(backing), c.state) && unix.Stat(device, &s) == nil {
			outer = append(outer, device)
			numbers[s.Rdev] = device
		}
	}
	for _, file := range all {
		device := "/dev/" + strings.Split(file, "/")[3]
		f, err := os.Open(device)
		if err != nil {
			continue
		}
		if info, err := unix.IoctlLoopGetStatus64(int(f.Fd())); err == nil && numbers[info.Device] != "" {
			inner[numbers[info.Device]] = device
		}
		_ = f.Close() // only asked
	}
	return outer, inner
}

// noDevices waits until the kernel has taken the devices away.
func (c *crypt) noDevices(patience time.Duration) {
	c.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		outer, _ := c.devices()
		if len(outer) == 0 {
			return
		}
		if time.Now().After(end) {
			c.t.Fatalf("devices are left: %v", outer)
		}
	}
}

// everything reads a whole device, after everything that waits was written to it.
func everything(t *testing.T, device string) []byte {
	t.Helper()
	f, err := os.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.BLKFLSBUF, 0); err != nil {
		t.Fatalf("flush %s: %v", device, err)
	}
	data, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestEncryptedScratch looks for what is written inside in the disk below it, while the sandbox runs and after its end.
func TestEncryptedScratch(t *testing.T) {
	testenv.Need(t, "tool:mke2fs")
	forEachWall(t, func(t *testing.T, h *house) {
		c, m := newCrypt(h), scratchMarks()
		line := `for i in $(seq 3000); do echo ` + m[0] + `; done > /root/` + m[1] + `; echo ` + m[0] + ` > /dev/shm/x; echo ` + m[0] + ` > file; cp /usr/bin/env /usr/bin/` + m[1] + `; sync; echo written; while :; do sleep 1; done`
		b := c.start(line, "--scratch", "encrypted", "--disk", "64m", "--files", "2000")
		b.says("written")
		outer, inner := c.devices()
		if len(outer) != 1 || inner[outer[0]] == "" {
			t.Fatalf("devices: %v, %v\n%s", outer, inner, b.out.String())
		}
		plain, sealed := everything(t, inner[outer[0]]), everything(t, outer[0])
		for _, mark := range m {
			if !bytes.Contains(plain, []byte(mark)) {
				t.Errorf("control: %q is not found where nothing is encrypted", mark)
			}
			if bytes.Contains(sealed, []byte(mark)) {
				t.Errorf("%q lies on the disk", mark)
			}
		}
		if len(sealed)-bytes.Count(sealed, []byte{0}) < 100_000 {
			t.Error("control: nothing was written to the disk")
		}
		_ = b.cmd.Process.Signal(syscall.SIGTERM)
		if code := b.end(30 * time.Second); code != 143 {
			t.Errorf("exit %d: %s", code, b.out.String())
		}
		c.noDevices(0)
		c.checkGone()
		h.became(map[string]string{"scratch key": "gone", "scratch disk": "gone", "scratch file system": "gone"})
		if r := h.do("diff"); !strings.Contains(r.stdout, m[0]) {
			t.Errorf("the folder's changes were not kept: %s%s", r.stdout, r.stderr)
		}
		if r := h.do("drop"); r.code != 0 {
			t.Fatal(r.stderr)
		}
		for _, mark := range m {
			if found := grep(t, h.state, mark); len(found) > 0 {
				t.Errorf("%q is left in %q", mark, found)
			}
		}
	})
}

// became holds the last run's receipt to what is to have become of things.
func (h *house) became(want map[string]string) {
	h.t.Helper()
	r := h.last()
	for what, result := range want {
		got := "not listed"
		for _, i := range r.Receipt {
			if i.What == what && i.How != "" && i.At != "" {
				got = i.Checked
			}
		}
		if got != result {
			h.t.Errorf("%s: %s, want %s; the receipt is %+v", what, got, result, r.Receipt)
		}
	}
}

// grep lists the files below a directory that have a text in them, or in their names.
func grep(t *testing.T, dir, text string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "run.json" || d.Name() == "log.jsonl" { // which have the command line
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte(text)) || strings.Contains(path, text) {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestEncryptedScratchKilled kills whoever could clean up: the kernel does.
func TestEncryptedScratchKilled(t *testing.T) {
	testenv.Need(t, "tool:mke2fs")
	forEachWall(t, func(t *testing.T, h *house) {
		for _, kill := range [][]string{{"supervisor"}, {"cofferdam", "supervisor"}, {"cofferdam"}, {"inside"}} {
			c := newCrypt(newHouse(t, h.as))
			b := c.start("echo "+scratchMarks()[0]+" > /root/x; echo written; while :; do sleep 1; done", "--scratch", "encrypted", "--disk", "32m", "--files", "2000", "--workspace", "none")
			b.says("written")
			if outer, _ := c.devices(); len(outer) != 1 {
				t.Fatalf("devices: %v", outer)
			}
			var pids []int
			for _, name := range kill {
				pids = append(pids, c.find(name))
			}
			for _, pid := range pids {
				if pid <= 0 {
					t.Fatalf("%v: no such process", kill)
				}
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			b.end(60 * time.Second)
			c.noDevices(15 * time.Second)
			if r := c.do("gc"); r.code != 0 {
				t.Errorf("%v: gc: %s", kill, r.stderr)
			}
			c.checkGone()
			if r := c.do("receipt"); r.code != 0 || !strings.Contains(r.stdout, "processes") || strings.Contains(r.stdout, "remains") {
				t.Errorf("%v: receipt: exit %d: %s%s", kill, r.code, r.stdout, r.stderr)
			}
			if found := grep(t, c.state, scratchMarks()[0]); len(found) > 0 {
				t.Errorf("%v: left in %q", kill, found)
			}
		}
	})
}

// TestScratchRefused asks for encrypted scratch where it cannot be had: nothing weaker starts in its place.
func TestScratchRefused(t *testing.T) {
	testenv.Need(t, "userns")
	h := newHouse(t, as{name: "rootless", uid: users()[len(users())-1].uid})
	h.notStarted(h.sh("echo started", "--scratch", "encrypted"), "only root", "--scratch memory")
	if r := h.sh("echo started", "--scratch", "memory"); r.stdout != "started\n" {
		t.Errorf("control: exit %d: %s", r.code, r.stderr)
	}
}

// TestReceipt reads the receipt of runs in all its forms, and holds them against each other.
func TestReceipt(t *testing.T) {
	forEachUser(t, func(t *testing.T, h *house) {
		c := newCrypt(h)
		b := c.start("echo up; while :; do sleep 0.2; done")
		b.says("up")
		if r := h.do("receipt"); r.code != 1 || !strings.Contains(r.stderr, "has not ended") {
			t.Errorf("while it runs: exit %d: %s%s", r.code, r.stdout, r.stderr)
		}
		_ = b.cmd.Process.Signal(syscall.SIGTERM)
		b.end(30 * time.Second)
		if r := h.sh("echo new > file; exit 3"); r.code != 3 {
			t.Fatalf("exit %d: %s", r.code, r.stderr)
		}
		run := h.last()
		want := map[string]string{"processes": "gone", "mounts": "gone", "scratch memory": "not observed", "network namespace": "not observed", "changes of the folder": "kept", "record of the run": "kept"}
		if h.as.uid == 0 {
			want["control groups"] = "gone"
		}
		h.became(want)
		printed := h.do("receipt", run.Run)
		var asJSON struct {
			Run, How string
			Items    []item
		}
		if err := json.Unmarshal([]byte(h.do("receipt", "--json").stdout), &asJSON); err != nil || !slices.Equal(asJSON.Items, run.Receipt) || asJSON.Run != run.Run {
			t.Errorf("as JSON: %+v, %v", asJSON, err)
		}
		for _, i := range run.Receipt {
			if !strings.Contains(printed.stdout, i.What) || !strings.Contains(printed.stdout, i.How) {
				t.Errorf("not printed: %+v\n%s", i, printed.stdout)
			}
			at, err := time.Parse(time.RFC3339Nano, i.At)
			if age := time.Since(at); err != nil || age < 0 || age > time.Minute {
				t.Errorf("%s was looked at %v", i.What, i.At)
			}
		}
		logged := 0
		for line := range strings.Lines(h.do("audit", "last", "--json", "--kind", "sandbox.erased").stdout) {
			var e struct{ Erased []item }
			if err := json.Unmarshal([]byte(line), &e); err != nil || !slices.Equal(e.Erased, run.Receipt) {
				t.Errorf("on record: %s, %v", line, err)
			}
			logged++
		}
		if printed.code != 0 || logged != 1 {
			t.Errorf("exit %d, %d records: %s", printed.code, logged, printed.stderr)
		}
		leftOver(t, h, run.Run)
	})
}

// leftOver has the record of a run say that something remains, and then deletes the record.
func leftOver(t *testing.T, h *house, run string) {
	end := filepath.Join(h.state, "runs", run, "end.json")
	data, err := os.ReadFile(end)
	changed := strings.Replace(string(data), `"checked":"gone"`, `"checked":"remains","problem":"still there"`, 1)
	if err := errors.Join(err, os.WriteFile(end, []byte(changed), 0o600)); err != nil || changed == string(data) {
		t.Fatalf("%v: %s", err, data)
	}
	if r := h.do("receipt", run); r.code != 1 || !strings.Contains(r.stdout, "remains") || !strings.Contains(r.stdout, "still there") {
		t.Errorf("something remains: exit %d: %s%s", r.code, r.stdout, r.stderr)
	}
	if r := h.do("doctor"); r.code != 1 || !strings.Contains(r.stdout, "run "+run) || !strings.Contains(r.stdout, "still there") {
		t.Errorf("doctor: exit %d: %s%s", r.code, r.stdout, r.stderr)
	}
	if err := os.RemoveAll(filepath.Dir(end)); err != nil {
		t.Fatal(err)
	}
	if r := h.do("receipt", run); r.code != 0 || !strings.Contains(r.stdout, "processes") || strings.Contains(r.stdout, "remains") {
		t.Errorf("from the audit log: exit %d: %s%s", r.code, r.stdout, r.stderr)
	}
	if r := h.do("receipt", "aaaaaaaa"); r.code != 1 || !strings.Contains(r.stderr, "no receipt") {
		t.Errorf("of no run: exit %d: %s%s", r.code, r.stdout, strconv.Quote(r.stderr))
	}
}
