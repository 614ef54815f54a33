package testenv

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// treePrograms are what tests run inside a root that is not this machine's. Those that the machine lacks are left out.
func treePrograms() []string {
	return strings.Fields("sh bash env cat cp mv ln rm pwd mkdir mknod ls chmod chown touch head tail tr wc seq sort cut dd od id uname hostname stat readlink mktemp dirname basename df tee yes truncate expr printf timeout fold base64 gzip sleep kill ps test true false tty stty date " +
		"grep sed awk find xargs getent mount umount unshare setpriv dmesg curl openssl python3")
}

// fullPrograms are what people have on a machine besides.
func fullPrograms() []string {
	return append(treePrograms(), strings.Fields("setsid chroot nsenter losetup git git-remote-http node perl ssh nc socat ip ping nft iptables ip6tables conntrack sysctl tcpdump "+
		"strace gdb bwrap capsh modprobe insmod systemd-run reboot busctl loginctl machinectl")...)
}

// fullFolders are what those programs read, and run in their turn.
func fullFolders() []string {
	return strings.Fields("/usr/lib/git-core /usr/share/git-core /usr/lib/x86_64-linux-gnu/perl /usr/lib/x86_64-linux-gnu/perl-base /usr/share/perl /usr/lib/ssl /etc/ssl/openssl.cnf /etc/iproute2 /usr/lib/locale/C.utf8")
}

// Tree returns a directory tree with a small system, made of this machine's own programs, for use as a root file system. It belongs to a user, is made once for each
// state of the machine, and must not be written to: other tests use it at the same time.
func Tree(t testing.TB, uid uint32) string {
	t.Helper()
	dir, err := TreeFor(int(uid))
	if err != nil {
		t.Fatalf("make a root file system for tests: %v", err)
	}
	return dir
}

// FullTree is a Tree that has Git, Node, Perl and an administrator's tools as well, as far as this machine has them. It is several times as large.
func FullTree(t testing.TB, uid uint32) string {
	t.Helper()
	dir, err := treeOf(int(uid), fullPrograms(), fullFolders())
	if err != nil {
		t.Fatalf("make a full root file system for tests: %v", err)
	}
	return dir
}

// TreeFor is Tree without a test.
func TreeFor(uid int) (string, error) { return treeOf(uid, treePrograms(), nil) }

