package guest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// work is what the stand-in for the runner is told in its boot line.
type work struct {
	Script string `json:"script"` // one of scripts
}

// scripts are what the stand-in does, by name. What they find goes into the workspace, or onto the status.
func scripts() map[string]func() error {
	return map[string]func() error{
		"nothing": func() error { return nil },
		"look":    look,
		"change":  change,
		"hog":     hog,
		"wait":    func() error { time.Sleep(time.Hour); return nil },
		"clock":   clock,
		"crowd":   crowd,
		"random":  random,
		"leave":   leave,
	}
}

// inside is the life of the stand-in.
func inside() int {
	line, err := bufio.NewReader(os.Stdin).ReadBytes('\n')
	var w work
	if err == nil {
		err = json.Unmarshal(line, &w)
	}
	if err == nil {
		err = scripts()[w.Script]()
	}
	if err != nil {
		_ = os.WriteFile("/work/error", []byte(err.Error()), 0o644) // the status says that there is one
		return 1
	}
	return 0
}

// findings are what look found, by what was looked for.
type findings map[string]string

func (f findings) file(name, path string) {
	data, err := os.ReadFile(path)
	f[name] = string(data)
	if err != nil {
		f[name] = err.Error()
	}
}

func (f findings) try(name string, err error) { f[name] = fmt.Sprint(err) }

// look looks around and tries what must not be possible.
func look() error {
	f := findings{}
	for _, path := range []string{"/etc/hostname", "/etc/machine-id", "/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt", "/proc/self/cgroup", "/proc/self/status", "/proc/net/fib_trie", "/proc/net/arp", "/proc/net/route", "/proc/self/limits", "/mnt/one", "/mnt/tree/in", "/mnt/tree/deeper/there", "/proc/self/oom_score_adj", "/proc/kallsyms", "/proc/self/mountinfo", "/proc/sys/kernel/random/boot_id", "/root/left", "/work/left", "/target"} {
		f.file(path, path)
	}
	name, err := os.Hostname()
	f["hostname"] = name
	f.try("hostname error", err)
	f["time"] = fmt.Sprint(time.Now().Unix())
	f.try("write a mounted file", os.WriteFile("/mnt/one", nil, 0o644))
	f.try("write in a mounted tree", os.WriteFile("/mnt/tree/new", nil, 0o644))
	f.try("write a kernel setting", os.WriteFile("/proc/sys/kernel/core_pattern", []byte("|/tmp/x"), 0))
	f.try("reset by sysrq", os.WriteFile("/proc/sysrq-trigger", []byte("b"), 0))
	f.try("write the kernel's id", os.WriteFile("/proc/sys/kernel/random/boot_id", nil, 0))
	f.try("make a device", unix.Mknod("/tmp/vda", unix.S_IFBLK|0o600, int(unix.Mkdev(254, 0))))
	f.try("mount", unix.Mount("none", "/mnt", "tmpfs", 0, ""))
	f.try("load a module", unix.FinitModule(0, "", 0))
	f.try("reboot", unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART))
	f.try("make a user namespace", unix.Unshare(unix.CLONE_NEWUSER))
	f.try("set the clock", unix.ClockSettime(unix.CLOCK_REALTIME, &unix.Timespec{Sec: 1}))
	f.try("write the root", os.WriteFile("/new", []byte("x"), 0o644))
	devices, err := os.ReadDir("/dev")
	f.try("devices error", err)
	for _, d := range devices {
		f["devices"] += d.Name() + " "
	}
	ends, err := os.ReadDir("/proc/self/fd")
	f.try("descriptors error", err)
	for _, d := range ends {
		target, _ := os.Readlink("/proc/self/fd/" + d.Name()) // one is that of the listing itself
		f["descriptors"] += d.Name() + "=" + target + " "
	}
	processes, err := os.ReadDir("/proc")
	f.try("processes error", err)
	for _, p := range processes {
		if strings.Trim(p.Name(), "0123456789") == "" {
			f["processes"] += p.Name() + " "
		}
	}
	f["system"] = strings.Join(names("/sys"), " ")
	data, err := json.MarshalIndent(f, "", " ")
	return errors.Join(err, os.WriteFile("/work/found.json", data, 0o644))
}

func names(dir string) []string {
	entries, _ := os.ReadDir(dir) // nothing is what is looked for
	all := map[string]bool{}
	for _, e := range entries {
		all[e.Name()] = true
	}
	return slices.Sorted(maps.Keys(all))
}

