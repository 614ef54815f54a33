package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// openSQLite opens one connection that writes and several that read.
func openSQLite(path string) (*database, error) {
	if path == "" {
		return nil, fault.New(fault.Invalid, "the database has no path").WithHint("write sqlite:PATH")
	}
	if err := private(path); err != nil {
		return nil, fault.New(fault.Unavailable, "the database cannot be opened").Because(err)
	}
	writer, err := sql.Open("sqlite", sqliteName(path, "-65536")+"&_txlock=immediate&_pragma="+url.QueryEscape("journal_mode(WAL)"))
	if err != nil {
		return nil, fault.New(fault.Unavailable, "the database cannot be opened").Because(err)
	}
	writer.SetMaxOpenConns(1)
	reader, err := sql.Open("sqlite", sqliteName(path, "-16384")+"&_pragma="+url.QueryEscape("query_only(1)"))
	if err != nil {
		return nil, errors.Join(fault.New(fault.Unavailable, "the database cannot be opened").Because(err), writer.Close())
	}
	readers := max(4, 2*runtime.GOMAXPROCS(0))
	reader.SetMaxOpenConns(readers)
	reader.SetMaxIdleConns(readers)
	return &database{dialect: sqliteDialect(), writer: writer, reader: reader, gate: make(chan struct{}, 1), lock: path + "-lock"}, nil
}

// private makes the file, or takes it away from others; SQLite gives its other files (-wal, -shm) the mode of this one. A file that is there is not
// opened: to close it would take the locks from this process that SQLite holds where it is open already.
func private(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return os.Chmod(path, 0o600)
	}
	if err != nil {
		return err
	}
	return file.Close()
}

// holdLock waits until no other process has the lock file, so that two that start at once do not both change the schema. It goes with its process.
func holdLock(ctx context.Context, path string) (release func(), err error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(patience)
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = file.Close() }, nil // closing gives it back
		}
		if ctx.Err() != nil || time.Now().After(deadline) || !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), ctx.Err(), file.Close())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// sqliteName is the name of a database and what every connection to it sets. synchronous=FULL: what was acknowledged, an approval or a grant, is there
// after the power failed; with NORMAL a write-ahead log may lose the last of them. One commit of a thousand audit rows makes that cheap where it counts.
func sqliteName(path, cache string) string {
	escaped := strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23").Replace(path)
	q := url.Values{"_busy_timeout": {"10000"}, "_defensive": {"1"}, "_pragma": {
		"synchronous(FULL)", "foreign_keys(1)", "trusted_schema(0)", "temp_store(MEMORY)", "cache_size(" + cache + ")", "journal_size_limit(67108864)",
	}}
	return "file:" + escaped + "?" + q.Encode()
}
