package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// hogScenes take more than their share. A neighbour works meanwhile, and must not notice.
func hogScenes() []scene {
	hog := func(id, what, refused string, flags []string, args ...string) scene {
		return scene{id, what, func(t *testing.T, s *suite, h *house) outcome {
			o := outcome{}
			if suffered := besideNeighbour(t, s, h.as, func() {
				r, _ := s.attempt(h, flags, args...)
				o = r.verdict(refused)
			}); suffered != "" {
				return outcome{open, suffered}
			}
			return o
		}}
	}
	return []scene{
		hog("R1", "a fork bomb", "temporarily unavailable|cannot allocate", []string{"--pids", "60"}, "fork", "100"),
		hog("R3", "scratch full of empty files", "no space", []string{"--disk", "32m"}, "inodes", "/tmp", "200000"),
		{"R4", "open files without end", hogFiles},
		{"R2", "scratch full of bytes", hogDisk},
		{"R5", "memory without end", hogMemory},
		{"R6", "connections without end", hogConnections},
		{"R7", "denials without end", floodDenials},
		{"R8", "output without end", floodOutput},
		{"R9", "a real fork bomb, ended by its time", forkBomb},
	}
}

// besideNeighbour runs an attack while another sandbox of the same user works, and says how that one suffered.
func besideNeighbour(t *testing.T, s *suite, u as, attack func()) string {
	h := newHouse(t, u)
	ctx, cancel := context.WithTimeout(t.Context(), h.as.patience(50*time.Second))
	defer cancel()
	cmd := s.world.command(ctx, h, "run", "-q", "--allow", "allowed.example.com", "--", "sh", "-c",
		`while ! [ -e stop ]; do curl -sSf --max-time 10 http://allowed.example.com/ >o || exit 1; echo x >>n; [ $(wc -l <n) -ge 12 ] && exit 0; sleep 0.1; done`)
	var errs strings.Builder
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		return err.Error()
	}
	attack()
	if err := cmd.Wait(); err != nil {
		return fmt.Sprintf("the neighbour suffered: %v: %s", err, lastLine(errs.String()))
	}
	return ""
}

func hogFiles(t *testing.T, s *suite, h *house) outcome {
	var flags []string
	if h.as.able().slow {
		flags = []string{"--open-files", "8192"} // without it there is the bound of every sandbox, 2^20, which takes many minutes to reach
	}
	var r ran
	if suffered := besideNeighbour(t, s, h.as, func() { r, _ = s.attempt(h, flags, "files", "2000000") }); suffered != "" {
		return outcome{open, suffered}
	}
	return r.verdict("too many open files")
}

func hogDisk(t *testing.T, s *suite, h *house) outcome {
	r := s.world.do(h, time.Minute, "run", "-q", "--disk", "32m", "--", "sh", "-c", `
for place in /tmp /root /dev/shm /var/tmp . /usr/local; do
  why=$(dd if=/dev/zero of=$place/big bs=1M count=64 2>&1) && { echo "64 MiB in $place"; exit 0; }
  case "$why" in *'No space'*|*Read-only*|*'No such'*) ;; *) echo "$place: $why"; exit 3;; esac
  rm -f $place/big
done
echo ok >/tmp/small && echo "no space, and after removing it there is some again"; exit 1`)
	return ran{r.code, r.stdout + r.stderr}.verdict("some again")
}

// hogMemory holds where memory can be bounded, and else is refused by name, with the remedy.
func hogMemory(_ *testing.T, s *suite, h *house) outcome {
	bound := "64m"
	if h.as.able().kernel == "guest" {
		bound = "256m" // a machine that has much less, and reads the same code again and again, takes minutes to see that it has too little
	}
	r, _ := s.attempt(h, []string{"--memory", bound}, "memory", "300")
	if r.code == 125 && strings.Contains(r.output, "--best-effort") {
		return outcome{blocked, "the run does not start, for memory cannot be bounded here: " + lastLine(r.output)}
	}
	if r.code == 137 {
		return outcome{blocked, "killed: " + lastLine(r.output)}
	}
	return r.verdict("out of memory|killed")
}

