package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
)

func contextForChild() context.Context { return context.Background() }

func TestAppendFillsAndChains(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state", "audit")
	l := open(t, dir)
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("x", 3600))
	if err := l.Append(t.Context(), Event{Kind: RunStarted, Time: at, Command: []string{"a", "\x1b]0;x\a"}}, Event{Kind: RunEnded}); err != nil {
		t.Fatal(err)
	}
	all := events(t, dir, Filter{})
	if len(all) != 2 || all[0].Seq != 1 || all[1].Seq != 2 || all[0].Prev != noHash || all[1].Prev != all[0].Hash {
		t.Fatalf("got %+v", all)
	}
	if !all[0].Time.Equal(at) || time.Since(all[1].Time) > time.Minute {
		t.Errorf("times %v, %v", all[0].Time, all[1].Time)
	}
	diff(t, all[0].Command, []string{"a", `\x1b]0;x\a`})
	r := mustVerify(t, dir)
	diff(t, r, Report{Records: 2, Head: Checkpoint{Seq: 2, Hash: all[1].Hash}, Problems: []Problem{}})
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, logName): 0o600, filepath.Join(dir, headName): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v %v, want %v", path, info.Mode(), err, want)
		}
	}
}

// TestHashIsAsDocumented follows the recipe of docs/audit.md with other people's programs.
func TestHashIsAsDocumented(t *testing.T) {
	dir := newLog(t, 2)
	out, err := exec.Command("sh", "-c", `tail -n1 "$0" | tr -d '\n' | head -c -75 | sha256sum | cut -d' ' -f1`, filepath.Join(dir, logName)).Output()
	if err != nil {
		t.Skip("needs sh, tail, head, sha256sum: ", err)
	}
	diff(t, strings.TrimSpace(string(out)), events(t, dir, Filter{})[1].Hash)
}

func TestAppendRefuses(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx context.Context
		e   Event
		ok  bool
	}{
		"valid":        {t.Context(), Event{Kind: RunStarted}, true},
		"no kind":      {t.Context(), Event{}, false},
		"no real year": {t.Context(), Event{Kind: RunStarted, Time: time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC)}, false},
		"ctx ended":    {ended, Event{Kind: RunStarted}, false},
	} {
		if err := l.Append(c.ctx, Event{Kind: RunStarted}, c.e); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	if r := mustVerify(t, dir); r.Records != 2 {
		t.Errorf("%d records, want the 2 of the valid group", r.Records)
	}
	if err := errors.Join(l.Sync(), l.Close(), l.Close()); err != nil {
		t.Error(err)
	}
	if err := l.Append(t.Context(), Event{Kind: RunStarted}); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("append after close: %v", err)
	}
	if l.Sync() == nil {
		t.Error("sync after close succeeded")
	}
}

func TestOpenRefuses(t *testing.T) {
	loose := filepath.Join(t.TempDir(), "loose")
	if err := os.Mkdir(loose, 0o700); err != nil {
		t.Fatal(err)
	}
	linked, fifo := t.TempDir(), t.TempDir()
	if err := errors.Join(os.Chmod(loose, 0o777), os.Symlink("/etc/passwd", filepath.Join(linked, logName)), unix.Mkfifo(filepath.Join(fifo, logName), 0o600)); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]fault.Kind{loose: fault.Denied, linked: fault.Unavailable, fifo: fault.Unavailable, "/proc/self/none": fault.Unavailable} {
		if _, err := Open(dir); fault.KindOf(err) != want {
			t.Errorf("%s: %v, want %v", dir, err, want)
		}
	}
}

func TestAppendNeedsNoPath(t *testing.T) {
	parent := t.TempDir()
	dir, moved := filepath.Join(parent, "a"), filepath.Join(parent, "b")
	l := open(t, dir)
	if err := os.Rename(dir, moved); err != nil {
		t.Fatal(err)
	}
	appendN(t, l, 3)
	mustVerify(t, moved)
	if err := os.Remove(filepath.Join(moved, logName)); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(t.Context(), Event{Kind: RunEnded}); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("append to a deleted log: %v", err)
	}
}

func TestConcurrentGoroutines(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() { appendN(t, l, 50) })
	}
	wg.Wait()
	if r := mustVerify(t, dir); r.Records != 800 {
		t.Errorf("%d records", r.Records)
	}
}

