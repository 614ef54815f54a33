package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/term"

	"github.com/cofferdam/cofferdam/internal/confine"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/gateway"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
	"github.com/cofferdam/cofferdam/internal/workspace"
)

// addWorkspace puts the folder into the specification.
func (e *execution) addWorkspace(spec *call.Create) error {
	dir := e.settled.workspace.dir
	if dir == "" {
		return nil
	}
	w := &call.Workspace{Source: dir, Target: e.settled.workspace.path(), Mode: e.settled.mode.String(), Alone: e.settled.workspace.alone}
	if e.settled.mode == policy.WorkspaceReadWrite {
		guard, err := workspace.Protected(dir, e.settled.policy.Workspace().Unprotected)
		if err != nil {
			return err
		}
		if n := len(guard.Open); n > 0 {
			e.say.note(fmt.Sprintf("in rw mode %s cannot be kept read-only, being links: %s", plural(n, "dangerous path", "dangerous paths"), guard.Open[0]))
		}
		if guard.Partial {
			e.say.note("the folder is too large to be searched whole for dangerous paths, so some may be writable")
		}
		w.Pins, w.ReadOnly = nameBytes(guard.Pins), nameBytes(guard.ReadOnly)
	}
	spec.Workspace = w
	return nil
}

func nameBytes(names []workspace.Name) [][]byte {
	out := make([][]byte, len(names))
	for i, n := range names {
		out[i] = []byte(n)
	}
	return out
}

// systemPath is where commands are looked for inside.
const systemPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// bundle is the host's list of certificate authorities. Runtimes with a list of their own are pointed to it, so that a company's authority counts inside too.
const bundle = "/etc/ssl/certs/ca-certificates.crt"

// start is what the runner is told to run.
func (e *execution) start() frame.Start {
	return frame.Start{Args: e.args, Dir: e.home(), TTY: e.tty, NoStdin: e.app.stdin == nil, Env: e.environment(), OpenFile: uint64(e.bounds.OpenFiles)}
}

// home is where a command begins inside.
func (e *execution) home() string {
	return cmp.Or(e.settled.workspace.path(), e.root.image.Config.WorkingDir, "/root")
}

// environment is everything that the command finds in its environment: nothing of the caller's but the terminal's kind.
func (e *execution) environment() []string {
	var own []string
	if t := os.Getenv("TERM"); e.tty && isPlainWord(t) {
		own = append(own, "TERM="+t)
	}
	return e.environmentUnder(e.settled.policy, append(own, e.settled.env...))
}

// environmentUnder is the environment of a command that is started under a policy, with variables of its own.
func (e *execution) environmentUnder(p *policy.Policy, own []string) []string {
	path := systemPath
	if e.ownSystem() {
		path = strings.Join(append([]string{path}, toolDirs(os.Getenv("PATH"))...), ":")
	}
	env := []string{
		"PATH=" + path,
		"HOME=/root", "USER=root", "LOGNAME=root", "SHELL=/bin/sh", "LANG=C.UTF-8", "COFFERDAM_RUN=" + e.id.String(),
	}
	if e.hasBundle() {
		names := []string{"NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CARGO_HTTP_CAINFO"}
		if e.trust {
			names = append(names, "SSL_CERT_FILE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "AWS_CA_BUNDLE", "NIX_SSL_CERT_FILE", "DENO_CERT", "npm_config_cafile", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH")
		}
		for _, name := range names {
			env = append(env, name+"="+bundle)
		}
	}
	env = append(env, e.root.image.Config.Env...)
	env = append(env, own...)
	env = append(env, e.git.environment(p, env)...)
	return tidy(append(env, e.lending.env...))
}

// tidy keeps the last value of each variable: programs take the first they find, people mean the last they wrote.
// Where somebody chose pip's authorities, the default for Python's requests, which pip prefers, is left out.
func tidy(env []string) []string {
	values := map[string]string{}
	var names []string
	for _, variable := range env {
		name, value, _ := strings.Cut(variable, "=")
		if _, again := values[name]; !again {
			names = append(names, name)
		}
		values[name] = value
	}
	var kept []string
	for _, name := range names {
		if name == "REQUESTS_CA_BUNDLE" && values[name] == bundle && values["PIP_CERT"] != bundle {
			continue
		}
		kept = append(kept, name+"="+values[name])
	}
	return kept
}

// toolDirs keeps the directories of a search path that exist inside too: those of the system beyond the usual ones, such as /usr/local/go/bin.
func toolDirs(path string) []string {
	var dirs []string
	for dir := range strings.SplitSeq(path, ":") {
		if dir = filepath.Clean(dir); strings.HasPrefix(dir, "/usr/") || strings.HasPrefix(dir, "/opt/") {
			if !slices.Contains(strings.Split(systemPath, ":"), dir) && !slices.Contains(dirs, dir) {
				dirs = append(dirs, dir)
			}
		}
	}
	return dirs
}

func isPlainWord(s string) bool {
	for _, c := range s {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '+' || c == '.') {
			return false
		}
	}
	return s != "" && len(s) <= 64
}

func isTerminal(v any) bool {
	f, ok := v.(*os.File)
	return ok && f != nil && term.IsTerminal(int(f.Fd()))
}

// planted is how many sockets a room has.
const planted = 6

// listenersFrom turns passed sockets into the gateway's listeners, in the order of netns.Listeners.
func listenersFrom(files []*os.File) (l gateway.Listeners, err error) {
	defer func() {
		for _, f := range files[:3] {
			_ = f.Close() // the net package has its own descriptors
		}
	}()
	tcp, err1 := net.FileListener(files[0])
	packet, err2 := net.FilePacketConn(files[1])
	stream, err3 := net.FileListener(files[2])
	if err := errors.Join(err1, err2, err3); err != nil {
		return l, fmt.Errorf("take over the planted sockets: %w", err)
	}
	var ok1, ok2 bool
	l.TCP, ok1 = tcp.(*net.TCPListener)
	l.DNSPacket, ok2 = packet.(*net.UDPConn)
	if !ok1 || !ok2 {
		return l, fmt.Errorf("planted sockets are %T and %T", tcp, packet)
	}
	l.DNSStream, l.Refused, l.Answer4, l.Answer6 = stream, files[3], files[4], files[5]
	return l, nil
}

// confine gives up what the rest of this process's life does not need, before the first byte of the sandbox is read.
func (e *execution) confine() error {
	id := int(e.uidBase) + 65535 // the one id of the sandbox's range that the sandbox does not have
	if _, err := confine.Self(confine.Config{UID: id, GID: id, BestEffort: slices.Contains(e.flags.bestEffort, "landlock")}); err != nil {
		return fault.New(fault.Unsupported, "the gateway cannot give up its rights").WithHint("cofferdam doctor says what this host lacks").Because(err)
	}
	return nil
}

// owner asks the runner whose socket it is, once there is one to ask.
func (e *execution) owner(ctx context.Context, q frame.Query) frame.Owner {
	if s := e.say.session(); s != nil {
		return s.Owner(ctx, q)
	}
	return frame.Owner{}
}

// missingHint helps where a command is missing inside but not outside.
func (e *execution) missingHint(exit frame.Exit) string {
	if !exit.NotFound {
		return ""
	}
	name := e.args[0]
	if strings.Contains(name, "/") {
		return "only system directories and the folder you work on are seen inside; show another with --mount DIR"
	}
	if e.outside == "" {
		return ""
	}
	return fmt.Sprintf("here it is %s, which is not seen inside; show it with --mount %s and call it by its path", e.outside, filepath.Dir(e.outside))
}