func hogConnections(t *testing.T, s *suite, h *house) outcome {
	h.write("policy.yaml", "version: 1\nresources:\n  connections: 40\negress:\n  rules:\n    - hosts: [opaque.example.com]\n      ports: [9000]\n      protocol: tcp\n")
	var o outcome
	if suffered := besideNeighbour(t, s, h.as, func() {
		r, events := s.attempt(h, []string{"--policy", "policy.yaml"}, "connections", "opaque.example.com:9000", "40")
		p := probe{refused: "connections at once, no more", record: &event{Rule: "connection-limit"}}
		o = p.judge(&r, nil, events)
	}); suffered != "" {
		return outcome{open, suffered}
	}
	return o
}

// floodDenials looks at the size of the log afterwards, and that it is whole.
func floodDenials(t *testing.T, s *suite, h *house) outcome {
	var r ran
	var events []event
	if suffered := besideNeighbour(t, s, h.as, func() { r, events = s.attempt(h, nil, "denials", "30000") }); suffered != "" {
		return outcome{open, suffered}
	}
	var size int64
	_ = filepath.Walk(filepath.Join(h.state, "audit"), func(_ string, info os.FileInfo, err error) error { // what cannot be read counts nothing, and fails below
		if err == nil {
			size += info.Size()
		}
		return nil
	})
	if size == 0 || size > 8<<20 {
		return outcome{open, strconv.FormatInt(size, 10) + " bytes of records"}
	}
	if verify := h.do("audit", "verify"); verify.code != 0 {
		return outcome{open, "the log is not whole: " + lastLine(verify.stderr)}
	}
	o := probe{refused: "for names that are refused", record: &event{Rule: "default"}}.judge(&r, nil, events)
	o.evidence += fmt.Sprintf("; %d KiB of records, whole", size>>10)
	return o
}

// floodOutput writes to a reader that does not read: the program waits, nothing grows.
func floodOutput(t *testing.T, s *suite, h *house) outcome {
	ctx, cancel := context.WithTimeout(t.Context(), h.as.patience(20*time.Second))
	defer cancel()
	cmd := s.world.command(ctx, h, "run", "-q", "--timeout", h.as.patience(3*time.Second).String(), "--", "sh", "-c", "yes secret; exit 0")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return outcome{unknown, err.Error()}
	}
	time.Sleep(h.as.patience(2 * time.Second))
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil {
		return outcome{unknown, err.Error()}
	}
	_, rest, _ := strings.Cut(string(data), "VmRSS:")
	kib, _ := strconv.Atoi(strings.Fields(rest + " 0")[0]) // no number is none
	_ = out.Close()                                        // the reader goes away
	_ = cmd.Wait()                                         // ended by its time
	if kib == 0 || kib > 100<<10 {
		return outcome{open, fmt.Sprintf("%d KiB held", kib)}
	}
	return outcome{blocked, fmt.Sprintf("%d KiB held outside while nobody reads, ended in time", kib)}
}

// forkBomb is the classic one. It must end with the sandbox, and leave nothing.
func forkBomb(t *testing.T, s *suite, h *house) outcome {
	var r result
	if suffered := besideNeighbour(t, s, h.as, func() {
		r = s.world.do(h, time.Minute, "run", "-q", "--pids", "100", "--timeout", h.as.patience(3*time.Second).String(), "--", "sh", "-c", "f() { f | f & }; f; sleep 30; true")
	}); suffered != "" {
		return outcome{open, suffered}
	}
	if r.code != 124 && r.code != 2 && r.code != 137 {
		return outcome{unknown, fmt.Sprintf("status %d: %s", r.code, lastLine(r.stderr))}
	}
	if left := strangers(h); left != "" {
		return outcome{open, "left behind: " + left}
	}
	return outcome{blocked, fmt.Sprintf("ended with status %d, nothing left", r.code)}
}

// strangers finds processes of a house that outlive their run.
func strangers(h *house) string {
	entries, _ := os.ReadDir("/proc") // always there
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !e.IsDir() {
			continue
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid >= 0x70000000 {
			if name, err := os.ReadFile("/proc/" + e.Name() + "/environ"); err == nil && strings.Contains(string(name), h.project) {
				return e.Name()
			}
		}
	}
	return ""
}