// change changes the workspace in every way that has a form of its own in the stream.
func change() error {
	if err := os.Chdir("/work"); err != nil {
		return err
	}
	sparse, err := os.Create("sparse")
	if err != nil {
		return err
	}
	_, err = sparse.WriteAt([]byte("late"), 1<<40)
	return errors.Join(err, sparse.Close(),
		os.WriteFile("kept", []byte("changed"), 0), os.Chmod("kept", 0o600),
		os.Remove("gone"),
		os.RemoveAll("tree"), os.Mkdir("tree", 0o750), os.WriteFile("tree/new", []byte("x"), 0o644), // an opaque directory
		os.Rename("moved", "there"),
		os.Symlink("../../etc/passwd", "link"),
		os.Link("kept", "second"),
		unix.Mkfifo("pipe", 0o644),
		os.Lchown("kept", 1000, 1001),
		os.WriteFile("name\xff\n", nil, 0o644),
		os.MkdirAll(strings.Repeat("d/", 300), 0o755),
	)
}

// hog takes memory until it is stopped, with a child that is bigger than itself.
func hog() error {
	file, err := os.Create("/work/hog")
	if err != nil {
		return err
	}
	_, err = io.Copy(file, io.LimitReader(zeros{}, 1<<40))
	if errors.Is(err, unix.ENOSPC) { // scratch has its own bound
		err = nil
	}
	var all [][]byte
	for {
		block := make([]byte, 1<<20)
		for i := range block {
			block[i] = 1
		}
		all = append(all, block)
		if len(all) > 1<<20 {
			return err
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// clock waits until the clock was set to the future.
func clock() error {
	for range 6000 {
		if time.Now().Year() > 2090 {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("it is %v", time.Now())
}

// crowd makes processes until it may no more, and says how many.
func crowd() error {
	for n := range 1000 {
		pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		switch {
		case errno != 0:
			return os.WriteFile("/work/crowd", fmt.Appendf(nil, "%d %v", n, errno), 0o644)
		case pid == 0: // nothing of Go works in the copy
			for {
				unix.RawSyscall(unix.SYS_PAUSE, 0, 0, 0)
			}
		}
	}
	return errors.New("a thousand processes")
}

// random draws from each generator that a program has, and marks the workspace's file.
func random() error {
	draw := make([]byte, 16)
	if _, err := unix.Getrandom(draw, 0); err != nil {
		return err
	}
	words, err := os.ReadFile("/proc/self/auxv") // the kernel's gift at the start of a program: its address, which is random too
	if err != nil {
		return err
	}
	uuid, err1 := os.ReadFile("/proc/sys/kernel/random/uuid")
	boot, err2 := os.ReadFile("/proc/sys/kernel/random/boot_id")
	own, err3 := os.ReadFile("/work/its own")
	return errors.Join(err1, err2, err3,
		os.WriteFile("/work/kernel", fmt.Appendf(nil, "%x", draw), 0o644),
		os.WriteFile("/work/go", fmt.Appendf(nil, "%x", rand.Uint64()), 0o644),
		os.WriteFile("/work/start", fmt.Appendf(nil, "%x", words), 0o644),
		os.WriteFile("/work/uuid", uuid, 0o644), os.WriteFile("/work/boot", boot, 0o644),
		os.WriteFile("/work/its own", append(own, ", seen"...), 0o644),
	)
}

// leave prepares the file system for whoever comes next: with what is to stay, and with traps for a program that makes it another run's with more rights.
func leave() error {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return errors.Join(err,
		os.WriteFile("/work/left", id, 0o644), os.WriteFile("/root/left", []byte("scratch"), 0o644), os.WriteFile("/target", []byte("untouched"), 0o600),
		os.Remove("/etc/machine-id"), os.Symlink("/target", "/etc/machine-id"),
		os.Remove("/etc/hosts"), os.Symlink("/proc/sys/kernel/core_pattern", "/etc/hosts"),
		os.Rename("/run/cofferdam", "/run/elsewhere"), os.Mkdir("/run/cofferdam", 0o755), os.WriteFile("/run/cofferdam/runner", []byte("#!/bin/sh\n"), 0o755),
		os.RemoveAll("/tmp"), os.Symlink("/etc", "/tmp"),
	)
}
