package main

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/cofferdam/cofferdam/internal/guest"
)

const nobody = 65534

// TestMain is the program itself under the names that it knows.
func TestMain(m *testing.M) {
	if os.Getenv("COFFERDAM_GUEST_TEST") == "" {
		os.Exit(m.Run())
	}
	main()
}

// TestByHand starts the program as somebody would who does not know what it is. It must do nothing: a first program that fails resets its machine.
func TestByHand(t *testing.T) {
	for _, args := range [][]string{{"cofferdam-guest"}, {guest.InitName}, {guest.AgainName}, {guest.AgainName, "3", "4"}, {guest.AgainName, "x", "y"}} {
		cmd := exec.Command("/proc/self/exe")
		cmd.Args, cmd.Env = args, []string{"COFFERDAM_GUEST_TEST=1"}
		if os.Geteuid() == 0 { // should the test ever fail, it is not to reset this machine
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		}
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "started by hand") {
			t.Errorf("%q: %v, %s", args, err, out)
		}
	}
}
