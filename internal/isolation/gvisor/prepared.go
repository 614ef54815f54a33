package gvisor

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/isolation/container"
	"github.com/cofferdam/cofferdam/internal/netns"
)

// Kernel is what container.Prepare needs to prepare a sandbox of this level.
func Kernel(program string) (*container.Kernel, error) {
	if _, err := os.Stat(program); err != nil {
		return nil, fault.New(fault.Unsupported, "isolation level gvisor needs %s, which is not installed", Program).WithHint("%s", Remedy).Because(err)
	}
	return &container.Kernel{Program: program, View: view, Settled: settled()}, nil
}

// settled are directories whose attributes gVisor's kernel has read when the runner waits, and keeps, since it takes the files to be its own: those at which something is
// mounted in its terms, and those on the way to the runner. One that came to have another subdirectory would have a number of links that is wrong.
func settled() []string { return []string{"/", "/tmp", "/run", "/run/cofferdam"} }

// goferPatience bounds the wait for runsc's gofer, which comes up in tens of milliseconds, on a machine under heavy load in seconds.
const goferPatience = 10 * time.Second

// goferRoot is where in its mount namespace the gofer has the sandbox's root, and what it makes its own root when all is mounted (SetupRootFS and gofer.go in runsc/cmd).
const goferRoot = "/root"

// view finds the mount namespace of runsc's gofer, by which gVisor's kernel reaches the sandbox's files: what is to be seen inside has to be mounted there.
func view(pid int) (*os.File, string, error) {
	for end := time.Now().Add(goferPatience); ; time.Sleep(time.Millisecond) {
		for _, child := range children(pid) {
			dir := "/proc/" + child
			name, _ := os.ReadFile(dir + "/cmdline") // a process that has ended has none
			root, _ := os.Readlink(dir + "/root")
			if strings.HasPrefix(string(name), "runsc-gofer\x00") && root == goferRoot {
				namespace, err := os.Open(dir + "/ns/mnt")
				return namespace, goferRoot, err
			}
		}
		if time.Now().After(end) {
			return nil, "", fmt.Errorf("runsc's gofer did not come up within %v", goferPatience)
		}
	}
}

// children lists the processes that a process has started.
func children(pid int) (pids []string) {
	lists, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/children") // the pattern is ours
	for _, list := range lists {
		data, _ := os.ReadFile(list) // a thread that has ended has none
		pids = append(pids, strings.Fields(string(data))...)
	}
	return pids
}

// Adopt makes a sandbox of this level of one that was prepared with Kernel and finished. On error nothing is left.
func Adopt(c *container.Container) (*Sandbox, error) {
	s := &Sandbox{Container: c}
	var err error
	if s.room, err = netns.HoldRoom(c.Listeners); err != nil {
		c.Kill()
		<-c.Done()
		c.Listeners.Close()
		return nil, err
	}
	return s, nil
}
