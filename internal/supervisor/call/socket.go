package call

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// maxMessage bounds a message. A sequenced-packet socket keeps boundaries, so that neither side parses a stream.
const maxMessage = 128 << 10

// maxFiles bounds the descriptors that come with a message: a sandbox has one for each of its trees. The kernel takes 253 (SCM_MAX_FD).
const maxFiles = 128

// Conn is one end of the socket. Send and Receive may each be used by one goroutine at a time.
type Conn struct {
	file *os.File
	send sync.Mutex
}

// NewConn takes over a connected AF_UNIX SOCK_SEQPACKET socket.
func NewConn(file *os.File) *Conn { return &Conn{file: file} }

// Close closes the socket; the other side reads io.EOF.
func (c *Conn) Close() error { return c.file.Close() }

// Deaf ends what the other side can send: Receive returns what was sent before, and then io.EOF. What this side sends still arrives.
func (c *Conn) Deaf() {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return // it is closed
	}
	_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RD) }) // fails where the other side is gone, whom nobody hears either
}

// Pair makes two connected sockets. Both close on exec.
func Pair() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "call"), os.NewFile(uintptr(fds[1]), "call"), nil
}

// Peer returns the user and process at the other end, as the kernel knew them when the socket was made.
func (c *Conn) Peer() (unix.Ucred, error) {
	var cred unix.Ucred
	err := c.control(func(fd int) (bool, error) {
		got, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err == nil {
			cred = *got
		}
		return true, err
	})
	return cred, err
}

// Send writes one message with descriptors. It does not close them.
func (c *Conn) Send(message any, files ...*os.File) error {
	data, err := json.Marshal(message)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if len(data) > maxMessage {
		return fmt.Errorf("message of %d bytes is over %d", len(data), maxMessage)
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	c.send.Lock()
	defer c.send.Unlock()
	return c.control(func(fd int) (bool, error) {
		err := unix.Sendmsg(fd, data, rights, nil, unix.MSG_NOSIGNAL)
		if errors.Is(err, unix.EAGAIN) {
			return false, nil
		}
		return true, err
	}, true)
}

// Receive reads one message into message, strictly: an unknown member is an error. The caller owns the descriptors.
func (c *Conn) Receive(message any) ([]*os.File, error) {
	data := make([]byte, maxMessage+1)
	oob := make([]byte, unix.CmsgSpace(maxFiles*4))
	var n, oobn, flags int
	err := c.control(func(fd int) (bool, error) {
		var err error
		n, oobn, flags, _, err = unix.Recvmsg(fd, data, oob, unix.MSG_CMSG_CLOEXEC)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			return false, nil
		}
		return true, err
	})
	if err != nil {
		return nil, fmt.Errorf("receive: %w", err)
	}
	files, err := parseFiles(oob[:oobn])
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, io.EOF
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || n > maxMessage {
		closeAll(files)
		return nil, errors.New("message too long")
	}
	decoder := json.NewDecoder(bytes.NewReader(data[:n]))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(message); err != nil {
		closeAll(files)
		return nil, fmt.Errorf("decode message: %w", err)
	}
	return files, nil
}

func parseFiles(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse descriptors: %w", err)
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			closeAll(files)
			return nil, fmt.Errorf("parse descriptors: %w", err)
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // never used
	}
}

// control runs a system call on the socket, waiting for readiness through the runtime's poller, so that Close ends a waiting call.
func (c *Conn) control(do func(fd int) (done bool, err error), write ...bool) error {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	step := func(fd uintptr) bool {
		var done bool
		done, inner = do(int(fd))
		return done
	}
	if len(write) > 0 {
		err = raw.Write(step)
	} else {
		err = raw.Read(step)
	}
	return errors.Join(err, inner)
}