func TestConcurrentProcesses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	const processes = 8
	var wg sync.WaitGroup
	for range processes {
		cmd := child(t, "write", dir)
		wg.Go(func() {
			if err := cmd.Run(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if r := mustVerify(t, dir); r.Records != processes*4*200 {
		t.Errorf("%d records", r.Records)
	}
	type writer struct {
		pid int
		g   uint64
	}
	last := map[writer]uint64{}
	var before Event
	for _, e := range events(t, dir, Filter{}) {
		w := writer{e.PID, e.Crossing}
		if e.Count != last[w]+1 {
			t.Fatalf("record %d of %v is its %dth after the %dth", e.Seq, w, e.Count, last[w])
		}
		if e.Kind == CrossingFinished && (before.PID != e.PID || before.Count+1 != e.Count) {
			t.Fatalf("record %d: the group was torn apart", e.Seq)
		}
		last[w], before = e.Count, e
	}
}

// firstWord keeps what is written, and tells when something was.
type firstWord struct {
	kept bytes.Buffer
	once sync.Once
	said chan struct{}
}

func (w *firstWord) Write(p []byte) (int, error) {
	defer w.once.Do(func() { close(w.said) })
	return w.kept.Write(p)
}

func TestKilledWhileAppending(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	for round := range 10 {
		out := &firstWord{said: make(chan struct{})}
		cmd := child(t, "flood", dir)
		cmd.Stdout = out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-out.said // on a busy machine it takes its time to begin
		time.Sleep(time.Duration(rand.IntN(25)) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed
		l := open(t, dir)
		appendN(t, l, 1)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		mustVerify(t, dir)
		kept := 0
		for _, e := range events(t, dir, Filter{}) {
			if e.PID == cmd.Process.Pid {
				kept++
			}
		}
		if said := lastNumber(out.kept.Bytes()); kept < said || said == 0 {
			t.Fatalf("round %d: %d appends were confirmed, %d are in the log", round, said, kept)
		}
	}
}

func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a small tmpfs in a mount namespace of its own")
	}
	cmd := child(t, "full", t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
}

// childFull fills a tiny file system, from several goroutines, and checks that the log stays valid and usable.
func childFull(dir string) error {
	if err := unix.Mount("audit-test", dir, "tmpfs", 0, "size=256k"); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }() // the namespace ends with this process anyway
	audit := filepath.Join(dir, "audit")
	l, err := Open(audit)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var written uint64
	full := func(ctx context.Context) {
		for {
			err := l.Append(ctx, Event{Kind: CrossingDecided, Detail: strings.Repeat("y", 500)}, Event{Kind: CrossingDecided})
			if fault.KindOf(err) == fault.Unavailable && errors.Is(err, unix.ENOSPC) && fault.HintOf(err) != "" {
				return
			}
			if err != nil {
				panic(err)
			}
			mu.Lock()
			written += 2
			mu.Unlock()
		}
	}
	for range 3 {
		wg.Go(func() { full(contextForChild()) })
	}
	wg.Wait()
	if r, err := Verify(audit); err != nil || !r.OK() || r.Records != written || r.Torn != 0 || written < 100 {
		return fmt.Errorf("after the disk was full: %+v %w, %d written", r, err, written)
	}
	// A torn line on a full disk: its repair may be refused, and is not forgotten.
	f, err := os.OpenFile(filepath.Join(audit, logName), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	if n, err := f.WriteString(`{"seq":`); err != nil {
		fmt.Fprintln(os.Stderr, "note: no room for a torn line", n, err)
	}
	full(contextForChild())
	if err := unix.Mount("audit-test", dir, "tmpfs", unix.MS_REMOUNT, "size=512k"); err != nil {
		return fmt.Errorf("remount: %w", err)
	}
	if err := l.Append(contextForChild(), Event{Kind: RunEnded}); err != nil {
		return err
	}
	if r, err := Verify(audit); err != nil || !r.OK() {
		return fmt.Errorf("after space was made: %+v %w", r, err)
	}
	for e, err := range Read(audit, Filter{Kinds: []Kind{LogRepaired}}) {
		if err == nil && strings.Contains(e.Detail, "7 bytes") {
			return nil
		}
	}
	return errors.New("no record of the 7 bytes that were cut off")
}

func TestLockHeldForTooLong(t *testing.T) {
	dir := t.TempDir()
	holder, err := os.OpenFile(filepath.Join(dir, logName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	synctest.Test(t, func(t *testing.T) {
		l := open(t, dir)
		if err := unix.Flock(int(holder.Fd()), unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		leader := make(chan error, 1)
		go func() { leader <- l.Append(t.Context(), Event{Kind: RunStarted}) }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := l.Append(ctx, Event{Kind: RunEnded}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("waiting append: %v", err)
		}
		if err := <-leader; fault.KindOf(err) != fault.Unavailable || !errors.Is(err, errLocked) {
			t.Errorf("append without the lock: %v", err)
		}
		if err := unix.Flock(int(holder.Fd()), unix.LOCK_UN); err != nil {
			t.Fatal(err)
		}
		appendN(t, l, 1)
		if r := mustVerify(t, dir); r.Records != 1 {
			t.Errorf("%d records: what was refused must not be written later", r.Records)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	e := Event{Kind: CrossingDecided, Run: "abcdefgh", Principal: "sandbox", Crossing: 7, Protocol: "tls", Access: "write", Host: "mirror.example.com",
		Address: "198.18.0.7:443", Port: 443, Verdict: "allow", Rule: "flag --allow mirror.example.com:443", Reason: "named by a rule", Process: "npm", PID: 42}
	b.Run("lone", func(b *testing.B) {
		l := open(b, b.TempDir())
		for b.Loop() {
			if err := l.Append(b.Context(), e); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("parallel", func(b *testing.B) {
		l := open(b, b.TempDir())
		b.SetParallelism(64)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if err := l.Append(b.Context(), e); err != nil {
					b.Fatal(err)
				}
			}
		})
	})
}
