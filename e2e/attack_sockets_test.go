package e2e

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// seenPlace is where a program of the machine may listen and a sandbox sees it.
type seenPlace struct {
	number int
	where  string
	flags  func(h *house) []string
	system string // a system directory, instead of the project
	below  bool   // with another file system mounted below it
	direct func(u as) bool
}

func seenPlaces() []seenPlace {
	workspace := func(mode string) func(*house) []string {
		return func(*house) []string { return []string{"--workspace", ".:" + mode} }
	}
	mount := func(mode string) func(*house) []string {
		return func(h *house) []string {
			return []string{"--workspace", "none", "--mount", h.project + ":" + h.project + mode}
		}
	}
	plain := func(*house) []string { return nil }
	never, always := func(as) bool { return false }, func(as) bool { return true }
	// An ordinary user may lay no overlay over a directory with other file systems mounted below it.
	ordinary := func(u as) bool { return u.uid != 0 }
	return []seenPlace{
		{0, "the workspace (overlay)", workspace("overlay"), "", false, never},
		{1, "the workspace (ro)", workspace("ro"), "", false, never},
		{2, "a folder shown by --mount", mount(""), "", false, never},
		{3, "a system directory", plain, "/opt", false, never},
		{4, "the workspace (rw)", workspace("rw"), "", false, always},
		{6, "a folder shown by --mount (rw)", mount(":rw"), "", false, always},
		{7, "the workspace (ro), with a file system mounted below it", workspace("ro"), "", true, ordinary},
		{8, "a system directory, with a file system mounted below it", plain, "/var/lib", true, ordinary},
	}
}

// How a socket was bound.
const (
	byPath     = "by its path"
	byRelative = "by a relative name"
	later      = "after the start"
	elsewhere  = "in another network namespace"
)

// noSuchFamily is what the filter answers to programs that see a folder of the host's itself.
const noSuchFamily = "address family not supported"

// keepSockets is the way to do without that filter, which shows that it was the one to refuse.
func keepSockets() []string { return []string{"--best-effort", "unix-sockets"} }

// socketScenes connect to sockets and pipes that programs of the machine have in folders which the sandbox sees.
func socketScenes() (all []scene) {
	for _, p := range seenPlaces() {
		for j, how := range []string{byPath, byRelative, later, elsewhere} {
			all = append(all, scene{fmt.Sprintf("E25-%d%d", p.number, j), "a program's socket in " + p.where + ", bound " + how, func(_ *testing.T, s *suite, h *house) outcome {
				return folderSocket(s, h, p, how)
			}})
		}
	}
	all = append(all, scene{"E25-50", "a program's pipe in a folder shown by --mount", folderPipe})
	for i, v := range socketVariants() {
		all = append(all, scene{fmt.Sprintf("E25-9%c", 'a'+i), "the workspace (rw): " + v.what, func(_ *testing.T, _ *suite, h *house) outcome { return v.play(h) }})
	}
	return append(all,
		scene{"E25-9y", "the workspace (rw): listen there in place of a program that the machine's programs call", placeTaken},
		scene{"E25-9z", "local sockets inherited from the caller", inheritedSockets},
	)
}

// folderSocket listens on a socket outside and connects from inside. The control is the same from outside and, where only the filter refuses, inside without it.
func folderSocket(s *suite, h *house, p seenPlace, how string) outcome {
	ended, reached, err := s.callFromInside(h, p, how, nil)
	switch {
	case err != nil:
		return outcome{unknown, err.Error()}
	case reached:
		return outcome{open, "the program outside was reached: " + lastLine(ended.output)}
	case !p.direct(h.as) || h.as.level == "gvisor": // whose sockets are its own, whatever folder they lie in
		return ended.verdict("refused|no such file|permission denied")
	}
	o := ended.verdict(noSuchFamily)
	if o.finding == blocked && how != byPath { // what the kernel lists is covered as well
		if ended, reached, err := s.callFromInside(h, p, how, keepSockets()); err != nil || !reached {
			return outcome{unknown, fmt.Sprintf("it is not reached without the filter either: %v %s", err, lastLine(ended.output))}
		}
	}
	return o
}