// treeOf makes a tree beside its place first, so that it is there whole or not at all.
func treeOf(uid int, programs, folders []string) (string, error) {
	files, key, err := treeFiles(programs, folders)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(Tools(), fmt.Sprintf("tree-%s-%d", key, uid))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(Tools(), 0o755); err != nil {
		return "", err
	}
	next, err := os.MkdirTemp(Tools(), "tree-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(next) // moved away, unless this has gone wrong or another test was first
	if err := errors.Join(os.Chmod(next, 0o755), fillTree(next, files)); err != nil {
		return "", err
	}
	if uid != os.Geteuid() {
		if err := filepath.WalkDir(next, func(path string, _ fs.DirEntry, err error) error { return errors.Join(err, os.Lchown(path, uid, uid)) }); err != nil {
			return "", err
		}
	}
	if err := os.Rename(next, dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return dir, nil
}

// Tools is where what takes long to make for tests is kept between them.
func Tools() string {
	if dir := os.Getenv("COFFERDAM_TOOLS"); dir != "" {
		return dir
	}
	if os.Geteuid() == 0 {
		return "/var/cache/cofferdam-tools"
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return filepath.Join(os.TempDir(), fmt.Sprintf("cofferdam-tools-%d", os.Getuid()))
	}
	return filepath.Join(cache, "cofferdam-tools")
}

// treeFiles lists what the tree is made of, programs with what they load, and a key that changes with any of it, and with what is made of it.
func treeFiles(programs, folders []string) (files []string, key string, err error) {
	seen := map[string]bool{}
	sum := sha256.New()
	fmt.Fprintln(sum, "layout 2")
	add := func(path string) error {
		info, err := os.Stat(path)
		if err != nil || seen[path] {
			return err
		}
		seen[path] = true
		files = append(files, path)
		fmt.Fprintln(sum, path, info.Size(), info.ModTime().UnixNano())
		return nil
	}
	for _, name := range programs {
		path := systemProgram(name)
		if path == "" {
			continue
		}
		if err := add(path); err != nil {
			return nil, "", err
		}
		for _, library := range libraries(path) {
			if err := add(library); err != nil {
				return nil, "", err
			}
		}
	}
	for _, path := range folders {
		_ = add(path) // not every machine has them
	}
	for _, path := range []string{"/etc/nsswitch.conf", "/etc/ssl/certs/ca-certificates.crt", "/etc/services", "/etc/protocols"} {
		_ = add(path) // not every machine has them
	}
	if python, err := exec.Command("/usr/bin/python3", "-S", "-c", "import sysconfig; print(sysconfig.get_path('stdlib'))").Output(); err == nil {
		if err := add(strings.TrimSpace(string(python))); err != nil {
			return nil, "", err
		}
	}
	return files, fmt.Sprintf("%x", sum.Sum(nil))[:12], nil
}

// systemProgram finds a program of the distribution's, not one that somebody's search path has before it.
func systemProgram(name string) string {
	for _, dir := range []string{"/usr/bin/", "/bin/", "/usr/sbin/", "/sbin/", "/usr/lib/git-core/"} {
		if info, err := os.Stat(dir + name); err == nil && info.Mode().IsRegular() {
			return dir + name
		}
	}
	return ""
}

// libraries are the files that the dynamic loader would map for a program. A script and a static program have none.
func libraries(program string) (paths []string) {
	out, err := exec.Command("ldd", program).Output()
	if err != nil {
		return nil
	}
	for _, m := range regexp.MustCompile(`(?m)(?:=> )?(/\S+) \(0x`).FindAllSubmatch(out, -1) {
		paths = append(paths, string(m[1]))
	}
	return paths
}

// fillTree copies files to where they are on this machine, under the merged layout of /usr that distributions have.
func fillTree(dir string, files []string) error {
	for _, name := range []string{"usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc", "tmp", "var/tmp", "proc", "sys", "dev", "run", "root", "home", "mnt", "opt"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+name, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	names := map[string]string{"passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n", "group": "root:x:0:\nnogroup:x:65534:\n"}
	for name, text := range names {
		if err := os.WriteFile(filepath.Join(dir, "etc", name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	const skip = "--exclude=*/test --exclude=*/dist-packages --exclude=*/idlelib --exclude=*/ensurepip --exclude=*/config-*"
	list := new(bytes.Buffer)
	for _, f := range files {
		all, err := hops(f)
		if err != nil {
			return err
		}
		for _, path := range all {
			fmt.Fprintln(list, path)
		}
	}
	pack := exec.Command("tar", append(strings.Fields(skip), "-C", "/", "-c", "-T", "-")...)
	pack.Stdin = list
	unpack := exec.Command("tar", "-C", dir, "-x", "--no-same-owner", "--no-same-permissions", "--skip-old-files")
	var complaints bytes.Buffer
	pack.Stderr, unpack.Stderr = &complaints, &complaints
	pipe, err := pack.StdoutPipe()
	if err != nil {
		return err
	}
	unpack.Stdin = pipe
	if err := pack.Start(); err != nil {
		return err
	}
	if err := errors.Join(unpack.Run(), pack.Wait()); err != nil {
		return fmt.Errorf("copy: %w: %s", err, complaints.Bytes())
	}
	return nil
}

// hops are a file and, where it is a link, what leads from there to the file that is meant: /usr/bin/awk, /etc/alternatives/awk, /usr/bin/mawk. Without leading slashes.
func hops(path string) (all []string, err error) {
	for range 40 { // as many as Linux follows
		real, err := usrPath(path)
		if err != nil {
			return nil, err
		}
		all = append(all, real)
		target, err := os.Readlink("/" + real)
		if err != nil {
			return all, nil //nolint:nilerr // it is no link: the end
		}
		if path = target; !filepath.IsAbs(target) {
			path = filepath.Join("/", filepath.Dir(real), target)
		}
	}
	return nil, fmt.Errorf("%s: %w", path, unix.ELOOP)
}

// usrPath is a path without its leading slash, its directory's links followed: /lib/x lies in usr/lib.
func usrPath(path string) (string, error) {
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	return strings.TrimPrefix(filepath.Join(dir, filepath.Base(path)), "/"), err
}
