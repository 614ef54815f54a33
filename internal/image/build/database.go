package build

import (
	"bytes"
	"cmp"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Where package managers keep their records. Distroless images have a file for each package.
const (
	dpkgStatus    = "var/lib/dpkg/status"
	dpkgStatusDir = "var/lib/dpkg/status.d/"
	apkInstalled  = "lib/apk/db/installed"
)

// database reads which packages a source's own records name. The records are the source's word: nothing is verified by them.
func (l *layer) database() (packages []Package, kind string, err error) {
	var records []byte
	data, err := l.read(dpkgStatus)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, "", err
	}
	records = append(records, data...)
	for _, name := range l.names() {
		if !strings.HasPrefix(name, dpkgStatusDir) || path.Ext(name) == ".md5sums" || l.nodes[name].kind != file {
			continue
		}
		data, err := l.read(name)
		if err != nil {
			return nil, "", err
		}
		records = append(append(records, '\n', '\n'), data...)
	}
	if packages = l.dpkg(records); len(packages) > 0 {
		return packages, "dpkg", nil
	}
	data, err = l.read(apkInstalled)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	return apk(data), "apk", nil
}

func (l *layer) dpkg(records []byte) []Package {
	var packages []Package
	for _, s := range parseStanzas(records) {
		if status := s.get("Status"); status != "" && !strings.HasSuffix(status, " installed") {
			continue
		}
		if p, err := s.packaged(); err == nil {
			p.Licences = l.licences(p.Name)
			packages = append(packages, p)
		}
	}
	return inOrder(packages)
}

// apk reads Alpine's record: one letter, a colon and a value on each line, an empty line between packages.
func apk(data []byte) []Package {
	var packages []Package
	for paragraph := range bytes.SplitSeq(data, []byte("\n\n")) {
		fields := map[string]string{}
		for line := range strings.Lines(string(paragraph)) {
			if key, value, ok := strings.Cut(strings.TrimRight(line, "\r\n"), ":"); ok && len(key) == 1 && fields[key] == "" {
				fields[key] = value
			}
		}
		p := Package{Name: fields["P"], Version: fields["V"], Architecture: fields["A"], Source: fields["o"], Maintainer: fields["m"], Homepage: fields["U"]}
		if p.Source == p.Name {
			p.Source = ""
		}
		if fields["L"] != "" {
			p.Licences = []string{fields["L"]}
		}
		if p.Name != "" && p.Version != "" && !strings.ContainsAny(p.Name+p.Version, " \t/") {
			packages = append(packages, p)
		}
	}
	return inOrder(packages)
}

func inOrder(packages []Package) []Package {
	slices.SortStableFunc(packages, func(a, b Package) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Architecture, b.Architecture), cmp.Compare(a.Version, b.Version))
	})
	return packages
}