// callFromInside makes a new socket outside, runs the attacking program inside, and says whether it came through.
func (s *suite) callFromInside(h *house, p seenPlace, how string, more []string) (ended ran, reached bool, err error) {
	dir := cmp.Or(p.system, h.project)
	path := filepath.Join(dir, fmt.Sprintf("attack-%d.sock", time.Now().UnixNano()))
	called := make(chan bool, 1)
	serve := func() error { return listenAt(h, path, how, called) }
	if how != later {
		if err := serve(); err != nil {
			return ended, false, err
		}
	}
	wait := "until [ -e " + path + " ] || [ $((i=i+1)) -gt 100 ]; do sleep 0.05; done; sleep 0.1; "
	if how == later {
		timer := time.AfterFunc(300*time.Millisecond, func() { _ = serve() }) // its failure shows as an attack that could not be made
		defer timer.Stop()
	}
	args := slices.Concat([]string{"run", "-q"}, p.flags(h), more, []string{"--", "sh", "-c", wait + h.helper() + " unix " + path})
	var r result
	switch {
	case p.below:
		r, err = h.withMountBelow(dir, how == elsewhere, args...)
	case how == elsewhere:
		r = s.world.do(h, time.Minute, args...) // the socket's program is not in the world
	default:
		r = h.do(args...)
	}
	if err != nil {
		return ended, false, err
	}
	ended = ran{r.code, r.stdout + r.stderr}
	select {
	case <-called:
		return ended, true, nil
	default:
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		return ended, false, fmt.Errorf("the socket does not work outside either: %w", err)
	}
	return ended, false, c.Close()
}

// withMountBelow runs one of cofferdam's commands on a machine on which another file system is mounted below dir, and if asked in a network namespace of its own.
func (h *house) withMountBelow(dir string, apart bool, args ...string) (result, error) {
	below, err := os.MkdirTemp(dir, "below-")
	if err != nil {
		return result{}, err
	}
	defer os.Remove(below) // empty: the mount was seen by the command only
	ctx, cancel := context.WithTimeout(h.t.Context(), h.as.patience(time.Minute))
	defer cancel()
	cmd := h.command(ctx, args...)
	id := strconv.Itoa(int(h.as.uid))
	line := []string{"unshare", "--mount", "--propagation", "private"}
	if apart {
		line = append(line, "--net")
	}
	line = append(line, "sh", "-c", `mount -t tmpfs below "$0" && exec setpriv --reuid `+id+` --regid `+id+` --clear-groups "$@"`, below, cmd.Path)
	outer := exec.CommandContext(ctx, line[0], append(line[1:], args...)...)
	outer.Dir, outer.Env = cmd.Dir, cmd.Env
	var out, errs strings.Builder
	outer.Stdout, outer.Stderr = &out, &errs
	if err := outer.Run(); outer.ProcessState == nil || ctx.Err() != nil {
		return result{}, fmt.Errorf("%v: %w", line, err)
	}
	return result{stdout: out.String(), stderr: errs.String(), code: outer.ProcessState.ExitCode()}, nil
}

// listenAt makes a socket that everybody may connect to, and tells who did. It ends with the test.
func listenAt(h *house, path, how string, reached chan<- bool) error {
	name := path
	if how == byRelative { // the kernel's list of sockets has the name as it was given
		name = filepath.Base(path)
	}
	var l net.Listener
	err := inFolder(filepath.Dir(path), func() (err error) {
		l, err = net.Listen("unix", name)
		return err
	})
	if err != nil {
		return err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	h.t.Cleanup(func() { _, _ = l.Close(), os.Remove(path) }) // the scene is over
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			select {
			case reached <- true:
			default:
			}
			_, _ = c.Write([]byte("host secret\n")) // who listens tells
			_ = c.Close()
		}
	}()
	return os.Chmod(path, 0o777)
}

// variant is one more way to reach a program that listens in a folder shared for writing.
type variant struct {
	what    string
	listens string   // the type of the program's socket: stream, packets or datagrams
	args    []string // of the attacking program; PATH stands for the socket's name
	refused string
	works   bool // outside, and inside without the filter
}

