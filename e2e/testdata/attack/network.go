package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long an answer may take: so many seconds as PATIENCE says, or five.
func patience() time.Duration {
	n, err := strconv.Atoi(os.Getenv("PATIENCE"))
	if err != nil {
		n = 5
	}
	return time.Duration(n) * time.Second
}

// answered reads what came back. A connection that was accepted but carries nothing was refused.
func answered(c net.Conn) (string, error) {
	_ = c.SetReadDeadline(time.Now().Add(patience())) // fails only for a closed connection
	buf := make([]byte, 4096)
	n, err := c.Read(buf)
	if n > 0 {
		return strconv.Quote(string(buf[:min(n, 200)])), nil
	}
	return "", err
}

// dialTCP connects, says something secret, and waits for an answer.
func dialTCP(args []string) (string, error) {
	c, err := net.DialTimeout("tcp", arg(args, 0, ""), patience())
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := io.WriteString(c, arg(args, 1, "secret-4711")+"\r\n"); err != nil {
		return "", err
	}
	return answered(c)
}

// sendUDP sends from a connected socket, so that the kernel tells of refusals.
func sendUDP(args []string) (string, error) {
	c, err := net.Dial("udp", arg(args, 0, ""))
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := io.WriteString(c, strings.Repeat("secret-4711", number(args, 1, 1))); err != nil {
		return "", err
	}
	return answered(c)
}

// ping sends one echo request through an unprivileged socket.
func ping(args []string) (string, error) {
	to, err := netip.ParseAddr(arg(args, 0, ""))
	if err != nil {
		return "", broken("%v", err)
	}
	family, protocol, request := unix.AF_INET, unix.IPPROTO_ICMP, byte(8)
	var sa unix.Sockaddr
	if to.Is6() {
		family, protocol, request = unix.AF_INET6, unix.IPPROTO_ICMPV6, 128
		sa = &unix.SockaddrInet6{Addr: to.As16()}
	} else {
		sa = &unix.SockaddrInet4{Addr: to.As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM, protocol)
	if err != nil {
		return "", err
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 3}); err != nil {
		return "", broken("%v", err)
	}
	if err := unix.Connect(fd, sa); err != nil {
		return "", err
	}
	if err := unix.Send(fd, append([]byte{request, 0, 0, 0, 0, 1, 0, 1}, "secret-4711"...), 0); err != nil {
		return "", err
	}
	buf := make([]byte, 256)
	n, err := unix.Read(fd, buf)
	return fmt.Sprintf("an echo of %d bytes", n), err
}

// fastOpen puts data into the first packet.
func fastOpen(args []string) (string, error) {
	to, err := netip.ParseAddrPort(arg(args, 0, ""))
	if err != nil {
		return "", broken("%v", err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return "", err
	}
	sa := &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	if err := unix.Sendto(fd, []byte("secret-4711\r\n"), unix.MSG_FASTOPEN, sa); err != nil {
		return "", err
	}
	c, err := net.FileConn(os.NewFile(uintptr(fd), "tcp"))
	if err != nil {
		return "", err
	}
	return answered(c)
}

// rawHTTP sends bytes as they are (with \r, \n, \0 and \xNN escapes) and reads all answers. It got through if one of the answers is the world's,
// unless more are said to be fine.
func rawHTTP(args []string) (string, error) {
	sent, err := strconv.Unquote(`"` + strings.ReplaceAll(arg(args, 1, ""), `"`, `\"`) + `"`)
	if err != nil {
		return "", broken("%v", err)
	}
	c, err := net.DialTimeout("tcp", arg(args, 0, ""), patience())
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := io.WriteString(c, sent); err != nil {
		return "", err
	}
	_ = c.SetReadDeadline(time.Now().Add(2 * time.Second)) // as above
	all, err := io.ReadAll(io.LimitReader(c, 1<<20))
	worlds := strings.Count(string(all), "world\n")
	status, _, _ := strings.Cut(string(all), "\r\n")
	if worlds > number(args, 2, 0) {
		return fmt.Sprintf("%d answers of the world's", worlds), nil
	}
	return "", errors.Join(fmt.Errorf("%d answers of the world's, first line %q, the last %q", worlds, status, tail(string(all))), err)
}

// tail is the last status line of an answer, with the rule that the gateway names.
func tail(all string) string {
	i := strings.LastIndex(all, "HTTP/1.1 ")
	if i < 0 {
		return ""
	}
	line, rest, _ := strings.Cut(all[i:], "\r\n")
	for field := range strings.SplitSeq(rest, "\r\n") {
		if strings.HasPrefix(strings.ToLower(field), "x-cofferdam") {
			line += " " + field
		}
	}
	return line
}

// listener is where somebody listens in this network namespace.
type listener struct {
	port int
	six  bool // for both families
}

func listening() (all []listener, err error) {
	for _, name := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, broken("%v", err)
		}
		for line := range strings.Lines(string(data)) {
			if f := strings.Fields(line); len(f) > 3 && f[3] == "0A" {
				_, port, _ := strings.Cut(f[1], ":")
				n, _ := strconv.ParseUint(port, 16, 16) // the kernel's own text
				all = append(all, listener{int(n), name == "/proc/net/tcp6"})
			}
		}
	}
	if len(all) == 0 {
		return nil, broken("nobody listens")
	}
	return all, nil
}

