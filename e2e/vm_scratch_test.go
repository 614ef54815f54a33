package e2e

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// The size of a machine whose scratch is larger than its memory, and what is written there: more than it has memory, with a mark in every 64 bytes.
const (
	spillMemory  = 256 << 20
	spillDisk    = 320 << 20
	spillPiece   = 8 << 20
	spillWritten = 36 * spillPiece
)

// eachVMUser tries a part as root, and as an ordinary user where that may have machines.
func eachVMUser(t *testing.T, test func(*testing.T, *crypt)) {
	t.Helper()
	testenv.Need(t, "userns", "root")
	for _, u := range users() {
		t.Run(u.name, func(t *testing.T) {
			u.level = "vm-emulated"
			test(t, newCrypt(newHouse(t, u.furnished(t))))
		})
	}
}

// nameless are the open files without a name below this house's state directory, by the processes that have them, as paths by which they can be opened.
func (c *crypt) nameless(pid int, size int64) (paths []string) {
	c.t.Helper()
	all, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid)) // the pattern is a good one
	for _, path := range all {
		target, err := os.Readlink(path)
		var s unix.Stat_t
		if err == nil && strings.HasPrefix(target, c.state+"/") && unix.Stat(path, &s) == nil && s.Nlink == 0 && s.Size == size {
			paths = append(paths, path)
		}
	}
	return paths
}

// searched is what a file holds: pages that are not zero, those that are the same as another, and how often the text is in it.
type searched struct{ written, repeated, found int }

func search(t *testing.T, path, text string) (s searched) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	zero, seen := make([]byte, boot.SwapPage), map[string]bool{}
	for buf := make([]byte, 4<<20); ; {
		n, err := io.ReadFull(f, buf)
		s.found += bytes.Count(buf[:n], []byte(text))
		for page := range slices.Chunk(buf[:n], boot.SwapPage) {
			if bytes.Equal(page, zero[:len(page)]) {
				continue
			}
			s.written++
			if key := string(page[:32]); seen[key] {
				s.repeated++
			} else {
				seen[key] = true
			}
		}
		if err != nil {
			return s // the end
		}
	}
}

// TestVMScratch has a machine write more to encrypted scratch than it has memory, and looks for it on the host's disk, while it runs and after its end.
func TestVMScratch(t *testing.T) {
	eachVMUser(t, func(t *testing.T, c *crypt) {
		mark := scratchMarks()[0]
		size := boot.SwapSize(spillDisk)
		line := `set -e; cd /root; i=0; while [ $i -lt 64 ]; do printf '%-63s\n' ` + mark + `; i=$((i+1)); done > a
while [ $(stat -c %s a) -lt ` + strconv.Itoa(spillPiece) + ` ]; do cat a a > b; mv b a; done
i=1; while [ $i -lt ` + strconv.Itoa(spillWritten/spillPiece) + ` ]; do cat a; i=$((i+1)); done > big
echo changed > "$OLDPWD/file"; echo written; grep MemTotal /proc/meminfo; cat /proc/swaps
head -c ` + strconv.Itoa(spillPiece) + ` big > first; [ "$(cat first)" = "$(cat a)" ] && echo kept
dd if=/dev/zero of=more bs=1M count=64 || echo refused
echo looked; while :; do sleep 1; done`
		b := c.start(line, "--scratch", "encrypted", "--memory", strconv.Itoa(spillMemory), "--disk", strconv.Itoa(spillDisk))
		b.within(2*vmPatience, "looked")
		said := b.out.String()
		if !strings.Contains(said, "kept") || !strings.Contains(said, "refused") || !strings.Contains(said, "No space left") || !strings.Contains(said, "/dev/dm-0") {
			t.Errorf("inside: %s", said)
		}
		machine := c.nameless(c.machine(), size)
		keeper := c.nameless(c.find("supervisor"), size)
		if len(machine) == 0 || len(keeper) != 1 {
			t.Fatalf("the file is open as %v and %v", machine, keeper)
		}
		for _, path := range []string{machine[0], keeper[0]} { // QEMU has it by two numbers
			s := search(t, path, mark)
			t.Logf("%s: %+v", path, s)
			if s.found != 0 {
				t.Errorf("%q lies on the disk %d times", mark, s.found)
			}
			if least := (spillWritten - spillMemory) / boot.SwapPage; s.written < least || s.repeated != 0 {
				t.Errorf("%d pages were written, want %d at least; %d are as another", s.written, least, s.repeated)
			}
		}
		controlSearch(t, c, mark, size)
		_ = b.cmd.Process.Signal(syscall.SIGTERM)
		if code := b.end(time.Minute); code != 143 {
			t.Errorf("exit %d: %s", code, b.out.String())
		}
		c.checkGone()
		c.became(map[string]string{"scratch disk": "gone", "scratch key": "not observed", "scratch memory": "not observed"})
		if r := c.do("diff"); !strings.Contains(r.stdout, "+changed") {
			t.Errorf("the folder's changes were not kept: %s%s", r.stdout, r.stderr)
		}
		if found := grep(t, c.state, mark); len(found) > 0 {
			t.Errorf("%q is left in %q", mark, found)
		}
	})
}

