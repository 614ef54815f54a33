package build

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/fault"
)

var errTest = errors.New("exit status 100")

// withFiles makes a layer of files with contents.
func withFiles(t *testing.T, files map[string]string) *Built {
	t.Helper()
	l, err := newLayer(Options{})
	if err != nil {
		t.Fatal(err)
	}
	for name, contents := range files {
		if err := l.write(name, contents, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	if err := l.stream(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	return build(t, b.Bytes(), Options{})
}

const statusText = `Package: bash
Status: install ok installed
Maintainer: Somebody <s@example.org>
Architecture: amd64
Version: 5.2-1
Description: a shell
 with more lines
 .
 and dots

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: ../evil
Status: install ok installed
Version: 1

Package: zlib1g
Status: install ok installed
Source: zlib (1.2)
Architecture: amd64
Version: 1:1.2+x-1
`

func TestDatabases(t *testing.T) {
	dep5 := "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nLicense: GPL-3+\n text\n\nFiles: x\nLicense: Expat\n"
	for _, c := range []struct {
		name     string
		files    map[string]string
		database string
		packages string
	}{
		{"none", map[string]string{"bin/sh": "x"}, "", ""},
		{"dpkg", map[string]string{"var/lib/dpkg/status": statusText, "usr/share/doc/bash/copyright": dep5}, "dpkg", "bash 5.2-1 amd64 [Expat GPL-3+]; zlib1g 1:1.2+x-1 amd64 [] of zlib"},
		{"distroless", map[string]string{"var/lib/dpkg/status.d/tzdata": "Package: tzdata\nVersion: 2026a\nArchitecture: all\n", "var/lib/dpkg/status.d/tzdata.md5sums": "x  y\n"}, "dpkg", "tzdata 2026a all []"},
		{"apk", map[string]string{"lib/apk/db/installed": "C:Q1x\nP:musl\nV:1.2.5-r1\nA:x86_64\nL:MIT\no:musl\nF:lib\nR:x\n\nP:busybox\nV:1.37\nA:x86_64\no:bb\nL:GPL-2.0-only\n\nP:bad name\nV:1\n"}, "apk", "busybox 1.37 x86_64 [GPL-2.0-only] of bb; musl 1.2.5-r1 x86_64 [MIT]"},
		{"nonsense", map[string]string{"var/lib/dpkg/status": "\x00\xff\n:\n: :\n \n", "lib/apk/db/installed": ":::\n\n\n"}, "apk", ""},
	} {
		b := withFiles(t, c.files)
		var list []string
		for _, p := range b.Packages {
			one := p.Name + " " + p.Version + " " + p.Architecture + " [" + strings.Join(p.Licences, " ") + "]"
			if p.Source != "" {
				one += " of " + p.Source
			}
			list = append(list, one)
		}
		if got := strings.Join(list, "; "); got != c.packages || b.Database != c.database {
			t.Errorf("%s: %q, %q", c.name, b.Database, got)
		}
	}
}

func TestSBOM(t *testing.T) {
	b := withFiles(t, map[string]string{"var/lib/dpkg/status": statusText, "etc/os-release": "NAME=x\nID=\"ubuntu\"\n"})
	one, err := b.SBOM("box")
	if err != nil {
		t.Fatal(err)
	}
	if two, err := b.SBOM("box"); err != nil || !bytes.Equal(one, two) {
		t.Error("two documents of one image differ", err)
	}
	var doc spdxDocument
	d := json.NewDecoder(bytes.NewReader(one))
	d.DisallowUnknownFields()
	if err := d.Decode(&doc); err != nil {
		t.Fatal(err)
	}
	if doc.Version != "SPDX-2.3" || len(doc.Packages) != 3 || len(doc.Relationships) != 3 || !strings.HasPrefix(doc.Namespace, "https://spdx.org/spdxdocs/") {
		t.Errorf("%s", one)
	}
	if got := doc.Packages[2].Refs[0].Locator; got != "pkg:deb/ubuntu/zlib1g@1%3A1.2%2Bx-1?arch=amd64" {
		t.Error(got)
	}
	for _, p := range doc.Packages {
		if p.ID == "" || p.Name == "" || p.Download == "" || p.LicenceConcluded == "" || p.LicenceDeclared == "" || p.Copyright == "" {
			t.Errorf("%+v lacks what SPDX requires", p)
		}
	}
}

func TestLicenceExpressions(t *testing.T) {
	for list, want := range map[string]string{"": noAssertion, "Expat": "MIT", "GPL-2+,Expat,Expat": "GPL-2.0-or-later AND MIT", "Expat,public-domain": noAssertion} {
		var names []string
		if list != "" {
			names = strings.Split(list, ",")
		}
		if got := expression(names); got != want {
			t.Errorf("%s: %s", list, got)
		}
	}
}

// deb adds what a package holds, as from its archive.
func deb(t *testing.T, l *layer, name string, headers ...tar.Header) error {
	t.Helper()
	return l.addTar(t.Context(), bytes.NewReader(archive(t, headers...)), name)
}

func TestPackagesMeet(t *testing.T) {
	l, err := newLayer(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	l.owners, l.replaces = map[string][]string{}, map[string][]string{"new": {"old"}, "older": nil}
	for _, step := range []struct {
		name    string
		headers []tar.Header
		kind    fault.Kind
		ok      bool
	}{
		{"libc", []tar.Header{folder("./lib/"), regular("./lib/libc.so"), regular("./usr/lib/x"), hard("./lib/again", "./lib/libc.so")}, 0, true},
		{"tool", []tar.Header{folder("./bin/"), regular("./bin/tool"), pointer("./usr/bin/tool", "/bin/tool")}, 0, true}, // the link would be one to itself
		{"dirs", []tar.Header{folder("./"), folder("./usr/lib/")}, 0, true},
		{"old", []tar.Header{regular("./usr/bin/moved")}, 0, true},
		{"new", []tar.Header{regular("./usr/bin/moved")}, 0, true},
		{"old", []tar.Header{regular("./usr/bin/moved")}, 0, true}, // in the other order the same
		{"thief", []tar.Header{regular("./bin/tool")}, fault.Conflict, false},
	} {
		err := deb(t, l, step.name, step.headers...)
		if (err == nil) != step.ok || (err != nil && fault.KindOf(err) != step.kind) {
			t.Errorf("%s: %v", step.name, err)
		}
	}
	if got := l.owners["usr/lib"]; !slices.Equal(got, []string{"libc", "dirs"}) || len(l.owners[""]) != 0 {
		t.Errorf("usr/lib is in the packages %q", got)
	}
	for name, owner := range map[string]string{"usr/lib/libc.so": "libc", "usr/lib/again": "libc", "usr/bin/tool": "tool", "usr/bin/moved": "new"} {
		if n := l.nodes[name]; n == nil || n.kind != file || n.owner != owner {
			t.Errorf("%s: %+v", name, n)
		}
	}
}

func TestFinish(t *testing.T) {
	l, err := newLayer(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	l.owners, l.replaces = map[string][]string{}, map[string][]string{}
	if err := deb(t, l, "base", regular("bin/dash"), regular("usr/bin/mawk"), regular("usr/share/man/x"), regular("usr/share/ca-certificates/m/a.crt"), folder("usr/lib/ssl/"),
		folder("var/run/"), regular("usr/share/debianutils/shells"), regular("etc/app.conf")); err != nil {
		t.Fatal(err)
	}
	p := Package{Name: "base", Version: "1", Architecture: "amd64", stanza: "Package: base\nStatus: install ok installed\nVersion: 1\n", conffiles: []string{"remove-on-upgrade", "/etc/app.conf"}, files: l.names()}
	if err := errors.Join(l.finish(Recipe{Exclude: []string{"/usr/share/man"}}, []Package{p}), l.check()); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"bin": "usr/bin", "usr/bin/sh": "dash", "usr/bin/awk": "/etc/alternatives/awk", "var/run": "/run", "usr/lib/ssl/cert.pem": "/etc/ssl/certs/ca-certificates.crt"} {
		if n := l.nodes[name]; n == nil || n.kind != symlink || n.target != want {
			t.Errorf("%s: %+v", name, n)
		}
	}
	for name, want := range map[string]string{
		"etc/passwd": "root:*:0:0", "etc/ssl/certs/ca-certificates.crt": "usr/share/ca-certificates/m/a.crt\n", "etc/shells": "usr/share/debianutils/shells",
		"var/lib/dpkg/status": "Conffiles:\n /etc/app.conf ", "var/lib/dpkg/info/base.list": "/usr/share/man/x\n",
	} {
		if data, err := l.read(name); err != nil || !strings.Contains(string(data), want) {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
	if n := l.nodes["tmp"]; n == nil || n.mode != 0o1777 {
		t.Errorf("tmp: %+v", n)
	}
	if l.has("usr/share/man") || l.has("usr/share/man/x") {
		t.Error("what the recipe leaves out is there")
	}
	if _, n := l.find("bin/awk"); n == nil || n.kind != file {
		t.Errorf("bin/awk leads to %+v", n)
	}
	_ = l.newest()
	if err := l.stream(t.Context(), io.Discard); err != nil {
		t.Error(err)
	}
}
