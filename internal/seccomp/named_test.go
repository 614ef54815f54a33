package seccomp

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestWithoutNamedSockets decides sockets and pairs of every type, with flags and with rubbish in the upper halves.
func TestWithoutNamedSockets(t *testing.T) {
	const flags = unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	refused := Errno(unix.EAFNOSUPPORT)
	for _, profile := range []Profile{WithoutNamedSockets(Sandbox()), WithoutNamedSockets(WithoutSetID(Sandbox()))} {
		check(t, profile, []decision{
			{"socket", in(unix.AF_UNIX, unix.SOCK_STREAM), refused},
			{"socket", in(unix.AF_UNIX, unix.SOCK_DGRAM|flags), refused},
			{"socket", in(unix.AF_UNIX, unix.SOCK_SEQPACKET), refused},
			{"socket", in(unix.AF_UNIX, unix.SOCK_RAW), refused},
			{"socket", in(garbage|unix.AF_UNIX, garbage|unix.SOCK_STREAM, 1), refused},
			{"socketpair", in(unix.AF_UNIX, unix.SOCK_STREAM), Allow},
			{"socketpair", in(unix.AF_UNIX, unix.SOCK_STREAM|flags), Allow},
			{"socketpair", in(garbage|unix.AF_UNIX, garbage|unix.SOCK_STREAM|unix.SOCK_CLOEXEC), Allow},
			{"socketpair", in(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK), Allow},
			{"socketpair", in(unix.AF_UNIX, unix.SOCK_DGRAM), refused},
			{"socketpair", in(unix.AF_UNIX, unix.SOCK_DGRAM|flags), refused},
			{"socketpair", in(garbage|unix.AF_UNIX, garbage|unix.SOCK_DGRAM|flags), refused},
			{"socketpair", in(unix.AF_UNIX, unix.SOCK_RAW), refused},
			{"socketpair", in(unix.AF_UNIX, unix.SOCK_RDM), refused},
			{"socketpair", in(unix.AF_UNIX, 0), refused},
			{"socketpair", in(unix.AF_TIPC, unix.SOCK_STREAM), refused},
			{"socket", in(unix.AF_INET, unix.SOCK_STREAM|flags), Allow},
			{"socket", in(unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDP), Allow},
			{"socket", in(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP), Errno(unix.EPERM)},
			{"socket", in(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE), Allow},
			{"connect", in(), Allow},
			{"mknod", in(0, unix.S_IFSOCK|0o644), Allow}, // a name where nobody listens
		})
	}
}

// socketTypes are those of named sockets.
func socketTypes() map[string]int {
	return map[string]int{"stream": unix.SOCK_STREAM, "seqpacket": unix.SOCK_SEQPACKET, "dgram": unix.SOCK_DGRAM}
}

// reached counts what could be made of each type.
type reached struct {
	Sockets, Pairs map[string]int
}

// pairStates are what a pair can come to before it is tried on another name.
func pairStates() map[string]func(pair [2]int) {
	// What a type cannot do leaves it as it was.
	return map[string]func(pair [2]int){
		"open":              func([2]int) {},
		"other end closed":  func(pair [2]int) { _ = unix.Close(pair[1]) },
		"closed and unread": func(pair [2]int) { _, _ = unix.Write(pair[0], []byte("x")); _ = unix.Close(pair[1]) },
		"shut down":         func(pair [2]int) { _ = unix.Shutdown(pair[0], unix.SHUT_RDWR) },
		"undone":            func(pair [2]int) { connectUnspecified(pair[0]) },
		"named, listening": func(pair [2]int) {
			_ = unix.Bind(pair[0], &unix.SockaddrUnix{}) // a name of the kernel's choice
			_ = unix.Listen(pair[0], 1)
		},
	}
}

// connectUnspecified undoes a connection where the type can.
func connectUnspecified(fd int) {
	var address [2]byte // sun_family AF_UNSPEC
	_, _, _ = unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&address)), unsafe.Sizeof(address))
}

// reachNames tries to reach every socket in dir with every socket that can be made. Each attempt may fail: who listens tells.
func reachNames(dir string) reached {
	made := reached{map[string]int{}, map[string]int{}}
	try := func(fd int) {
		for target := range socketTypes() {
			to := &unix.SockaddrUnix{Name: filepath.Join(dir, target)}
			_ = unix.Sendto(fd, []byte("x"), unix.MSG_NOSIGNAL, to)
			_ = unix.Sendmsg(fd, []byte("x"), nil, to, unix.MSG_NOSIGNAL)
			_ = unix.Connect(fd, to)
		}
		_ = unix.Close(fd)
	}
	for name, kind := range socketTypes() {
		for range socketTypes() { // a stream can be connected once only
			if fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_NONBLOCK, 0); err == nil {
				made.Sockets[name]++
				try(fd)
			}
		}
		for _, bring := range pairStates() {
			if pair, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_NONBLOCK, 0); err == nil {
				made.Pairs[name]++
				bring(pair)
				try(pair[0])
			}
		}
	}
	return made
}

// TestPairsStayApart holds the kernel to what WithoutNamedSockets takes from it: nothing that can still be made behind the filter reaches a socket by its name,
// whatever state it is brought into. The same program without the filter reaches all.
func TestPairsStayApart(t *testing.T) {
	all := []string{"dgram", "seqpacket", "stream"}
	each := func(n int, names ...string) map[string]int {
		m := map[string]int{}
		for _, name := range names {
			m[name] = n
		}
		return m
	}
	for part, want := range map[string]struct {
		reached
		arrived []string
	}{
		"named":      {reached{each(0), each(len(pairStates()), "seqpacket", "stream")}, nil},
		"free-named": {reached{each(len(all), all...), each(len(pairStates()), all...)}, all},
	} {
		dir, arrived := serveNames(t)
		out, err := command(t, part, dir).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", part, err, out)
		}
		var got reached
		if err := json.Unmarshal(out, &got); err != nil {
			t.Fatalf("%s: %v: %s", part, err, out)
		}
		if !maps.Equal(got.Sockets, want.Sockets) || !maps.Equal(got.Pairs, want.Pairs) {
			t.Errorf("%s: made %v, want %v", part, got, want.reached)
		}
		if names := arrived(); !slices.Equal(names, want.arrived) {
			t.Errorf("%s: reached %q, want %q", part, names, want.arrived)
		}
	}
}

// serveNames listens on one socket of each type in a folder. The returned function says to which of them something came.
func serveNames(t *testing.T) (dir string, arrived func() []string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "named-") // a name that is short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // nothing to keep
	sockets := map[string]int{}
	for name, kind := range socketTypes() {
		fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, name)})
		}
		if err == nil && kind != unix.SOCK_DGRAM {
			err = unix.Listen(fd, 100)
		}
		if err != nil {
			t.Fatal(name, err)
		}
		sockets[name] = fd
		t.Cleanup(func() { _ = unix.Close(fd) }) // nothing to keep
	}
	return dir, func() (names []string) {
		for _, name := range slices.Sorted(maps.Keys(sockets)) {
			fds := []unix.PollFd{{Fd: int32(sockets[name]), Events: unix.POLLIN}}
			if n, err := unix.Poll(fds, 0); n > 0 && err == nil {
				names = append(names, name)
			}
		}
		return names
	}
}