// controlSearch writes the mark into a file such as the machine's, unencrypted: the same search finds it.
func controlSearch(t *testing.T, c *crypt, mark string, size int64) {
	t.Helper()
	f, err := os.OpenFile(c.state, unix.O_TMPFILE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	page := bytes.Repeat(fmt.Appendf(nil, "%-63s\n", mark), boot.SwapPage/64)
	for _, at := range []int64{spillDisk / 2, size - boot.SwapPage} {
		if _, err := f.WriteAt(page, at); err != nil {
			t.Fatal(err)
		}
	}
	own := c.nameless(os.Getpid(), size)
	if len(own) != 1 {
		t.Fatalf("control: the file is open as %v", own)
	}
	if s := search(t, own[0], mark); s != (searched{written: 2, repeated: 1, found: 2 * boot.SwapPage / 64}) {
		t.Errorf("control: %+v", s)
	}
}

// TestVMScratchKeys holds the first page of two machines' scratch against each other, which is the same page in the clear, and kills whoever could clean up.
func TestVMScratchKeys(t *testing.T) {
	eachVMUser(t, func(t *testing.T, c *crypt) {
		const disk = 64 << 20
		const look = "cat /proc/swaps; cat /proc/sys/kernel/modules_disabled 2>/dev/null || echo 1; " // a kernel without it loads none
		c.killing = true                                                                              // what the machine's console said last is told of a machine that was killed
		first := map[string]bool{}
		for _, kill := range []string{"machine", "supervisor"} {
			b := c.start(look+"echo up; while :; do sleep 1; done", "--scratch", "encrypted", "--memory", "256m", "--disk", strconv.Itoa(disk), "--workspace", "none")
			b.within(2*vmPatience, "up")
			if said := b.out.String(); !strings.Contains(said, "/dev/dm-0") || !strings.Contains(said, "\n1\nup") {
				t.Errorf("no swap, or drivers can be loaded: %s", said)
			}
			pids := map[string]int{"machine": c.machine(), "supervisor": c.find("supervisor")}
			paths := c.nameless(pids["machine"], boot.SwapSize(disk))
			if len(paths) == 0 {
				t.Fatal("the machine has no file to write to")
			}
			page := firstPage(t, paths[0])
			if bytes.Contains(page, []byte("SWAPSPACE2")) || bytes.Equal(page, make([]byte, len(page))) {
				t.Errorf("the first page is in the clear, or was not written: %q", page[:64])
			}
			if first[string(page)] {
				t.Error("two machines have the same key")
			}
			first[string(page)] = true
			if err := syscall.Kill(pids[kill], syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			b.end(time.Minute)
			for end := time.Now().Add(15 * time.Second); len(c.processes()) > 0 && time.Now().Before(end); {
				time.Sleep(20 * time.Millisecond)
			}
			if r := c.do("gc"); r.code != 0 {
				t.Errorf("gc: %s", r.stderr)
			}
			c.checkGone()
			if kill == "machine" {
				c.became(map[string]string{"scratch disk": "gone"})
			}
			if r := c.do("receipt"); r.code != 0 || strings.Contains(r.stdout, "remains") {
				t.Errorf("receipt after %s was killed: exit %d: %s%s", kill, r.code, r.stdout, r.stderr)
			}
		}
		r := c.vm(look, "--memory", "256m", "--workspace", "none")
		if r.code != 0 || strings.Contains(r.stdout, "/dev/") || !strings.HasSuffix(r.stdout, "\n1\n") {
			t.Errorf("scratch in memory is swapped, or drivers can be loaded: exit %d: %s%s", r.code, r.stdout, r.stderr)
		}
	})
}

func firstPage(t *testing.T, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	page := make([]byte, boot.SwapPage)
	if _, err := io.ReadFull(f, page); err != nil {
		t.Fatal(err)
	}
	return page
}
