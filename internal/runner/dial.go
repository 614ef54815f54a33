package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	dialFor     = 10 * time.Second // how long the owner may take to listen
	dialTimeout = 2 * time.Second  // for one attempt
)

// DialTCP connects to an IP address and port. It speaks to the kernel itself: package net would double the size of the runner.
func DialTCP(address string) (io.ReadWriteCloser, error) {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("control address: %w", err)
	}
	family := unix.AF_INET6
	var sa unix.Sockaddr = &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
	if ap.Addr().Is4() {
		family = unix.AF_INET
		sa = &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := connect(fd, sa); err != nil {
		_ = unix.Close(fd) // never connected
		return nil, fmt.Errorf("connect to %s: %w", address, err)
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) // only slower without: frames are small and must not wait for each other
	return os.NewFile(uintptr(fd), "control"), nil
}

func connect(fd int, sa unix.Sockaddr) error {
	err := unix.Connect(fd, sa)
	if err != unix.EINPROGRESS && err != unix.EINTR {
		return err
	}
	deadline := time.Now().Add(dialTimeout)
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		n, err := unix.Poll(fds, max(0, int(time.Until(deadline).Milliseconds())))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return err
		case n == 0:
			return unix.ETIMEDOUT
		}
		code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil {
			return err
		}
		if code != 0 {
			return unix.Errno(code)
		}
		return nil
	}
}

// dialUntil tries again until the owner listens, since a sandbox may be up before its gateway is.
func dialUntil(ctx context.Context, address string, dial Dial) (io.ReadWriteCloser, error) {
	ctx, cancel := context.WithTimeout(ctx, dialFor)
	defer cancel()
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		conn, err := dial(address)
		if err == nil {
			return conn, nil
		}
		if _, ok := errors.AsType[unix.Errno](err); !ok {
			return nil, err // not the kernel's doing: it will not change
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
		}
	}
}
