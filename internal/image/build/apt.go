package build

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// settings are what apt-get reads last, so that they hold whatever this machine's own configuration says: it works on a record of packages that is empty,
// in a directory of its own, takes nothing that is not signed, and runs none of the machine's hooks. Sources, keys, proxies and preferences are the machine's.
const settings = `Dir::State::status "%[1]s/status";
Dir::State::extended_states "%[1]s/extended";
Dir::Cache "%[1]s/cache";
Dir::Cache::archives "%[1]s/cache/archives";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dir::Log "%[1]s/log";
Debug::NoLocking "true";
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Get::AllowUnauthenticated "false";
APT::Get::Assume-Yes "true";
APT::Keep-Downloaded-Packages "true";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
`

// patience is how long apt-get may take, and how long it is waited for once it was told to end.
const (
	patience = 30 * time.Minute
	farewell = 5 * time.Second
)

// maxSaid bounds what is kept of a program's words, in bytes.
const maxSaid = 1 << 20

// apt is apt-get in a directory of its own.
type apt struct{ work string }

// fetch resolves a recipe's packages, has apt-get fetch and verify them, and returns the archives' paths.
func fetch(ctx context.Context, work string, r Recipe, o Options) ([]string, error) {
	for _, tool := range []string{"apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fault.New(fault.Unsupported, "there is no %s on this machine, which packages are fetched with", tool).
				WithHint("build on Debian or Ubuntu; or from files: cofferdam image build NAME --from DIR; or pull an image: cofferdam image pull REF").Because(err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	a := apt{work}
	if err := a.prepare(o.Refresh); err != nil {
		return nil, err
	}
	if o.Refresh {
		o.tell(Step{What: "refreshing", Detail: "package lists"})
		if _, err := a.get(ctx, "update", "--error-on=any"); err != nil {
			return nil, err
		}
	}
	o.tell(Step{What: "resolving"})
	plan, err := a.get(ctx, append([]string{"install", "--print-uris", "--quiet=2", "--"}, r.Packages...)...)
	if err != nil {
		return nil, err
	}
	wanted, size, err := parsePlan(plan)
	if err != nil {
		return nil, err
	}
	o.tell(Step{What: "fetching", Of: len(wanted), FetchBytes: size})
	if _, err := a.get(ctx, append([]string{"install", "--download-only", "--quiet=2", "--"}, r.Packages...)...); err != nil {
		return nil, err
	}
	return a.collect(ctx, wanted)
}

// archives is where apt-get puts what it has fetched and verified.
func (a apt) archives() string { return filepath.Join(a.work, "cache", "archives") }

// collect returns the paths of archives. Those from sources on this machine's own disks were verified in place; they are copied, so that nobody changes them later.
func (a apt) collect(ctx context.Context, names []string) (debs []string, err error) {
	var local []string
	for _, name := range names {
		debs = append(debs, filepath.Join(a.archives(), name))
		if _, err := os.Lstat(filepath.Join(a.archives(), name)); errors.Is(err, fs.ErrNotExist) {
			parts := strings.Split(strings.TrimSuffix(name, ".deb"), "_") // NAME_VERSION_ARCHITECTURE
			if len(parts) != 3 {
				return nil, fmt.Errorf("apt-get did not fetch %s", name)
			}
			local = append(local, parts[0]+"="+unescape(parts[1]))
		}
	}
	if len(local) > 0 {
		if _, err := a.get(ctx, append([]string{"download", "--quiet=2", "--"}, local...)...); err != nil {
			return nil, err
		}
	}
	for _, deb := range debs {
		info, err := os.Lstat(deb)
		if err == nil && !info.Mode().IsRegular() {
			err = errors.New("it is no file of its own")
		}
		if err != nil {
			return nil, fmt.Errorf("apt-get did not fetch %s: %w", filepath.Base(deb), err)
		}
	}
	return debs, nil
}

// prepare lays out the directory. Others may look into it: as root apt-get fetches as a user of its own.
func (a apt) prepare(lists bool) error {
	text := fmt.Sprintf(settings, a.work)
	dirs := []string{"cache/archives/partial", "log"}
	if lists {
		text += fmt.Sprintf("Dir::State::lists \"%s/lists\";\n", a.work)
		dirs = append(dirs, "lists/partial")
	}
	err := os.Chmod(a.work, 0o755)
	for _, dir := range dirs {
		err = errors.Join(err, os.MkdirAll(filepath.Join(a.work, dir), 0o755))
	}
	return errors.Join(err, os.WriteFile(filepath.Join(a.work, "status"), nil, 0o644), os.WriteFile(filepath.Join(a.work, "settings"), []byte(text), 0o644))
}

// get runs apt-get and returns what it printed.
func (a apt) get(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-c", filepath.Join(a.work, "settings")}, args...)...)
	var out, said tail
	cmd.Stdout, cmd.Stderr = &out, &said
	cmd.Dir = a.archives() // "download" writes there
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	gently(cmd)
	err := cmd.Run()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, explain(said.String(), err)
	}
	if out.lost {
		return nil, errors.New("apt-get printed too much")
	}
	return out.Bytes(), nil
}

// gently has a program in a process group of its own, which is told to end when the context is done.
func gently(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = farewell
}

// tail keeps the first maxSaid bytes that are written to it.
type tail struct {
	bytes.Buffer
	lost bool
}

func (t *tail) Write(p []byte) (int, error) {
	if room := maxSaid - t.Len(); room < len(p) {
		t.lost = true
		_, _ = t.Buffer.Write(p[:max(room, 0)]) // it cannot fail
		return len(p), nil
	}
	return t.Buffer.Write(p)
}

// explain makes an error of what apt-get said.
func explain(said string, err error) error {
	var lines []string
	for line := range strings.Lines(said) {
		if text, ok := strings.CutPrefix(strings.TrimSpace(line), "E: "); ok && len(lines) < 5 {
			lines = append(lines, text)
		}
	}
	if len(lines) == 0 {
		return fmt.Errorf("apt-get: %w: %.500s", err, strings.TrimSpace(said))
	}
	text := strings.Join(lines, "; ")
	switch {
	case strings.Contains(text, "Unable to locate package"), strings.Contains(text, "has no installation candidate"), strings.Contains(text, "was not found"):
		return fault.New(fault.NotFound, "apt-get: %.500s", text).WithHint("look for the name with: apt-cache search WORD; if this machine has no package lists, add --refresh")
	case strings.Contains(text, "Failed to fetch"), strings.Contains(text, "Unable to fetch"):
		return fault.New(fault.Unavailable, "apt-get: %.500s", text).WithHint("add --refresh: this machine's package lists may be older than what the mirror has").Because(err)
	case strings.Contains(text, "unauthenticated"), strings.Contains(text, "not signed"), strings.Contains(text, "does not have a Release file"):
		return fault.New(fault.Denied, "apt-get: %.500s", text).WithHint("take packages only from sources that are signed").Because(err)
	}
	return fault.New(fault.Unavailable, "apt-get: %.500s", text).WithHint("mend the packages that are named, or this machine's /etc/apt").Because(err)
}

// parsePlan reads what apt-get --print-uris says: 'URL' FILE BYTES HASH, one for each archive.
func parsePlan(plan []byte) (files []string, size int64, err error) {
	for lines := bufio.NewScanner(bytes.NewReader(plan)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 3 || !strings.HasPrefix(fields[0], "'") {
			continue
		}
		name := fields[1]
		n, err := strconv.ParseInt(fields[2], 10, 64)
		if err != nil || n < 0 || name != filepath.Base(name) || !strings.HasSuffix(name, ".deb") {
			return nil, 0, fmt.Errorf("apt-get printed %.200q, which is not understood", lines.Text())
		}
		files = append(files, name)
		size += n
	}
	if len(files) == 0 {
		return nil, 0, fault.New(fault.NotFound, "apt-get has nothing to fetch for these packages").WithHint("add --refresh")
	}
	return files, size, nil
}

// unescape undoes the escapes of a version in an archive's name.
func unescape(s string) string {
	plain, err := url.PathUnescape(s)
	if err != nil {
		return s
	}
	return plain
}
