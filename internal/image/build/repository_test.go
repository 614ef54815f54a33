package build

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// repository is a source of packages on this machine, without a signature, and an apt configuration that names no other, accepts all, and has hooks.
type repository struct {
	dir, marker, sources string
	index                strings.Builder
}

func newRepository(t *testing.T) *repository {
	t.Helper()
	testenv.Need(t, "tool:apt-get", "tool:dpkg-deb")
	dir := openDir(t)
	r := &repository{dir: dir, marker: filepath.Join(dir, "marker"), sources: filepath.Join(dir, "sources.list")}
	hook := fmt.Sprintf("\"touch %s\";\n", r.marker)
	config := fmt.Sprintf("Dir::Etc::sourcelist %q;\nDir::Etc::sourceparts \"-\";\nAcquire::AllowInsecureRepositories \"true\";\nAPT::Get::AllowUnauthenticated \"true\";\n", r.sources)
	for _, name := range []string{"APT::Update::Pre-Invoke", "APT::Update::Post-Invoke", "APT::Update::Post-Invoke-Success", "DPkg::Pre-Invoke", "DPkg::Post-Invoke", "DPkg::Pre-Install-Pkgs"} {
		config += name + ":: " + hook
	}
	if err := os.WriteFile(filepath.Join(dir, "apt.conf"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("APT_CONFIG", filepath.Join(dir, "apt.conf"))
	return r
}

// openDir makes a directory that the user that apt-get fetches as can enter.
func openDir(t *testing.T) string {
	t.Helper()
	temp := t.TempDir()
	for dir := temp; dir != "/" && dir != filepath.Clean(os.TempDir()); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return temp
}

// add makes a package with files and a script that would leave a mark.
func (r *repository) add(t *testing.T, name, fields string, files map[string]os.FileMode) {
	t.Helper()
	tree := t.TempDir()
	control := fmt.Sprintf("Package: %s\nVersion: 1.0\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\nDescription: a test\n%s", name, fields)
	err := errors.Join(os.Chmod(tree, 0o755), os.Mkdir(filepath.Join(tree, "DEBIAN"), 0o755), os.WriteFile(filepath.Join(tree, "DEBIAN/control"), []byte(control), 0o644))
	for _, script := range []string{"preinst", "postinst"} {
		err = errors.Join(err, os.WriteFile(filepath.Join(tree, "DEBIAN", script), []byte("#!/bin/sh\ntouch "+r.marker+"\n"), 0o755))
	}
	for file, mode := range files {
		path := filepath.Join(tree, file)
		err = errors.Join(err, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(name+" "+file), 0o644), os.Chmod(path, mode))
	}
	if err != nil {
		t.Fatal(err)
	}
	deb := filepath.Join(r.dir, name+".deb")
	if out, err := exec.Command("dpkg-deb", "--root-owner-group", "--build", tree, deb).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	sum, err1 := digestOf(deb)
	info, err2 := os.Stat(deb)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&r.index, "%sFilename: ./%s.deb\nSize: %d\nSHA256: %s\n\n", control, name, info.Size(), sum)
}

// offer writes the index, and a source with the given options.
func (r *repository) offer(t *testing.T, options string) {
	t.Helper()
	source := fmt.Sprintf("deb %s file:%s ./\n", options, r.dir)
	if err := errors.Join(os.WriteFile(filepath.Join(r.dir, "Packages"), []byte(r.index.String()), 0o644), os.WriteFile(r.sources, []byte(source), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// TestRepository builds from packages with scripts and set-id files, from a source that the machine's administrator marked as trusted, and is refused the same
// source without that mark, although the machine's configuration would accept it.
func TestRepository(t *testing.T) {
	r := newRepository(t)
	r.add(t, "base", "", map[string]os.FileMode{"bin/su": 0o755 | os.ModeSetuid, "etc/base.conf": 0o644, "usr/share/man/base.1": 0o644})
	r.add(t, "tool", "Depends: base\nRecommends: extra\n", map[string]os.FileMode{"usr/bin/tool": 0o755})
	r.add(t, "extra", "", map[string]os.FileMode{"usr/bin/extra": 0o755})
	temp := openDir(t)
	recipe := Recipe{Packages: []string{"tool"}, Exclude: []string{"/usr/share/man"}}

	r.offer(t, "")
	if b, err := FromPackages(t.Context(), recipe, Options{Temp: temp, Refresh: true}); err == nil {
		t.Error("a source without a signature was accepted", b.Close())
	} else if fault.KindOf(err) != fault.Denied {
		t.Error(err)
	}

	r.offer(t, "[trusted=yes]")
	b, err := FromPackages(t.Context(), recipe, Options{Temp: temp, Refresh: true})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for name, want := range map[string]bool{"usr/bin/tool": true, "usr/bin/su": true, "usr/bin/extra": false, "usr/share/man/base.1": false, "etc/base.conf": true} {
		if b.layer.has(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
	if n := b.layer.nodes["usr/bin/su"]; n.mode != 0o755 || b.Counts.SetID != 1 {
		t.Errorf("su has mode %o", n.mode)
	}
	if len(b.Packages) != 2 || !slices.ContainsFunc(b.Packages, func(p Package) bool { return p.Name == "base" && len(p.SHA256) == 64 }) {
		t.Errorf("%+v", b.Packages)
	}
	if _, err := os.Lstat(r.marker); !errors.Is(err, os.ErrNotExist) {
		t.Error("a script or a hook ran", err)
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) != 0 {
		t.Error("left behind:", left, err)
	}
}

// TestTamperedPackage changes an archive after its digest went into the index.
func TestTamperedPackage(t *testing.T) {
	r := newRepository(t)
	r.add(t, "base", "", map[string]os.FileMode{"bin/x": 0o755})
	r.offer(t, "[trusted=yes]")
	f, err := os.OpenFile(filepath.Join(r.dir, "base.deb"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{0xff}, info.Size()-1); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if b, err := FromPackages(t.Context(), Recipe{Packages: []string{"base"}}, Options{Temp: openDir(t), Refresh: true}); err == nil {
		t.Error("a changed archive was accepted", b.Close())
	} else if !strings.Contains(err.Error(), "Hash Sum mismatch") {
		t.Error(err)
	}
}

// TestTwoPackagesOneFile has two packages hold the same file.
func TestTwoPackagesOneFile(t *testing.T) {
	for fields, ok := range map[string]bool{"": false, "Replaces: base (<< 2)\n": true} {
		r := newRepository(t)
		r.add(t, "base", "", map[string]os.FileMode{"bin/x": 0o755})
		r.add(t, "other", fields, map[string]os.FileMode{"usr/bin/x": 0o755})
		r.offer(t, "[trusted=yes]")
		b, err := FromPackages(t.Context(), Recipe{Packages: []string{"base", "other"}}, Options{Temp: openDir(t), Refresh: true})
		if (err == nil) != ok || (err != nil && fault.KindOf(err) != fault.Conflict) {
			t.Errorf("%q: %v", fields, err)
		}
		if err != nil {
			continue
		}
		if data, err := b.layer.read("usr/bin/x"); err != nil || string(data) != "other usr/bin/x" {
			t.Errorf("%q %v", data, err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
}
