package build

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/md5" // dpkg's own format
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// maxControl bounds what is read of a package's own description, in bytes.
const maxControl = 16 << 20

// nobody is whom archives are unpacked as when root builds.
const nobody = 65534

// Package is one package that an image holds.
type Package struct {
	Name, Version, Architecture string
	Source                      string // the source package, if it has another name
	Maintainer, Homepage        string
	SHA256                      string // of the archive in hex; empty where it was not seen
	Licences                    []string

	stanza    string   // its description in dpkg's status file, without the list of its settings
	conffiles []string // its settings, absolute paths
	replaces  []string // packages whose files it may take over
	files     []string // all paths, in order
	sums      string   // dpkg's md5sums
	sameArch  bool     // several architectures of it may be installed: its files are named by architecture
}

// addDebs adds the contents of Debian archives, in order of their packages' names.
func (l *layer) addDebs(ctx context.Context, debs []string, o Options) ([]Package, error) {
	var packages []Package
	paths := map[string]string{}
	for _, deb := range debs {
		p, err := describe(ctx, deb)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Base(deb), err)
		}
		if paths[p.Name] != "" {
			return nil, fault.New(fault.Unsupported, "the package %s would be there for two architectures", p.Name)
		}
		packages = append(packages, p)
		paths[p.Name] = deb
	}
	slices.SortFunc(packages, func(a, b Package) int { return cmp.Compare(a.Name, b.Name) })
	l.replaces, l.owners = map[string][]string{}, map[string][]string{}
	for _, p := range packages {
		l.replaces[p.Name] = p.replaces
	}
	for i := range packages {
		p := &packages[i]
		o.tell(Step{What: "unpacking", Detail: p.Name, Done: i + 1, Of: len(packages)})
		err := withDeb(ctx, paths[p.Name], "--fsys-tarfile", func(r io.Reader) error { return l.addTar(ctx, r, p.Name) })
		if err != nil {
			return nil, fmt.Errorf("package %s: %w", p.Name, err)
		}
	}
	index := map[string]int{}
	for i, p := range packages {
		index[p.Name] = i
		packages[i].Licences = l.licences(p.Name) // its directory may be a link to another package's
	}
	for _, name := range l.names() {
		for _, owner := range l.owners[name] {
			packages[index[owner]].files = append(packages[index[owner]].files, name)
		}
	}
	return packages, nil
}

// withDeb runs dpkg-deb on an archive and gives what it prints to f. As root it runs as nobody: what it decompresses came from elsewhere.
func withDeb(ctx context.Context, deb, action string, f func(io.Reader) error) error {
	in, err := os.Open(deb)
	if err != nil {
		return err
	}
	defer in.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, "dpkg-deb", action, "-")
	var said tail
	cmd.Stdin, cmd.Stderr, cmd.Dir = in, &said, "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	gently(cmd)
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = f(out)
	if err == nil {
		_, err = io.Copy(io.Discard, out) // padding behind the archive's end
	} else {
		cancel()
	}
	if wait := cmd.Wait(); err == nil && wait != nil {
		err = fmt.Errorf("dpkg-deb: %w: %.300s", wait, strings.TrimSpace(said.String()))
	}
	return err
}

// describe reads a package's description and its archive's digest.
func describe(ctx context.Context, deb string) (Package, error) {
	parts := map[string]string{}
	err := withDeb(ctx, deb, "--ctrl-tarfile", func(r io.Reader) error {
		t := tar.NewReader(io.LimitReader(r, maxControl))
		for {
			h, err := t.Next()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if name := path.Clean(h.Name); name == "control" || name == "md5sums" || name == "conffiles" {
				data, err := io.ReadAll(t)
				if err != nil {
					return err
				}
				parts[name] = string(data)
			}
		}
	})
	if err != nil {
		return Package{}, err
	}
	stanzas := parseStanzas([]byte(parts["control"]))
	if len(stanzas) != 1 {
		return Package{}, errors.New("the archive does not describe one package")
	}
	p, err := stanzas[0].packaged()
	if err != nil {
		return Package{}, err
	}
	p.stanza, p.sums, p.conffiles = stanzas[0].installed(), parts["md5sums"], strings.Fields(parts["conffiles"])
	p.SHA256, err = digestOf(deb)
	return p, err
}

func digestOf(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// merged is where a path lies in a system whose /bin, /sbin and /lib are links into /usr.
func merged(name string) string {
	top, _, _ := strings.Cut(name, "/")
	if slices.Contains(mergedDirs(), top) {
		return "usr/" + name
	}
	return name
}

// mergedDirs are the directories that are links into /usr (usrmerge's own list).
func mergedDirs() []string {
	return []string{"bin", "lib", "lib32", "lib64", "libo32", "libx32", "sbin"}
}

// putPackaged adds what a package holds. A file that two packages hold belongs to the one that replaces the other's (Debian policy, 7.6).
func (l *layer) putPackaged(name string, n node) error {
	if name == "" {
		return nil // no package has the root for itself
	}
	name = merged(name)
	old, owner := l.nodes[name], n.owner
	switch {
	case old == nil:
	case old.kind == dir && n.kind == dir:
		n = *old // the first one's, as with dpkg
	case old.kind == symlink && n.kind == dir:
		return nil // a directory that is a link already
	case old.owner == n.owner && n.kind == symlink:
		return nil // a link from /usr/bin to /bin would be one to itself
	case old.owner == n.owner && old.kind == symlink:
	case slices.Contains(l.replaces[n.owner], old.owner):
		l.owners[name] = nil
	case slices.Contains(l.replaces[old.owner], n.owner):
		return nil
	default:
		return fault.New(fault.Conflict, "the packages %s and %s both hold /%s", old.owner, n.owner, name).WithHint("leave one of them out")
	}
	if !slices.Contains(l.owners[name], owner) {
		l.owners[name] = append(l.owners[name], owner)
	}
	return l.put(name, n)
}

// record writes dpkg's own records, so that its tools work inside: what is installed, and which files it has.
func (l *layer) record(packages []Package) error {
	var status bytes.Buffer
	for _, p := range packages {
		status.WriteString(p.stanza)
		if err := l.conffiles(&status, p); err != nil {
			return err
		}
		status.WriteString("\n")
		base := "var/lib/dpkg/info/" + p.Name
		if p.sameArch {
			base += ":" + p.Architecture
		}
		list := "/.\n"
		for _, name := range p.files {
			list += "/" + name + "\n"
		}
		if err := errors.Join(l.write(base+".list", list, 0o644), l.write(base+".md5sums", p.sums, 0o644)); err != nil {
			return err
		}
	}
	return errors.Join(
		l.write("var/lib/dpkg/status", status.String(), 0o644),
		l.write("var/lib/dpkg/available", "", 0o644),
		l.write("var/lib/dpkg/info/format", "1\n", 0o644),
		l.put("var/lib/dpkg/updates", node{kind: dir, mode: 0o755}),
		l.put("var/lib/dpkg/triggers", node{kind: dir, mode: 0o755}),
	)
}

// conffiles writes the list of a package's settings with their digests, by which dpkg tells later whether somebody changed them.
func (l *layer) conffiles(w *bytes.Buffer, p Package) error {
	head := "Conffiles:\n"
	for _, name := range p.conffiles {
		if !strings.HasPrefix(name, "/") {
			continue // a word such as remove-on-upgrade
		}
		data, err := l.read(strings.TrimPrefix(name, "/"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "%s %s %x\n", head, name, md5.Sum(data))
		head = ""
	}
	return nil
}