func socketVariants() (all []variant) {
	const stays, own = "already connected|invalid argument", "its own other end got it|broken pipe"
	reach := func(listens, refused string, works bool, args ...string) {
		all = append(all, variant{strings.TrimSuffix(strings.Join(args, " "), " PATH"), listens, args, refused, works})
	}
	reach("datagrams", noSuchFamily, true, "local", "datagrams", "sendto", "PATH")
	reach("datagrams", noSuchFamily, true, "local", "datagrams", "connect", "PATH")
	reach("datagrams", noSuchFamily, true, "local", "raw", "sendmsg", "PATH")
	reach("packets", noSuchFamily, true, "local", "packets", "connect", "PATH")
	for _, kind := range []string{"datagrams", "raw"} {
		reach("datagrams", noSuchFamily, true, "pair", kind, "open", "sendto", "PATH")
		reach("datagrams", noSuchFamily, true, "pair", kind, "open", "connect", "PATH")
		reach("datagrams", noSuchFamily, true, "pair", kind, "closed", "sendmsg", "PATH")
	}
	reach("datagrams", noSuchFamily, true, "pair", "datagrams", "open", "undo", "PATH")
	for _, state := range []string{"open", "closed", "shut"} {
		reach("stream", stays, false, "pair", "stream", state, "connect", "PATH")
		reach("packets", stays, false, "pair", "packets", state, "connect", "PATH")
	}
	reach("stream", stays, false, "pair", "stream", "closed", "sendto", "PATH")
	reach("stream", stays, false, "pair", "stream", "closed", "undo", "PATH")
	reach("datagrams", own, false, "pair", "packets", "open", "sendto", "PATH")
	reach("datagrams", own, false, "pair", "packets", "closed", "sendmsg", "PATH")
	reach("stream", noSuchFamily, false, "local", "stream", "connect", "@PATH")
	return all
}

// play tries the way inside, and then, for what it would do if nothing refused it, outside and without the filter.
func (v variant) play(h *house) outcome {
	path := filepath.Join(h.project, "v.sock")
	name := strings.Replace(path, h.project, ".", 1) // the kernel's list shows it as it was bound: nothing covers it
	abstract := slices.Contains(v.args, "@PATH")
	if abstract {
		path = fmt.Sprintf("@cofferdam-attack-%d", time.Now().UnixNano())
		name = path
	}
	arrived, err := listenKind(h, v.listens, name)
	if err != nil {
		return outcome{unknown, err.Error()}
	}
	args := slices.Clone(v.args)
	args[len(args)-1] = path
	attempt := func(more ...string) ran {
		return h.attempt(append([]string{"--workspace", ".:rw"}, more...), args...)
	}
	r := attempt()
	if arrived() {
		return outcome{open, "the program outside was reached: " + lastLine(r.output)}
	}
	o := r.verdict(v.refused)
	if o.finding != blocked {
		return o
	}
	plain := args // outside, the program can be reached in the plain way of its type, and in this way if it works at all
	if !v.works && !abstract {
		way := map[string]string{"stream": "connect", "packets": "connect", "datagrams": "sendto"}[v.listens]
		plain = []string{"local", v.listens, way, path}
	}
	if out, err := h.tool(h.t.Context(), h.project, h.helper(), plain...).CombinedOutput(); err != nil || !arrived() {
		return outcome{unknown, fmt.Sprintf("the program cannot be reached from outside either: %v %s", err, lastLine(string(out)))}
	}
	if v.works {
		if r := attempt(keepSockets()...); r.code != 0 || !arrived() {
			return outcome{unknown, "it is not reached without the filter either: " + lastLine(r.output)}
		}
	}
	return o
}

// attempt runs the attacking program alone in a sandbox beside the machine's own programs, not in the world.
func (h *house) attempt(flags []string, args ...string) ran {
	h.t.Helper()
	r := h.do(slices.Concat([]string{"run", "-q"}, flags, []string{"--", h.helper()}, args)...)
	return ran{r.code, r.stdout + r.stderr}
}

