package pool

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
)

// request is what is asked of a pool; exactly one member is set.
type request struct {
	Claim  *claim `json:"claim,omitempty"`
	Status bool   `json:"status,omitempty"`
	Stop   bool   `json:"stop,omitempty"`
}

type claim struct {
	Surroundings string `json:"surroundings"`
}

// reply answers it. With Claimed come the connection and the process.
type reply struct {
	Claimed *claimed `json:"claimed,omitempty"`
	Status  *Status  `json:"status,omitempty"`
	None    string   `json:"none,omitempty"` // why there is no sandbox for this claim
}

type claimed struct {
	Name    ident.Run `json:"name"`
	UIDBase uint32    `json:"uid_base"`
}

// Status is what a pool says about itself.
type Status struct {
	Key
	PID     int           `json:"pid"`
	Size    int           `json:"size"`
	TTL     time.Duration `json:"ttl"`
	Ready   int           `json:"ready"` // wait now
	Claimed int           `json:"claimed"`
	Missed  int           `json:"missed"` // claims that got none
	Failed  int           `json:"failed"` // could not be started, or died while they waited
	Trouble string        `json:"trouble,omitempty"`
	Since   time.Time     `json:"since"`
	// Surroundings are those of its process: others get no sandbox.
	Surroundings string `json:"surroundings"`
}

// maxMessage bounds a message. A sequenced-packet socket keeps boundaries, so that neither side parses a stream.
const maxMessage = 4 << 10

// files is how many descriptors come with a claimed sandbox.
const files = 2

// How long one exchange may take: microseconds, on a machine under heavy load more. A claimer can start a sandbox himself instead; who asks or tells waits.
const (
	claimPatience = 2 * time.Second
	talkPatience  = 20 * time.Second
)

func send(conn *net.UnixConn, message any, oob []byte) error {
	data, err := json.Marshal(message)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if len(data) > maxMessage {
		return fmt.Errorf("message of %d bytes is over %d", len(data), maxMessage)
	}
	_, _, err = conn.WriteMsgUnix(data, oob, nil)
	return err
}

// receive reads one message, strictly, and the descriptors with it, which the caller owns.
func receive(conn *net.UnixConn, message any) ([]*os.File, error) {
	data, oob := make([]byte, maxMessage+1), make([]byte, unix.CmsgSpace(files*4))
	n, oobn, flags, _, err := conn.ReadMsgUnix(data, oob)
	if err != nil {
		return nil, err
	}
	var got []*os.File
	controls, err := unix.ParseSocketControlMessage(oob[:oobn])
	for _, c := range controls {
		fds, _ := unix.ParseUnixRights(&c) // what is no descriptor is not counted
		for _, fd := range fds {
			got = append(got, os.NewFile(uintptr(fd), "passed"))
		}
	}
	if err == nil && (n > maxMessage || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0) {
		err = errors.New("message too long")
	}
	if err == nil {
		decoder := json.NewDecoder(bytes.NewReader(data[:n]))
		decoder.DisallowUnknownFields()
		err = decoder.Decode(message)
	}
	if err != nil {
		closeAll(got)
		return nil, fmt.Errorf("receive: %w", err)
	}
	return got, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // nothing was written
	}
}

// ask makes one exchange with a pool.
func ask(ctx context.Context, state string, k Key, r request) (reply, []*os.File, error) {
	var conn net.Conn
	err := at(state, k, func(name string) (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, "unixpacket", name)
		return err
	})
	if err != nil {
		return reply{}, nil, err
	}
	defer conn.Close()
	patience := talkPatience
	if r.Claim != nil {
		patience = claimPatience
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return reply{}, nil, err
	}
	to := conn.(*net.UnixConn) // that is what this network's connections are
	if err := send(to, r, nil); err != nil {
		return reply{}, nil, err
	}
	var answer reply
	got, err := receive(to, &answer)
	return answer, got, err
}

// absent says whether a failed exchange means that there is no pool.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

// Claimed is a sandbox that a pool gave away. Its files are the caller's; with the last hold of the connection the sandbox ends.
type Claimed struct {
	// Name is what its control group and its mark are named after.
	Name ident.Run
	// UIDBase is the first of the host ids that are mapped in it.
	UIDBase             uint32
	Connection, Process *os.File
}

// Take claims a sandbox. programs are those by which the caller would make one. The error says why there is none: a claimer starts one himself then, as strong.
func Take(ctx context.Context, state string, k Key, programs ...string) (*Claimed, error) {
	if _, err := os.Lstat(socketPath(state, k)); err != nil {
		return nil, err // the common case costs nothing
	}
	surroundings, err := Surroundings(programs...)
	if err != nil {
		return nil, err
	}
	answer, got, err := ask(ctx, state, k, request{Claim: &claim{Surroundings: surroundings}})
	if err != nil {
		return nil, err
	}
	if answer.Claimed == nil || len(got) != files {
		closeAll(got)
		return nil, fmt.Errorf("the pool gave none: %s", answer.None)
	}
	return &Claimed{Name: answer.Claimed.Name, UIDBase: answer.Claimed.UIDBase, Connection: got[0], Process: got[1]}, nil
}

// Ask returns what a pool says about itself. One that is not there is NotFound.
func Ask(ctx context.Context, state string, k Key) (Status, error) {
	answer, got, err := ask(ctx, state, k, request{Status: true})
	closeAll(got)
	switch {
	case err != nil && absent(err):
		return Status{}, fault.New(fault.NotFound, "there is no pool of level %s", k.Level).WithHint("start one with: cofferdam pool start")
	case err != nil:
		return Status{}, fmt.Errorf("ask the pool: %w", err)
	case answer.Status == nil:
		return Status{}, errors.New("the pool sent an unexpected reply")
	}
	return *answer.Status, nil
}

// Stop ends a pool, and returns when nothing of it is left that nobody had claimed.
func Stop(ctx context.Context, state string, k Key) error {
	_, got, err := ask(ctx, state, k, request{Stop: true})
	closeAll(got)
	if err != nil && !absent(err) {
		return fmt.Errorf("tell the pool to end: %w", err)
	}
	for {
		lock, err := hold(lockPath(state, k))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if lock != nil || err != nil { // whatever it left under its names, it is not there any more
			return errors.Join(removeIfThere(socketPath(state, k)), removeIfThere(lockPath(state, k)), closeLock(lock))
		}
		select {
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "the pool of level %s does not end", k.Level).WithHint("see %s", LogPath(state, k)).Because(context.Cause(ctx))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func closeLock(lock *os.File) error {
	if lock == nil {
		return nil
	}
	return lock.Close()
}

func removeIfThere(name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
