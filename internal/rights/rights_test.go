package rights

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/cofferdam/cofferdam/internal/seccomp"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// giver is argv[0] of the child that gives up its rights and then shows what it has left.
const giver = "give-up-rights"

func TestMain(m *testing.M) {
	if os.Args[0] == giver {
		runtime.LockOSThread()
		err := GiveUp(Bounds{Processes: 1000, Shared: os.Args[1] == "shared", Users: os.Args[2] == "users", Profile: seccomp.Sandbox()})
		if err == nil {
			err = syscall.Exec("/bin/cat", []string{"cat", "/proc/self/status", "/proc/self/limits", "/proc/self/oom_score_adj"}, nil)
		}
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// TestGiveUp looks at what root has after it gave up its rights and became another program.
func TestGiveUp(t *testing.T) {
	testenv.Need(t, "root")
	const usual, withoutSetFCap, ptrace = 0x800404fb, 0x404fb, 0x80000
	for _, c := range []struct {
		shared, users string
		bounding      uint64
		more          uint64
	}{{"alone", "one", usual, 0}, {"alone", "users", usual, ptrace}, {"shared", "one", withoutSetFCap, 0}, {"shared", "users", withoutSetFCap, ptrace}} {
		cmd := exec.Command("/proc/self/exe")
		cmd.Args = []string{giver, c.shared, c.users}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for _, want := range []string{
			fmt.Sprintf("CapInh:\t%016x\n", c.more), fmt.Sprintf("CapPrm:\t%016x\n", c.bounding|c.more), fmt.Sprintf("CapEff:\t%016x\n", c.bounding|c.more), fmt.Sprintf("CapBnd:\t%016x\n", c.bounding),
			"CapAmb:\t0000000000000000\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n", "\n500\n",
		} {
			if !strings.Contains(string(out), want) {
				t.Errorf("%s, %s: no %q in %s", c.shared, c.users, want, out)
			}
		}
		for line := range strings.Lines(string(out)) {
			fields := strings.Fields(line)
			if strings.HasPrefix(line, "Max processes") && (fields[2] != "1000" || fields[3] != "1000") || strings.HasPrefix(line, "Max core file size") && (fields[4] != "0" || fields[5] != "0") {
				t.Errorf("%s, %s: %s", c.shared, c.users, line)
			}
		}
	}
}

// TestKept has a reason for every capability.
func TestKept(t *testing.T) {
	for c, why := range Kept(false) {
		if why == "" {
			t.Errorf("capability %d is kept without a reason", c)
		}
	}
	if len(Kept(true)) != len(Kept(false))-1 {
		t.Error("a shared folder takes more or less than one capability")
	}
}
