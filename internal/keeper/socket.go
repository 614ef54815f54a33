package keeper

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/sandbox"
)

// socketDir is where keepers listen; only their user may enter.
func socketDir(state string) string { return filepath.Join(state, "keepers") }

// SocketPath is where the keeper of a run listens.
func SocketPath(state string, run ident.Run) string {
	return filepath.Join(socketDir(state), run.String()+".sock")
}

// at calls do with a name for the socket of a run that fits into a socket's address, which holds only 107 bytes: the directory is named by its descriptor.
func at(state string, run ident.Run, do func(name string) error) error {
	dir, err := os.OpenFile(socketDir(state), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer dir.Close()
	return do("/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + run.String() + ".sock")
}

// Listen makes the socket of a keeper. The file outlives the keeper, which has no right to remove it once it is confined: Dial and Sweep do, for the service.
func Listen(state string, run ident.Run) (*net.UnixListener, error) {
	dir := socketDir(state)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.New(fault.Unavailable, "cannot make %s", dir).Because(err)
	}
	var s unix.Stat_t
	if err := unix.Lstat(dir, &s); err != nil || s.Mode&unix.S_IFMT != unix.S_IFDIR || int(s.Uid) != os.Geteuid() || s.Mode&0o077 != 0 {
		return nil, fault.New(fault.Denied, "others can enter the directory %s", dir).WithHint("type: chmod 700 %s", dir).Because(err)
	}
	var l *net.UnixListener
	err := at(state, run, func(name string) (err error) {
		l, err = net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
		return err
	})
	if err != nil {
		return nil, fault.New(fault.Unavailable, "cannot listen at %s", SocketPath(state, run)).Because(err)
	}
	l.SetUnlinkOnClose(false) // see above
	return l, nil
}

// connect dials the keeper of a run.
func connect(ctx context.Context, state string, run ident.Run) (conn net.Conn, err error) {
	err = at(state, run, func(name string) error {
		conn, err = new(net.Dialer).DialContext(ctx, "unix", name)
		return err
	})
	return conn, err
}

// absent says whether a failed dial means that there is no keeper.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

// Sweep removes the sockets of keepers that are gone.
func Sweep(state string) error {
	entries, err := os.ReadDir(socketDir(state))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list keepers: %w", err)
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".sock")
		if run, err := ident.ParseRun(name); ok && err == nil {
			sweep(state, run)
		}
	}
	return nil
}

// sweep removes the socket of a run that does not live. A run's lock is taken before it listens, and its name is never used again.
func sweep(state string, run ident.Run) {
	store, err := sandbox.OpenStore(state)
	if err == nil && !store.IsLive(run) {
		_ = os.Remove(SocketPath(state, run)) // somebody else may have
	}
}
