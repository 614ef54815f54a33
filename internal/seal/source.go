package seal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
)

const (
	// maxKeyText bounds what a source may hand over: a key in its longest spelling has 66 bytes.
	maxKeyText = 256
	// commandPatience is how long a command may take: key services behind a network and a login answer in a few seconds.
	commandPatience = 20 * time.Second
)

// Source says where a key-encryption key comes from; exactly one member is set. A key file is ours and holds one key. What the other two hand over is
// the person's to make and to keep.
type Source struct {
	File       string   `json:"file,omitempty"`       // name of a file in the vault's directory
	Credential string   `json:"credential,omitempty"` // name of a systemd credential, in $CREDENTIALS_DIRECTORY
	Command    []string `json:"command,omitempty"`    // a program, by absolute path, and its arguments; it writes the key to its standard output
}

// ParseSource reads a source as typed: "file", "systemd:NAME", or "command:" and an absolute path, followed by arguments.
func ParseSource(text string, args []string) (Source, error) {
	kind, rest, _ := strings.Cut(text, ":")
	var s Source
	switch {
	case text == "" || text == "file":
		if len(args) > 0 {
			return s, fault.New(fault.Invalid, "a key file takes no arguments").WithHint("write: --source command:/path/to/program -- ARGUMENTS")
		}
		return s, nil
	case kind == "systemd" && len(args) == 0:
		s.Credential = rest
	case kind == "command":
		s.Command = append([]string{rest}, args...)
	default:
		return s, fault.New(fault.Invalid, "--source %.60q is none", text).WithHint("write file, systemd:NAME or command:/path/to/program, arguments after --")
	}
	return s, s.check()
}

// String describes the source for people.
func (s Source) String() string {
	switch {
	case s.File != "":
		return "file " + s.File
	case s.Credential != "":
		return "systemd credential " + s.Credential
	case len(s.Command) > 0:
		return "command " + strings.Join(s.Command, " ")
	}
	return "none"
}

func (s Source) check() error {
	set := 0
	for _, is := range []bool{s.File != "", s.Credential != "", len(s.Command) > 0} {
		if is {
			set++
		}
	}
	switch {
	case set != 1:
		return fault.New(fault.Invalid, "a key has one source, not %d", set)
	case s.File != "" && !plainName(s.File):
		return fault.New(fault.Invalid, "%.60q is no name of a key file", s.File)
	case s.Credential != "" && !plainName(s.Credential):
		return fault.New(fault.Invalid, "%.60q is no name of a systemd credential", s.Credential).WithHint("write the name that stands in LoadCredentialEncrypted=, without a path")
	case len(s.Command) > 0 && (!filepath.IsAbs(s.Command[0]) || filepath.Clean(s.Command[0]) != s.Command[0]):
		return fault.New(fault.Invalid, "the key command %.100q is no absolute path", s.Command[0]).WithHint("write it as in --source command:/usr/bin/pass -- show cofferdam")
	}
	return nil
}

// plainName accepts what can only be a file in one directory.
func plainName(s string) bool {
	return s != "" && len(s) <= 100 && s[0] != '.' && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.@") == ""
}

// read fetches the key.
func (s Source) read(ctx context.Context, v *Vault) (Key, error) {
	var data []byte
	var err error
	switch {
	case s.File != "":
		data, err = readPrivate(filepath.Join(v.dir, s.File))
	case s.Credential != "":
		data, err = v.readCredential(s.Credential)
	case len(s.Command) > 0:
		data, err = readCommand(ctx, s.Command)
	default:
		err = fault.New(fault.Invalid, "the key has no source")
	}
	if err != nil {
		return Key{}, err
	}
	return ParseKey(data)
}

// readPrivate reads a file that only this user can read, or stops: a key that others could read or put there is none.
func readPrivate(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fault.New(fault.Unavailable, "the key file %s is gone", path).WithHint("bring it back from where you keep a copy; without it nothing sealed under it can be opened")
	}
	if err != nil {
		return nil, fault.New(fault.Unavailable, "cannot open the key file %s", path).Because(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("look at the key file: %w", err)
	}
	if err := checkPrivate(path, info); err != nil {
		return nil, err
	}
	return readBounded(f, path)
}

// checkPrivate accepts regular files of this user, closed to all others.
func checkPrivate(path string, info os.FileInfo) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.Mode().IsRegular():
		return fault.New(fault.Denied, "%s is not a regular file", path)
	case !ok || int(stat.Uid) != os.Geteuid():
		return fault.New(fault.Denied, "%s belongs to another user", path).WithHint("work as that user, or name another state directory in COFFERDAM_STATE")
	case info.Mode().Perm()&0o077 != 0:
		return fault.New(fault.Denied, "others may read or write %s", path).WithHint("if they may have: rotate the key. Then type: chmod 600 %s", path)
	}
	return nil
}

func readBounded(r io.Reader, name string) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxKeyText+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(data) > maxKeyText {
		clear(data)
		return nil, fault.New(fault.Invalid, "%s is too long for a key", name)
	}
	return data, nil
}

// readCredential reads what systemd has put up for this service. Its directory and modes are systemd's affair.
func (v *Vault) readCredential(name string) ([]byte, error) {
	dir := v.getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return nil, fault.New(fault.Unavailable, "the key is the systemd credential %s, and this process has none: CREDENTIALS_DIRECTORY is not set", name).
			WithHint("start it as a service with LoadCredentialEncrypted=%s, or by: systemd-run -P -p LoadCredentialEncrypted=%s cofferdam ...", name, name)
	}
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return nil, fault.New(fault.Unavailable, "cannot read the systemd credential %s", name).Because(err)
	}
	defer f.Close()
	return readBounded(f, "the systemd credential "+name)
}

// readCommand runs the command without a shell. What it writes to the standard error is dropped: nobody knows whether the key is in it.
func readCommand(ctx context.Context, argv []string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, commandPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // what it starts ends with it
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second
	out := &capped{}
	cmd.Stdout = out
	if err := cmd.Run(); err != nil {
		clear(out.data)
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fault.New(fault.Unavailable, "the key command %s did not hand over a key", argv[0]).Because(err).WithHint("try it by hand")
	}
	if len(out.data) > maxKeyText {
		clear(out.data)
		return nil, fault.New(fault.Invalid, "the output of the key command %s is too long for a key", argv[0])
	}
	return out.data, nil
}

// capped keeps the beginning of what is written to it, enough to see that it is too long.
type capped struct{ data []byte }

func (c *capped) Write(p []byte) (int, error) {
	c.data = append(c.data, p[:min(len(p), maxKeyText+1-len(c.data))]...)
	return len(p), nil
}

// sameSource reports whether two sources are one.
func sameSource(a, b Source) bool {
	return a.File == b.File && a.Credential == b.Credential && strings.Join(a.Command, "\x00") == strings.Join(b.Command, "\x00")
}
