package runner

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/internal/frame"
	"golang.org/x/sys/unix"
)

const (
	// answerIn bounds one answer. The owner asks on the path of a denial and waits no longer than 200 ms.
	answerIn = 150 * time.Millisecond
	// maxTable bounds what is read of one of the kernel's socket tables.
	maxTable = 8 << 20
	// remembered is how many recent finds are looked at first: one program's connections come in bursts.
	remembered = 8
)

// processTable finds the process that owns a socket, in this network and process namespace. Its zero value is ready; it is not safe for
// concurrent use. The work is bounded by a deadline: with very many processes an answer may be "unknown", never late.
type processTable struct {
	recent []int // last found process ids, newest first
	buf    []byte
}

// owner answers a query. A socket whose process may not be looked at has an unknown owner: with one user id inside, that is one that forbids it.
func (t *processTable) owner(q frame.Query, deadline time.Time) frame.Owner {
	unknown := frame.Owner{ID: q.ID}
	inode, ok := t.socket(q, deadline)
	if !ok {
		return unknown
	}
	pid := t.process(inode, deadline)
	if pid == 0 {
		return unknown
	}
	return frame.Owner{ID: q.ID, PID: pid, Name: processName(pid)}
}

// socket finds the inode of the socket that a query describes.
func (t *processTable) socket(q frame.Query, deadline time.Time) (inode string, ok bool) {
	src, err := netip.ParseAddrPort(q.Source)
	if err != nil {
		return "", false
	}
	var dst netip.AddrPort
	if q.Dest != "" {
		if dst, err = netip.ParseAddrPort(q.Dest); err != nil {
			return "", false
		}
	}
	for _, look := range looks(q.Network, unmap(src), unmap(dst)) {
		for _, table := range []string{look.table, look.table + "6"} {
			if inode, ok := t.scan("/proc/net/"+table, look.match, deadline); ok {
				return inode, true
			}
		}
	}
	return "", false
}

// look is one kind of socket that can be meant, and the name of the kernel's table for it; the one for IPv6 has a 6 at the end.
type look struct {
	table string
	match match
}

// looks lists what a query can mean, the likeliest first.
func looks(network string, src, dst netip.AddrPort) []look {
	to := netip.AddrPortFrom(dst.Addr(), 0)
	raw := func(protocol uint16) look {
		return look{"raw", match{datagram: true, anyPort: true, src: netip.AddrPortFrom(src.Addr(), protocol), dst: to}}
	}
	switch network {
	case "tcp":
		return []look{{"tcp", match{src: src, dst: dst}}}
	case "udp":
		return []look{{"udp", match{datagram: true, src: src, dst: dst}}}
	case "icmp":
		number := uint16(unix.IPPROTO_ICMP)
		if src.Addr().Is6() {
			number = unix.IPPROTO_ICMPV6
		}
		return []look{{"icmp", match{datagram: true, anyPort: true, src: src, dst: to}}, raw(number), raw(unix.IPPROTO_RAW)}
	case "raw":
		return []look{raw(src.Port()), raw(unix.IPPROTO_RAW)}
	}
	return nil
}

func unmap(ap netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// scan reads one of the kernel's tables line by line in bounded memory.
func (t *processTable) scan(name string, want match, deadline time.Time) (string, bool) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", false
	}
	defer unix.Close(fd) // opened for reading
	buf := t.buffer()
	held := 0
	for total := 0; total < maxTable && time.Now().Before(deadline); {
		n, err := unix.Read(fd, buf[held:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return "", false
		}
		total += n
		data := buf[:held+n]
		for {
			line, rest, whole := bytes.Cut(data, []byte{'\n'})
			if !whole {
				break
			}
			if inode, ok := want.line(string(line)); ok {
				return inode, true
			}
			data = rest
		}
		if held = copy(buf, data); held == len(buf) {
			return "", false // no line of the kernel's is that long
		}
	}
	return "", false
}

func (t *processTable) buffer() []byte {
	if t.buf == nil {
		t.buf = make([]byte, 64<<10)
	}
	return t.buf
}

// match says which line of a socket table is meant.
type match struct {
	datagram bool           // the socket need be neither bound nor connected to an address
	anyPort  bool           // the destination's port says nothing
	src, dst netip.AddrPort // unmapped; dst may be invalid: any
}

