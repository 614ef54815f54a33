package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// kinds are the types of local sockets, by the names that attempts take.
var kinds = map[string]int{"stream": unix.SOCK_STREAM, "packets": unix.SOCK_SEQPACKET, "datagrams": unix.SOCK_DGRAM, "raw": unix.SOCK_RAW}

// ways to have bytes reach a name with a socket, none of which sends ancillary data.
var ways = map[string]func(fd int, to unix.Sockaddr) error{
	"connect": func(fd int, to unix.Sockaddr) error {
		if err := unix.Connect(fd, to); err != nil {
			return err
		}
		_, err := unix.Write(fd, []byte("secret-4711"))
		return err
	},
	"undo": func(fd int, to unix.Sockaddr) error {
		if _, err := call(unix.SYS_CONNECT, uintptr(fd), words(unix.AF_UNSPEC), 2); err != nil {
			return fmt.Errorf("undo: %w", err)
		}
		return unix.Sendto(fd, []byte("secret-4711"), unix.MSG_NOSIGNAL, to)
	},
	"sendto": func(fd int, to unix.Sockaddr) error {
		return unix.Sendto(fd, []byte("secret-4711"), unix.MSG_NOSIGNAL, to)
	},
	"sendmsg": func(fd int, to unix.Sockaddr) error {
		return unix.Sendmsg(fd, []byte("secret-4711"), nil, to, unix.MSG_NOSIGNAL)
	},
}

// localSocket makes a socket of a type and reaches for a name: TYPE WAY PATH.
func localSocket(args []string) (string, error) {
	way, known := ways[arg(args, 1, "")]
	kind, knownType := kinds[arg(args, 0, "")]
	if !known || !knownType {
		return "", broken("no such socket %q", args)
	}
	fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("socket: %w", err)
	}
	return "sent", way(fd, &unix.SockaddrUnix{Name: arg(args, 2, "")})
}

// localPair makes a pair of a type, may close or shut its other end, and reaches for a name with it: TYPE STATE WAY PATH.
func localPair(args []string) (string, error) {
	way, known := ways[arg(args, 2, "")]
	kind, knownType := kinds[arg(args, 0, "")]
	if !known || !knownType {
		return "", broken("no such pair %q", args)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return "", fmt.Errorf("socketpair: %w", err)
	}
	switch state := arg(args, 1, ""); state {
	case "open":
	case "closed":
		err = unix.Close(pair[1])
	case "shut":
		err = unix.Shutdown(pair[0], unix.SHUT_RDWR)
	default:
		err = broken("no state %q", state)
	}
	if err != nil {
		return "", err
	}
	if err := way(pair[0], &unix.SockaddrUnix{Name: arg(args, 3, "")}); err != nil {
		return "", err
	}
	if n, err := unix.Read(pair[1], make([]byte, 100)); err == nil && n > 0 {
		return "", errors.New("its own other end got it")
	}
	return "sent", nil
}

// localListen takes the place of a program outside: it listens at a name and answers who calls.
func localListen(args []string) (string, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: arg(args, 0, ""), Net: "unix"})
	if err != nil {
		return "", err
	}
	defer l.Close()
	if err := errors.Join(os.Chmod(arg(args, 0, ""), 0o777), l.SetDeadline(time.Now().Add(10*time.Second))); err != nil {
		return "", broken("%v", err)
	}
	c, err := l.Accept()
	if err != nil {
		return "", err
	}
	defer c.Close()
	_, err = c.Write([]byte("from inside\n"))
	return "somebody outside called", err
}

// localOpen looks for local sockets among the open files, such as a careless parent leaves.
func localOpen([]string) (string, error) {
	var found []string
	for fd := range 1024 {
		if domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err == nil && domain == unix.AF_UNIX {
			found = append(found, fmt.Sprint(fd))
		}
	}
	if len(found) == 0 {
		return "", errors.New("no open file is a local socket")
	}
	return "descriptors " + strings.Join(found, ", "), nil
}
