package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// crowd is how many sandboxes are idle at once when it is asked what one more costs.
const crowd = 8

// memoryRows compares one idle sandbox with a shell in it to bubblewrap with a shell, and each of several: the proportional share (PSS) of every process.
// PSS shares what is mapped from a file among those who map it, so one sandbox pays for the programs alone and several pay for them together.
func memoryRows(ctx context.Context, b *bench) ([]row, error) {
	if os.Getuid() != 0 {
		b.skip("memory", "only root may see what the gateway and the runner hold")
		return nil, nil
	}
	ours := []string{b.cofferdam, "run", "-q", "--workspace", b.workspace(), "--", "/bin/sh"}
	theirs := append(bwrapArgs(), "/bin/sh")
	var rows []row
	for _, m := range []struct {
		what string
		n    int
	}{{"memory of one idle sandbox, all its processes", 1}, {fmt.Sprintf("memory of each of %d idle sandboxes", crowd), crowd}} {
		subjects := []subject{b.idle("cofferdam run", m.n, ours)}
		if b.have("bwrap", "bubblewrap") {
			subjects = append(subjects, b.idle("bwrap + shell", m.n, theirs))
		}
		mine, others, err := b.settle(takeTurns(ctx, b.rounds(5), subjects))
		if err != nil {
			return nil, err
		}
		r := row{what: m.what, unit: "MiB", ours: mine}
		for _, o := range others {
			r.others = append(r.others, against(o, atMostMore(8)))
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// idle is a subject that starts n shells, lets them settle, and says what the processes of each hold on average.
func (b *bench) idle(name string, n int, argv []string) subject {
	return subject{name, func(ctx context.Context) ([]float64, error) {
		var shells []*shell
		defer func() {
			for _, s := range shells {
				s.stop()
			}
		}()
		for range n {
			s, err := b.shell(ctx, argv, "")
			if err != nil {
				return nil, err
			}
			shells = append(shells, s)
		}
		time.Sleep(300 * time.Millisecond)
		total := 0.0
		for _, s := range shells {
			mib, err := treePSS(s.cmd.Process.Pid)
			if err != nil {
				return nil, err
			}
			total += mib
		}
		return []float64{total / float64(n)}, nil
	}}
}

// shell is a shell that waits for its next line.
type shell struct {
	cmd *exec.Cmd
	in  io.WriteCloser
}

// shell starts one and returns when it has answered. With a prompt it is spoken to only once that is there: a serial line forgets what comes too early.
func (b *bench) shell(ctx context.Context, argv []string, prompt string) (*shell, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env, cmd.Dir = b.environment(), b.workspace()
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s, said := &shell{cmd, in}, bufio.NewReader(out)
	if err = awaitText(said, prompt); err == nil {
		_, err = fmt.Fprintln(in, `echo rea""dy`) // a terminal's echo of it is no answer
	}
	if err == nil {
		err = awaitText(said, "ready")
	}
	if err != nil {
		s.stop()
		return nil, fmt.Errorf("the shell does not answer: %w", err)
	}
	return s, nil
}

// awaitText reads until a text has come.
func awaitText(r *bufio.Reader, text string) error {
	var got []byte
	for !bytes.HasSuffix(got, []byte(text)) {
		c, err := r.ReadByte()
		if err != nil {
			return fmt.Errorf("it ended without saying %q: %w", text, err)
		}
		got = append(got, c)
	}
	return nil
}

func (s *shell) stop() {
	_ = s.in.Close() // it reads the end and leaves
	_ = s.cmd.Wait() // its status says nothing here
}

// leave is stop for what may not end with its input: a machine ends with its first program.
func (s *shell) leave() {
	_, _ = fmt.Fprintln(s.in, "exit") // if it has ended already it needs no word
	s.stop()
}

// treePSS adds up the proportional set size of a process and all its descendants, in MiB. Processes that share one address space count once: each of them would
// tell the whole of it, and gVisor has several for each program inside.
func treePSS(root int) (float64, error) {
	children := map[int][]int{}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	for _, path := range stats {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
		if len(fields) < 2 {
			continue
		}
		parent, _ := strconv.Atoi(fields[1])
		children[parent] = append(children[parent], pid)
	}
	total := 0.0
	var counted []int
	for queue := []int{root}; len(queue) > 0; queue = queue[1:] {
		queue = append(queue, children[queue[0]]...)
		if slices.ContainsFunc(counted, func(pid int) bool { return oneMemory(pid, queue[0]) }) {
			continue
		}
		kib, err := pss(queue[0])
		if err != nil {
			return 0, fmt.Errorf("process %d: %w", queue[0], err)
		}
		total += kib / 1024
		counted = append(counted, queue[0])
	}
	return total, nil
}

// oneMemory says whether two processes share their address space. What the kernel does not tell counts as two.
func oneMemory(a, b int) bool {
	const kcmpVM = 1 // KCMP_VM of linux/kcmp.h
	order, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(a), uintptr(b), kcmpVM, 0, 0, 0)
	return errno == 0 && order == 0
}

func pss(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
			return strconv.ParseFloat(strings.Fields(rest)[0], 64)
		}
	}
	return 0, errors.New("the kernel gives no PSS")
}
