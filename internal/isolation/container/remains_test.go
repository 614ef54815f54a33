package container

import (
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// TestRemains looks for a process in new namespaces while it is there and when it is gone, so that finding none means something.
func TestRemains(t *testing.T) {
	testenv.Need(t, "userns")
	cmd := exec.Command("sleep", "100")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	there, err1 := homeOf(cmd.Process.Pid)
	gone, err2 := homeOf(cmd.Process.Pid)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	if _, err := (&Container{home: there}).Remains(); err == nil || !strings.Contains(err.Error(), "still in") {
		t.Errorf("while the process is there: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	if _, err := (&Container{home: gone}).Remains(); err != nil {
		t.Errorf("when it is gone: %v", err)
	}
	if _, err := (&Container{}).Remains(); err == nil {
		t.Error("namespaces that are not known were found empty")
	}
}
