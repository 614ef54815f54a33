package tunnel

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// copyFirst bytes of each direction are copied through a pooled buffer: for a short exchange that is cheaper than splice's two
	// calls, and a silent connection then holds neither a pipe nor a buffer.
	copyFirst = 128 << 10
	copyChunk = 32 << 10
	// pacedPortion is how many bytes of a paced tunnel move before its pace is asked for.
	pacedPortion = 64 << 10
)

// ErrIdle ends a tunnel in which neither side has sent anything for the idle time.
var ErrIdle = errors.New("tunnel: idle for too long")

// chunks are the copy buffers; a buffer is held only while data moves.
type chunks struct{ pool sync.Pool }

func (c *chunks) get() *[]byte {
	if b, ok := c.pool.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, copyChunk)
	return &b
}

// Splicer moves bytes between connections. Its zero value is ready and it is safe for concurrent use.
type Splicer struct{ chunks chunks }

// Result counts a tunnel's bytes.
type Result struct {
	Out int64 // client to server
	In  int64 // server to client
}

// Splice moves bytes both ways until both sides have ended, passing on each side's end by itself (half-close). Neither connection is
// wrapped, so bulk data stays in the kernel. It returns when nothing moves any more; closing both connections stays with the caller.
// The error is nil for an orderly end. pace, if it is not nil, is told of every portion that was moved before the next one is, and may wait or end the tunnel.
func (s *Splicer) Splice(client, server *net.TCPConn, idle time.Duration, pace func(int64) error) (Result, error) {
	var r Result
	w := ways{Splicer: s, idle: idle, pace: pace}
	var first error // what ended it; the other direction's error only follows from the breaking
	var once sync.Once
	w.alive = func() bool { return moved(client, idle) || moved(server, idle) }
	way := func(n *int64, dst, src *net.TCPConn) {
		var err error
		if *n, err = w.one(dst, src); err != nil {
			once.Do(func() { first = err })
			Break(dst)
			Break(src)
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() { way(&r.In, client, server) })
	way(&r.Out, server, client)
	wg.Wait()
	return r, first
}

// ways is what both directions of a tunnel have in common.
type ways struct {
	*Splicer
	idle  time.Duration
	alive func() bool
	pace  func(int64) error
}

// one copies src to dst and passes on the end of src.
func (s ways) one(dst, src *net.TCPConn) (int64, error) {
	n, err := s.move(dst, src)
	if err != nil {
		return n, err
	}
	return n, ignoreGone(dst.CloseWrite())
}

func (s ways) move(dst, src *net.TCPConn) (int64, error) {
	raw, err := src.SyscallConn()
	if err != nil {
		return 0, err
	}
	var total int64
	for {
		// The write may start just before the read deadline would fire, hence the double: a write that trips it has made no progress
		// for at least the idle time.
		now := time.Now()
		if err := errors.Join(src.SetReadDeadline(now.Add(s.idle)), dst.SetWriteDeadline(now.Add(2*s.idle))); err != nil {
			return total, err
		}
		n, end, err := s.step(dst, src, raw, total)
		total += n
		if s.pace != nil && n > 0 {
			if stopped := s.pace(n); stopped != nil && err == nil {
				err = stopped
			}
		}
		switch {
		case end:
			return total, nil
		case err == nil:
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return total, err
		case n == 0 && !s.alive():
			return total, ErrIdle
		}
	}
}

// step moves one portion: a buffer's worth at first; later everything until the end or the deadline, or as much as passes before there is a pause.
func (s ways) step(dst, src *net.TCPConn, raw syscall.RawConn, total int64) (n int64, end bool, err error) {
	if total >= copyFirst && s.pace != nil {
		n, err = dst.ReadFrom(&io.LimitedReader{R: src, N: pacedPortion}) // which the kernel moves too
		return n, err == nil && n < pacedPortion, err
	}
	if total >= copyFirst {
		n, err = dst.ReadFrom(src)
		return n, err == nil, err
	}
	buf, got, err := s.chunks.read(raw)
	if buf == nil {
		return 0, false, err
	}
	defer s.chunks.pool.Put(buf)
	switch {
	case err != nil:
		return 0, false, err
	case got == 0:
		return 0, true, nil
	}
	wrote, err := dst.Write((*buf)[:got])
	return int64(wrote), false, err
}

// read waits until the socket has something and only then takes a buffer for it. buf is nil if it ended by deadline or closing.
func (c *chunks) read(raw syscall.RawConn) (buf *[]byte, n int, err error) {
	var errno error
	err = raw.Read(func(fd uintptr) bool {
		if buf == nil {
			buf = c.get()
		}
		for {
			n, errno = unix.Read(int(fd), *buf)
			if errno != unix.EINTR {
				break
			}
		}
		if errno == unix.EAGAIN {
			c.pool.Put(buf)
			buf = nil
			return false
		}
		return true
	})
	if err != nil {
		return nil, 0, err
	}
	if errno != nil {
		n = 0
		errno = fmt.Errorf("read: %w", errno)
	}
	return buf, n, errno
}

// moved says whether the kernel has received or sent data on c within the idle time.
func moved(c *net.TCPConn, idle time.Duration) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	var info *unix.TCPInfo
	var opt error
	if raw.Control(func(fd uintptr) { info, opt = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }) != nil || opt != nil {
		return false
	}
	last := min(info.Last_data_recv, info.Last_data_sent)
	return time.Duration(last)*time.Millisecond < idle
}

// ignoreGone forgives shutting down a connection that the peer has ended already.
func ignoreGone(err error) error {
	if errors.Is(err, unix.ENOTCONN) {
		return nil
	}
	return err
}

// Break closes a connection with a reset, so that the peer knows at once and nothing lingers.
func Break(c *net.TCPConn) {
	if c == nil {
		return
	}
	_ = c.SetLinger(0) // fails only if it is closed already
	_ = c.Close()
}

// Orderly says whether an error of Splice is how connections ordinarily end: by the peer's reset.
func Orderly(err error) bool {
	return err == nil || errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}