// line judges one line of /proc/net/{tcp,udp,icmp,raw}{,6} and returns the socket's inode. What stands there as the local port is an echo's identifier for icmp,
// the IP protocol for raw.
func (m match) line(line string) (inode string, ok bool) {
	f := strings.Fields(line)
	if len(f) < 10 || !strings.HasSuffix(f[0], ":") {
		return "", false
	}
	local, err := parseKernelAddr(f[1])
	if err != nil || local.Port() != m.src.Port() {
		return "", false
	}
	remote, err := parseKernelAddr(f[2])
	if err != nil {
		return "", false
	}
	if m.anyPort {
		remote = netip.AddrPortFrom(remote.Addr(), 0)
	}
	anySource := m.datagram && local.Addr().IsUnspecified()
	const synSent = "02"                    // TCP_SYN_SENT of include/net/tcp_states.h
	unsaid := m.datagram || f[3] == synSent // gVisor names the other end of a TCP socket only when it has answered
	anyDest := !m.dst.IsValid() || unsaid && remote.Addr().IsUnspecified()
	if local != m.src && !anySource || remote != m.dst && !anyDest {
		return "", false
	}
	if f[9] == "0" { // already closed: it belongs to nobody
		return "", false
	}
	return f[9], true
}

// parseKernelAddr reads "0100007F:0050" or its IPv6 form: 32-bit words in hexadecimal, each in the machine's byte order.
func parseKernelAddr(s string) (netip.AddrPort, error) {
	host, port, _ := strings.Cut(s, ":")
	p, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if len(host) != 8 && len(host) != 32 {
		return netip.AddrPort{}, strconv.ErrSyntax
	}
	b := make([]byte, 0, 16)
	for ; host != ""; host = host[8:] {
		w, err := strconv.ParseUint(host[:8], 16, 32)
		if err != nil {
			return netip.AddrPort{}, err
		}
		b = binary.NativeEndian.AppendUint32(b, uint32(w))
	}
	addr, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(addr.Unmap(), uint16(p)), nil
}

// process finds who has the socket open: recent finds first, then the youngest processes, since denials come from programs that just started.
func (t *processTable) process(inode string, deadline time.Time) int {
	link := "socket:[" + inode + "]"
	for _, pid := range t.recent {
		if t.holds(pid, link) {
			t.remember(pid)
			return pid
		}
	}
	pids := t.processes()
	slices.Sort(pids)
	for _, pid := range slices.Backward(pids) {
		if !time.Now().Before(deadline) {
			return 0
		}
		if t.holds(pid, link) {
			t.remember(pid)
			return pid
		}
	}
	return 0
}

func (t *processTable) remember(pid int) {
	t.recent = slices.DeleteFunc(t.recent, func(p int) bool { return p == pid })
	t.recent = slices.Insert(t.recent, 0, pid)
	t.recent = t.recent[:min(len(t.recent), remembered)]
}

// processes lists the process ids, without the stat of each that os.ReadDir could cost.
func (t *processTable) processes() (pids []int) {
	fd, err := unix.Open("/proc", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd) // opened for reading
	t.names(fd, func(name string) bool {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
		return true
	})
	return pids
}

// holds says whether a process has a file whose link reads so.
func (t *processTable) holds(pid int, link string) (found bool) {
	fd, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd) // opened for reading
	var target [64]byte
	t.names(fd, func(name string) bool {
		n, err := unix.Readlinkat(fd, name, target[:])
		found = err == nil && string(target[:n]) == link
		return !found
	})
	return found
}

// names calls f with each name in a directory until it says stop.
func (t *processTable) names(fd int, f func(name string) bool) {
	buf := t.buffer()
	var list []string
	for {
		n, err := unix.ReadDirent(fd, buf)
		if err != nil || n <= 0 {
			return
		}
		_, _, list = unix.ParseDirent(buf[:n], -1, list[:0])
		for _, name := range list {
			if !f(name) {
				return
			}
		}
	}
}

// processName is what people call a process: the program's name, or the longer title that it gave itself ("npm install").
func processName(pid int) string {
	dir := "/proc/" + strconv.Itoa(pid)
	comm := strings.TrimSuffix(head(dir+"/comm"), "\n")
	title, _, _ := strings.Cut(head(dir+"/cmdline"), "\x00")
	if strings.HasPrefix(title, "/") {
		title = path.Base(title)
	}
	if strings.HasPrefix(title, comm) { // the kernel keeps only 15 bytes of the name
		comm = title
	}
	return frame.Inert(comm, 64)
}

// head reads the first bytes of a file that a process inside controls.
func head(name string) string {
	f, err := os.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close() // opened for reading
	b := make([]byte, 256)
	n, _ := f.Read(b) // what came, came: it is a help for people
	return string(b[:n])
}
