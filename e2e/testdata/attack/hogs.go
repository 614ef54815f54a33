package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// hogConnections opens connections until refused: ADDRESS LIMIT. It got through if more than the limit carry bytes at once.
func hogConnections(args []string) (string, error) {
	limit := number(args, 1, 100)
	var alive int
	for range limit + 50 {
		c, err := net.DialTimeout("tcp", arg(args, 0, ""), patience())
		if err != nil {
			continue
		}
		defer c.Close()
		if _, err := c.Write([]byte("hello\r\n")); err != nil {
			continue
		}
		if _, err := answered(c); err == nil {
			alive++
		}
	}
	if alive > limit {
		return fmt.Sprintf("%d connections at once", alive), nil
	}
	if alive == 0 {
		return "", broken("not one connection")
	}
	return "", fmt.Errorf("%d connections at once, no more", alive)
}

// floodDenials is refused as often as it can.
func floodDenials(args []string) (string, error) {
	n := number(args, 0, 20000)
	c, err := net.Dial("udp", "198.18.0.1:53")
	if err != nil {
		return "", broken("%v", err)
	}
	defer c.Close()
	for i := range n {
		_, _ = c.Write(question(fmt.Sprintf("flood-%d.denied.example.com", i), 1)) // a lost question costs the gateway nothing
	}
	return "", fmt.Errorf("asked %d times for names that are refused", n)
}

// forkBomb starts processes until it may not: LIMIT.
func forkBomb(args []string) (string, error) {
	limit := number(args, 0, 100)
	for i := range limit + 20 {
		cmd := exec.Command("sleep", "20")
		if err := cmd.Start(); err != nil {
			return "", fmt.Errorf("%d processes, then %w", i, err)
		}
		defer cmd.Wait() //nolint:errcheck // it was killed
		defer cmd.Process.Kill()
	}
	return fmt.Sprintf("%d processes", limit+20), nil
}

// hogMemory touches memory: MEGABYTES. Over its bound the kernel ends this process.
func hogMemory(args []string) (string, error) {
	var held [][]byte
	for range number(args, 0, 100) {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		held = append(held, b)
	}
	return fmt.Sprintf("%d MiB", len(held)), nil
}

// hogInodes makes empty files: DIR COUNT.
func hogInodes(args []string) (string, error) {
	n := number(args, 1, 100000)
	for i := range n {
		fd, err := unix.Open(filepath.Join(arg(args, 0, "/tmp"), "inode-"+strconv.Itoa(i)), unix.O_CREAT|unix.O_WRONLY, 0o600)
		if err != nil {
			return "", fmt.Errorf("%d files, then %w", i, err)
		}
		_ = unix.Close(fd) // nothing was written
	}
	return fmt.Sprintf("%d files", n), nil
}

// hogFiles opens descriptors until refused: LIMIT.
func hogFiles(args []string) (string, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return "", broken("%v", err)
	}
	limit.Cur = limit.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return "", broken("%v", err)
	}
	most := number(args, 0, 1<<20)
	for i := range most {
		if _, err := os.Open("/dev/null"); err != nil {
			if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
				return "", fmt.Errorf("%d descriptors, then %w", i, err)
			}
			return "", err
		}
	}
	return fmt.Sprintf("%d descriptors", most), nil
}