// listenKind binds a socket of a type at a name relative to the project. The returned function says whether something has come to it since it was last asked.
func listenKind(h *house, kind, name string) (arrived func() bool, err error) {
	number := map[string]int{"stream": unix.SOCK_STREAM, "packets": unix.SOCK_SEQPACKET, "datagrams": unix.SOCK_DGRAM}[kind]
	fd, err := unix.Socket(unix.AF_UNIX, number|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	h.t.Cleanup(func() { _ = unix.Close(fd) }) // the scene is over
	err = inFolder(h.project, func() error {
		if err := unix.Bind(fd, &unix.SockaddrUnix{Name: name}); err != nil {
			return err
		}
		if !strings.HasPrefix(name, "@") {
			return os.Chmod(name, 0o777)
		}
		return nil
	})
	if err == nil && kind != "datagrams" {
		err = unix.Listen(fd, 16)
	}
	return func() bool {
		took := false
		for {
			if kind == "datagrams" {
				_, _, err = unix.Recvfrom(fd, make([]byte, 100), 0)
			} else {
				var c int
				if c, _, err = unix.Accept(fd); err == nil {
					_, _ = unix.Write(c, []byte("host secret\n")) // who listens tells
					_ = unix.Close(c)
				}
			}
			if err != nil {
				return took
			}
			took = true
		}
	}, err
}

// inFolder does something in another current folder, as a program does that first changes to its directory.
func inFolder(dir string, do func() error) error {
	back, err := os.Getwd()
	if err != nil {
		return err
	}
	if err := os.Chdir(dir); err != nil {
		return err
	}
	defer os.Chdir(back) //nolint:errcheck // the next test fails
	return do()
}

// placeTaken has a program inside listen in the shared folder, and one outside call there.
func placeTaken(_ *testing.T, _ *suite, h *house) outcome {
	listen := func(name string, more ...string) (ran, string) {
		path := filepath.Join(h.project, name)
		answers := make(chan string, 1)
		go func() {
			for range 60 {
				time.Sleep(50 * time.Millisecond)
				if c, err := net.Dial("unix", path); err == nil {
					buf := make([]byte, 100)
					_ = c.SetReadDeadline(time.Now().Add(time.Second)) // a local socket takes one
					n, _ := c.Read(buf)
					_ = c.Close()
					answers <- string(buf[:n])
					return
				}
			}
			answers <- ""
		}()
		r := h.attempt(append([]string{"--workspace", ".:rw"}, more...), "listen", path)
		return r, <-answers
	}
	r, answer := listen("taken.sock")
	if answer != "" {
		return outcome{open, "a program outside heard: " + lastLine(answer)}
	}
	o := r.verdict(noSuchFamily)
	if o.finding != blocked {
		return o
	}
	if r, answer := listen("kept.sock", keepSockets()...); r.code != 0 || !strings.Contains(answer, "from inside") {
		return outcome{unknown, fmt.Sprintf("without the filter nothing is heard either: %q %s", answer, lastLine(r.output))}
	}
	return o
}

// inheritedSockets starts cofferdam with local sockets as its streams and beyond, as a service manager would.
func inheritedSockets(_ *testing.T, _ *suite, h *house) outcome {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return outcome{unknown, err.Error()}
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer ours.Close()
	defer theirs.Close()
	ctx, cancel := context.WithTimeout(h.t.Context(), h.as.patience(time.Minute))
	defer cancel()
	try := func(cmd *exec.Cmd) ran {
		var out strings.Builder
		cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = theirs, &out, &out, []*os.File{theirs, theirs}
		_ = cmd.Run() // the status tells
		if cmd.ProcessState == nil {
			return ran{3, "not started"}
		}
		return ran{cmd.ProcessState.ExitCode(), out.String()}
	}
	if r := try(h.tool(ctx, h.project, h.helper(), "inherited")); r.code != 0 {
		return outcome{unknown, "the program does not find them outside either: " + lastLine(r.output)}
	}
	workspace := ".:rw"
	if !h.as.able().shares {
		workspace = "."
	}
	go func() {
		time.Sleep(h.as.patience(2 * time.Second))
		_ = ours.Close() // the end of input
	}()
	return try(h.command(ctx, "run", "-q", "--workspace", workspace, "--", h.helper(), "inherited")).verdict("no open file is a local socket")
}

// folderPipe writes into a pipe that a program outside reads.
func folderPipe(_ *testing.T, s *suite, h *house) outcome {
	path := filepath.Join(h.project, "pipe")
	if err := unix.Mkfifo(path, 0o666); err != nil {
		return outcome{unknown, err.Error()}
	}
	h.own(h.project)
	if err := os.Chmod(path, 0o666); err != nil {
		return outcome{unknown, err.Error()}
	}
	pipe, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return outcome{unknown, err.Error()}
	}
	defer pipe.Close()
	r, _ := s.attempt(h, []string{"--mount", h.project, "--workspace", "none"}, "fifo", path)
	buf := make([]byte, 100)
	_ = pipe.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) // a pipe that cannot wait answers at once
	if n, _ := pipe.Read(buf); n > 0 {
		return outcome{open, "the program outside read " + string(buf[:n])}
	}
	return r.verdict("no such device|no such file|permission denied|not permitted")
}
