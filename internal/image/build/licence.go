package build

import (
	"slices"
	"strings"
)

// licences reads which licences a package's copyright file names, in the words of that file, each once and in order.
func (l *layer) licences(name string) []string {
	data, err := l.read("usr/share/doc/" + name + "/copyright")
	if err != nil {
		return nil // not every package has one of its own
	}
	return licencesOf(data)
}

// licencesOf reads a file in the machine-readable format of Debian's copyright files (DEP-5); others name nothing that a program can rely on.
func licencesOf(data []byte) []string {
	stanzas := parseStanzas(data)
	if len(stanzas) == 0 || !strings.Contains(stanzas[0].get("Format"), "copyright-format") {
		return nil
	}
	var names []string
	for _, s := range stanzas {
		short, _, _ := strings.Cut(s.get("License"), "\n")
		if short = strings.TrimSpace(short); short != "" && len(short) <= 200 && !slices.Contains(names, short) {
			names = append(names, short)
		}
	}
	slices.Sort(names)
	return names
}

// spdxNames are SPDX's names for Debian's short ones, where one stands exactly for the other.
func spdxNames() map[string]string {
	return map[string]string{
		"GPL-1": "GPL-1.0-only", "GPL-1+": "GPL-1.0-or-later", "GPL-2": "GPL-2.0-only", "GPL-2+": "GPL-2.0-or-later", "GPL-3": "GPL-3.0-only", "GPL-3+": "GPL-3.0-or-later",
		"LGPL-2": "LGPL-2.0-only", "LGPL-2+": "LGPL-2.0-or-later", "LGPL-2.1": "LGPL-2.1-only", "LGPL-2.1+": "LGPL-2.1-or-later", "LGPL-3": "LGPL-3.0-only", "LGPL-3+": "LGPL-3.0-or-later",
		"AGPL-3": "AGPL-3.0-only", "AGPL-3+": "AGPL-3.0-or-later", "GFDL-1.3": "GFDL-1.3-only", "GFDL-1.3+": "GFDL-1.3-or-later",
		"Apache-2.0": "Apache-2.0", "MPL-1.1": "MPL-1.1", "MPL-2.0": "MPL-2.0", "Expat": "MIT", "ISC": "ISC", "Zlib": "Zlib", "zlib": "Zlib", "curl": "curl", "CC0-1.0": "CC0-1.0",
		"BSD-2-clause": "BSD-2-Clause", "BSD-3-clause": "BSD-3-Clause", "BSD-4-clause": "BSD-4-Clause", "BSL-1.0": "BSL-1.0", "Unlicense": "Unlicense", "Artistic": "Artistic-1.0",
	}
}

// expression is what SPDX calls a licence expression for a list of names; NOASSERTION if one of them is not known exactly.
func expression(names []string) string {
	known := spdxNames()
	var parts []string
	for _, name := range names {
		spdx, ok := known[name]
		if !ok {
			return noAssertion
		}
		parts = append(parts, spdx)
	}
	if len(parts) == 0 {
		return noAssertion
	}
	slices.Sort(parts)
	return strings.Join(slices.Compact(parts), " AND ")
}
