package build

import (
	"errors"
	"strings"
)

// stanza is one paragraph of a Debian control file (deb822(5)), in the order of its fields.
type stanza []field

type field struct{ name, value string }

// get returns a field's value; names are the same in any case.
func (s stanza) get(name string) string {
	for _, f := range s {
		if strings.EqualFold(f.name, name) {
			return f.value
		}
	}
	return ""
}

// parseStanzas reads paragraphs. Lines that are neither fields nor their continuations are passed over: a record that is damaged says less, and no more.
func parseStanzas(data []byte) []stanza {
	var all []stanza
	var now stanza
	end := func() {
		if len(now) > 0 {
			all = append(all, now)
		}
		now = nil
	}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimRight(line, "\r\n")
		switch {
		case strings.TrimSpace(line) == "":
			end()
		case line[0] == ' ' || line[0] == '\t':
			if len(now) > 0 {
				now[len(now)-1].value += "\n" + line
			}
		case line[0] != '#':
			if name, value, ok := strings.Cut(line, ":"); ok {
				now = append(now, field{name, strings.TrimSpace(value)})
			}
		}
	}
	end()
	return all
}

// packaged reads what is of interest of a package.
func (s stanza) packaged() (Package, error) {
	p := Package{
		Name: s.get("Package"), Version: s.get("Version"), Architecture: s.get("Architecture"),
		Maintainer: s.get("Maintainer"), Homepage: s.get("Homepage"), sameArch: s.get("Multi-Arch") == "same",
	}
	p.Source, _, _ = strings.Cut(s.get("Source"), " ")
	if !packageName.MatchString(p.Name) || p.Version == "" || strings.ContainsAny(p.Version+p.Architecture, " \n/") {
		return Package{}, errors.New("the description names no package and version")
	}
	for replaced := range strings.SplitSeq(s.get("Replaces"), ",") {
		if name := strings.Fields(replaced); len(name) > 0 {
			p.replaces = append(p.replaces, strings.TrimSuffix(name[0], ":any"))
		}
	}
	return p, nil
}

// installed is the paragraph as dpkg's status file has it.
func (s stanza) installed() string {
	var b strings.Builder
	for i, f := range s {
		if f.name == "Status" || f.name == "Conffiles" {
			continue
		}
		b.WriteString(f.name + ":")
		if !strings.HasPrefix(f.value, "\n") && f.value != "" {
			b.WriteString(" ")
		}
		b.WriteString(f.value + "\n")
		if i == 0 {
			b.WriteString("Status: install ok installed\n")
		}
	}
	return b.String()
}
