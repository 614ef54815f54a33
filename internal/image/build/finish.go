package build

import (
	"errors"
	"io/fs"
	"path"
	"strings"
)

// finish does what the packages' scripts would have done for a base that can be used, takes out what the recipe leaves out, and writes dpkg's records.
// docs/images.md lists each step.
func (l *layer) finish(r Recipe, packages []Package) error {
	for _, step := range []func() error{l.whole, l.mergeUsr, l.people, l.shells, l.settings, l.places, l.alternatives, l.authorities, l.loaderCache} {
		if err := step(); err != nil {
			return err
		}
	}
	l.remove(func(name string, _ *node) bool { return r.excludes(name) })
	return l.record(packages)
}

// mergeUsr makes /bin, /lib and their like links into /usr.
func (l *layer) mergeUsr() error {
	for _, name := range mergedDirs() {
		if l.has("usr/" + name) {
			if err := l.link(name, "usr/"+name); err != nil {
				return err
			}
		}
	}
	return nil
}

// copyTo copies a file, unless there is one already, or none to copy.
func (l *layer) copyTo(to, from string, mode int64) error {
	if l.has(to) {
		return nil
	}
	data, err := l.read(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return l.write(to, string(data), mode)
}

// people writes the lists of users and groups: base-passwd's, or root and nobody. Nobody has a password.
func (l *layer) people() error {
	err := errors.Join(
		l.copyTo("etc/passwd", "usr/share/base-passwd/passwd.master", 0o644),
		l.copyTo("etc/group", "usr/share/base-passwd/group.master", 0o644),
	)
	if err == nil && !l.has("etc/passwd") {
		err = l.write("etc/passwd", "root:*:0:0:root:/root:/bin/sh\nnobody:*:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n", 0o644)
	}
	if err == nil && !l.has("etc/group") {
		err = l.write("etc/group", "root:*:0:\nnogroup:*:65534:\n", 0o644)
	}
	return err
}

// shells lists the shells that are there, as debianutils' update-shells does.
func (l *layer) shells() error {
	head, err := l.read("usr/share/debianutils/shells")
	if errors.Is(err, fs.ErrNotExist) || l.has("etc/shells") {
		return nil
	}
	if err != nil {
		return err
	}
	text := string(head)
	for _, name := range l.names() {
		if path.Dir(name) != "usr/share/debianutils/shells.d" || l.nodes[name].kind != file {
			continue
		}
		more, err := l.read(name)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(more)) {
			if shell := strings.TrimSpace(line); strings.HasPrefix(shell, "/") {
				text += shell + "\n"
				if rest, ok := strings.CutPrefix(shell, "/bin/"); ok {
					text += "/usr/bin/" + rest + "\n"
				}
			}
		}
	}
	return l.write("etc/shells", text, 0o644)
}

// settings puts default settings in place, as base-files and libc-bin do.
func (l *layer) settings() error {
	err := errors.Join(
		l.copyTo("root/.profile", "usr/share/base-files/dot.profile", 0o644),
		l.copyTo("root/.bashrc", "usr/share/base-files/dot.bashrc", 0o644),
		l.copyTo("etc/profile", "usr/share/base-files/profile", 0o644),
		l.copyTo("etc/nsswitch.conf", "usr/share/libc-bin/nsswitch.conf", 0o644),
	)
	if err == nil && l.has("etc/dpkg/origins/debian") && !l.has("etc/dpkg/origins/default") {
		err = l.link("etc/dpkg/origins/default", "debian")
	}
	if err == nil && !l.has("usr/bin/sh") {
		for _, shell := range []string{"dash", "bash"} {
			if l.has("usr/bin/" + shell) {
				return l.link("usr/bin/sh", shell)
			}
		}
	}
	return err
}

// places makes the directories that programs expect, and the two that are links.
func (l *layer) places() error {
	for name, mode := range map[string]int64{
		"tmp": 0o1777, "var/tmp": 0o1777, "run/lock": 0o1777, "root": 0o700, "home": 0o755, "mnt": 0o755, "srv": 0o755, "opt": 0o755, "media": 0o755, "dev": 0o755,
		"proc": 0o555, "sys": 0o555, "etc": 0o755, "var/opt": 0o755, "var/log": 0o755, "usr/local/bin": 0o755, "usr/local/sbin": 0o755, "usr/local/lib": 0o755,
		"usr/local/share": 0o755, "usr/local/etc": 0o755, "usr/local/include": 0o755, "usr/local/src": 0o755,
	} {
		if old := l.nodes[name]; old == nil || old.kind == dir {
			if err := l.put(name, node{kind: dir, mode: mode}); err != nil {
				return err
			}
		}
	}
	for name, target := range map[string]string{"var/run": "/run", "var/lock": "/run/lock"} {
		if old := l.nodes[name]; old == nil || old.kind == dir { // an empty one, as base-files has it
			if err := l.link(name, target); err != nil {
				return err
			}
		}
	}
	return nil
}

// alternatives links the commands that packages only offer: the first program that is there.
func (l *layer) alternatives() error {
	for _, a := range []struct{ name, programs string }{
		{"awk", "gawk mawk original-awk busybox"}, {"nawk", "gawk mawk original-awk"}, {"which", "which.gnu which.debianutils"}, {"pager", "less more"},
		{"cc", "gcc clang tcc"}, {"c++", "g++ clang++"}, {"nc", "nc.openbsd nc.traditional"}, {"lzma", "xz"}, {"unlzma", "unxz"},
	} {
		for program := range strings.SplitSeq(a.programs, " ") {
			if !l.has("usr/bin/"+program) || l.has("usr/bin/"+a.name) {
				continue
			}
			if err := errors.Join(l.link("etc/alternatives/"+a.name, "/usr/bin/"+program), l.link("usr/bin/"+a.name, "/etc/alternatives/"+a.name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// authorities writes the list of certificate authorities that OpenSSL, GnuTLS and Go read, as update-ca-certificates does. OpenSSL finds it by a link in its
// own directory instead of one link for each authority.
func (l *layer) authorities() error {
	const certificates, bundle = "usr/share/ca-certificates/", "etc/ssl/certs/ca-certificates.crt"
	if l.has(bundle) {
		return nil
	}
	var all, list strings.Builder
	for _, name := range l.names() {
		if !strings.HasPrefix(name, certificates) || path.Ext(name) != ".crt" || l.nodes[name].kind != file {
			continue
		}
		data, err := l.read(name)
		if err != nil {
			return err
		}
		all.WriteString(strings.TrimRight(string(data), "\n") + "\n")
		list.WriteString(strings.TrimPrefix(name, certificates) + "\n")
		if err := l.link("etc/ssl/certs/"+strings.TrimSuffix(path.Base(name), ".crt")+".pem", "/"+name); err != nil {
			return err
		}
	}
	if all.Len() == 0 {
		return nil
	}
	err := errors.Join(l.write(bundle, all.String(), 0o644), l.write("etc/ca-certificates.conf", list.String(), 0o644))
	if err == nil && l.has("usr/lib/ssl") && !l.has("usr/lib/ssl/cert.pem") {
		err = l.link("usr/lib/ssl/cert.pem", "/"+bundle)
	}
	return err
}