// planted connects to the gateway's own sockets, by an address of this sandbox's loopback or any other.
func planted(args []string) (string, error) {
	all, err := listening()
	if err != nil {
		return "", err
	}
	var refusals []error
	for _, l := range all {
		got, err := dialTCP([]string{net.JoinHostPort(arg(args, 0, "127.0.0.1"), strconv.Itoa(l.port)), "GET / HTTP/1.1\r\nHost: allowed.example.com\r\n\r\n"})
		if err == nil {
			return got, nil
		}
		refusals = append(refusals, err)
	}
	return "", errors.Join(refusals...)
}

// hijack binds the ports of the gateway's sockets, to take connections in its place.
func hijack([]string) (string, error) {
	all, err := listening()
	if err != nil {
		return "", err
	}
	for _, l := range all {
		port := l.port
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			if family == unix.AF_INET6 && !l.six {
				continue // another family's port is another port
			}
			fd, err := unix.Socket(family, unix.SOCK_STREAM, 0)
			if err != nil {
				return "", broken("%v", err)
			}
			for _, option := range []int{unix.SO_REUSEADDR, unix.SO_REUSEPORT} {
				if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 1); err != nil {
					return "", broken("%v", err)
				}
			}
			var sa unix.Sockaddr = &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}
			if family == unix.AF_INET6 {
				sa = &unix.SockaddrInet6{Port: port, Addr: netip.IPv6Loopback().As16()}
			}
			if unix.Bind(fd, sa) == nil && unix.Listen(fd, 5) == nil {
				return fmt.Sprintf("port %d of family %d is bound a second time", port, family), nil
			}
		}
	}
	return "", unix.EADDRINUSE
}

// control speaks to the gateway's control address as a second runner would, with a guessed token, a huge frame, and rubbish.
func control([]string) (string, error) {
	hello := append([]byte{0, 1, 64}, strings.Repeat("0", 64)+`{"pid":1}`...)
	began := time.Now()
	for _, sent := range []string{
		string([]byte{1, 0, 0, 0, 0, byte(len(hello))}) + string(hello), string([]byte{0, 0, 0, byte(len(hello)), 1, 0}) + string(hello),
		"\x01\x00\xff\xff\xff\xff", "\xff\xff\xff\xff\xff\xff\xff\xff", "GET / HTTP/1.1\r\n\r\n", strings.Repeat("\x00", 1<<16),
	} {
		for range 3 {
			if time.Since(began) > 3*patience() {
				break // silence is as good as an end
			}
			got, err := func() (string, error) {
				c, err := net.DialTimeout("tcp", "198.18.0.1:1", patience())
				if err != nil {
					return "", err
				}
				defer c.Close()
				_, _ = io.WriteString(c, sent) // refused or not, the answer counts
				return answered(c)
			}()
			if err == nil {
				return got, nil
			}
		}
	}
	return "", errors.New("no second runner was answered")
}

// relay starts a proxy inside and goes out through it: it can go no further than anybody else here.
func relay(args []string) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", broken("%v", err)
	}
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", arg(args, 0, ""))
			if err != nil {
				_ = in.Close()
				continue
			}
			go io.Copy(out, in) //nolint:errcheck // the other direction tells
			_, _ = io.Copy(in, out)
			_ = in.Close()
		}
	}()
	return dialTCP([]string{l.Addr().String()})
}

// dialUnix connects to a socket in the file system, or with @ to an abstract one.
func dialUnix(args []string) (string, error) {
	c, err := net.Dial("unix", arg(args, 0, ""))
	if err != nil {
		return "", err
	}
	defer c.Close()
	return answered(c)
}

// writeFIFO writes into a pipe if somebody reads it.
func writeFIFO(args []string) (string, error) {
	fd, err := unix.Open(arg(args, 0, ""), unix.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	_, err = unix.Write(fd, []byte("secret-4711"))
	return "written", err
}
