// Package files (SANDBOX) is the file service inside a sandbox: it lists, reads and writes for an owner outside, as an ordinary command among others.
//
// Its paths are looked up where the command runs, so what a name inside means (a link, a mount, a process's root) can lead nowhere that a program inside could
// not go itself. Nothing that it prints is to be trusted by whoever asked.
package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"syscall"

	"github.com/cofferdam/cofferdam/internal/frame"
)

// The exit statuses.
const (
	statusError  = 1
	statusAbsent = 3 // there is nothing with that name
)

// Usage says how the service is called.
const Usage = "file list PATH | stat PATH | read [--tar] PATH [OFFSET [LENGTH]] | write [-p] [--tar] PATH [MODE]; -- ends the options"

// Run does what args say, the word "file" left out, and returns the exit status. An error is one line on complaints. When ctx ends, nothing is left of a file
// that was being written; the reading from in may then go on, so that the caller should end.
func Run(ctx context.Context, args []string, in io.Reader, out, complaints io.Writer) int {
	err := run(ctx, args, in, out)
	if err == nil {
		return 0
	}
	fmt.Fprintln(complaints, frame.Inert(err.Error(), 1000)) // names inside may hold line ends
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return statusAbsent
	}
	return statusError
}

// request is a parsed command line.
type request struct {
	verb    string
	tar     bool
	parents bool
	path    string
	numbers []string // what follows the path
}

func run(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	r, err := parse(args)
	if err != nil {
		return err
	}
	switch r.verb {
	case "list":
		return list(out, r.path)
	case "stat":
		return stat(out, r.path)
	case "read":
		return read(out, r)
	default:
		return write(ctx, in, r)
	}
}

func parse(args []string) (request, error) {
	usage := errors.New("usage: " + Usage)
	if len(args) < 2 {
		return request{}, usage
	}
	r := request{verb: args[0]}
	most, ok := map[string]int{"list": 0, "stat": 0, "read": 2, "write": 1}[r.verb] // arguments behind the path
	if !ok {
		return request{}, usage
	}
	args = args[1:]
options:
	for len(args) > 0 {
		switch word := args[0]; {
		case word == "--":
			args = args[1:]
			break options
		case word == "--tar" && (r.verb == "read" || r.verb == "write"):
			r.tar = true
		case word == "-p" && r.verb == "write":
			r.parents = true
		case len(word) > 0 && word[0] == '-':
			return request{}, usage
		default:
			break options
		}
		args = args[1:]
	}
	if r.tar {
		most = 0
	}
	if len(args) == 0 || args[0] == "" || len(args)-1 > most {
		return request{}, usage
	}
	r.path, r.numbers = args[0], args[1:]
	return r, nil
}

// read sends a file, a part of it, or with tar what a directory holds.
func read(out io.Writer, r request) error {
	if r.tar {
		return pack(out, r.path)
	}
	offset, length := int64(0), int64(-1)
	for i, to := range []*int64{&offset, &length}[:len(r.numbers)] {
		n, err := strconv.ParseInt(r.numbers[i], 10, 64)
		if err != nil || n < 0 {
			return fmt.Errorf("%q is not a number of bytes", r.numbers[i])
		}
		*to = n
	}
	f, err := openRegular(r.path)
	if err != nil {
		return err
	}
	defer f.Close() // opened for reading
	if offset > 0 {
		if _, err := f.Seek(offset, io.SeekStart); err != nil {
			return err
		}
	}
	var from io.Reader = f
	if length >= 0 {
		from = io.LimitReader(f, length)
	}
	_, err = io.Copy(out, from)
	return err
}

// openRegular opens a file whose reading ends: no pipe, device or directory, whichever of these is put in its place meanwhile.
func openRegular(path string) (*os.File, error) {
	if err := regular(os.Stat(path)); err != nil { // opening a pipe or a device can do something by itself
		return nil, named(path, err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	if err := regular(f.Stat()); err != nil {
		_ = f.Close() // not read
		return nil, named(path, err)
	}
	return f, nil
}

func regular(fi fs.FileInfo, err error) error {
	switch {
	case err != nil:
		return err
	case fi.IsDir():
		return errors.New("is a directory")
	case !fi.Mode().IsRegular():
		return errors.New("is not a regular file")
	}
	return nil
}

// named puts the path before an error that does not name it yet.
func named(path string, err error) error {
	if _, ok := errors.AsType[*fs.PathError](err); ok {
		return err
	}
	return fmt.Errorf("%s: %w", path, err)
}
