package gvisor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/netns"
)

// CableName is argv[0] of the child by which Probe tries the cable.
const CableName = "cofferdam-cable"

// probePatience bounds each part of a probe.
const probePatience = 10 * time.Second

// Probe says whether runsc is there and runs, and whether this kernel and this user can lay the cable to its network stack. Whether a sandbox comes up, only one shows.
func Probe(ctx context.Context, program string) (version string, err error) {
	if _, err := os.Stat(program); err != nil {
		return "", fmt.Errorf("%s is not installed beside the other programs", Program)
	}
	ctx, cancel := context.WithTimeout(ctx, probePatience)
	defer cancel()
	ask := exec.CommandContext(ctx, program, "--version")
	ask.Env = []string{}
	out, err := ask.Output()
	if err != nil {
		return "", fmt.Errorf("ask %s for its version: %w", Program, err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	version = strings.TrimPrefix(first, "runsc version ")
	lay := exec.CommandContext(ctx, "/proc/self/exe")
	lay.Args = []string{CableName}
	lay.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if out, err := lay.CombinedOutput(); err != nil {
		return "", fmt.Errorf("lay the cable (needs the kernel's veth devices): %w: %s", err, strings.TrimSpace(string(out)))
	}
	return version, nil
}

// Cable is the life of that child.
func Cable() {
	runtime.LockOSThread()
	if err := netns.ProbeDevice(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}
