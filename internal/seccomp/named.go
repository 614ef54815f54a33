package seccomp

import (
	"slices"

	"golang.org/x/sys/unix"
)

// WithoutNamedSockets returns p with one more refusal: no Unix socket that could be given a name to connect or send to. It is for sandboxes that see a folder
// of the host's itself, where such a name leads to whatever program of the host listens there. A read-only mount does not help: connecting writes nothing.
//
// Pairs of streams and of ordered packets remain, which parents use to talk with children: they are born connected, and the kernel neither connects them again
// (EISCONN, also when the other end is gone), nor undoes it (AF_UNSPEC is EINVAL), nor lets them listen (net/unix/af_unix.c: unix_stream_connect, unix_listen),
// and an address given to sendmsg is refused or ignored. Datagram pairs can be sent from to any name, and SOCK_RAW is one of them (unix_create).
func WithoutNamedSockets(p Profile) Profile {
	socket, pair := []string{"socket"}, []string{"socketpair"}
	local := Int(0, unix.AF_UNIX)
	refused := Errno(unix.EAFNOSUPPORT) // that of a kernel without Unix sockets, with which libraries know how to live
	p.Rules = slices.Concat([]Rule{
		{Calls: socket, When: []Condition{local}, Action: refused, Reason: "its names lead to programs of the host that listen in the folder"},
		{Calls: pair, When: []Condition{local, IntMasked(1, typeMask, unix.SOCK_STREAM)}, Action: Allow, Reason: "connected for good: it takes no other name"},
		{Calls: pair, When: []Condition{local, IntMasked(1, typeMask, unix.SOCK_SEQPACKET)}, Action: Allow, Reason: "connected for good: it takes no other name"},
		{Calls: pair, When: []Condition{local}, Action: refused, Reason: "datagrams can be sent to any name, paired or not"},
	}, p.Rules)
	return p
}
