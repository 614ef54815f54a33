package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// needle is one form of a secret.
type needle struct {
	name string
	text []byte
}

// needles are the forms in which secrets are searched for: as they are, parts of them, in hexadecimal, in base64 at each of the three offsets, URL- and JSON-escaped.
func needles(secrets map[string]string) []needle {
	var all []needle
	add := func(name, text string) {
		if len(text) >= 12 {
			all = append(all, needle{name, []byte(text)})
		}
	}
	for name, secret := range secrets {
		for line := range strings.Lines(secret) { // a key in PEM has many
			add(name+", a line", strings.TrimSpace(line))
		}
		if len(secret) < 400 {
			add(name+", its middle", secret[len(secret)/2-8:len(secret)/2+8])
			add(name+", its end", secret[len(secret)-16:])
		}
		lower := hex.EncodeToString([]byte(secret))
		add(name+" in hexadecimal", lower)
		add(name+" in hexadecimal", strings.ToUpper(lower))
		add(name+" in a query", url.QueryEscape(secret))
		add(name+" in a path", url.PathEscape(secret))
		quoted, _ := json.Marshal(secret) // a string always encodes
		add(name+" in JSON", string(quoted[1:len(quoted)-1]))
		for before := range 3 {
			for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
				text := encoding.EncodeToString(append(make([]byte, before), secret...))
				add(name+" in base64", text[(before*8+5)/6:(before+len(secret))*8/6]) // what does not depend on what stands around it
			}
		}
	}
	return all
}

// find returns what of the needles is in some bytes.
func find(all []needle, data []byte) (names []string) {
	for _, n := range all {
		if i := bytes.Index(data, n.text); i >= 0 {
			names = append(names, n.name)
		}
	}
	return names
}

// clear fails if any needle is in some bytes.
func (h *house) clear(all []needle, where string, data []byte) {
	h.t.Helper()
	for _, n := range all {
		if i := bytes.Index(data, n.text); i >= 0 {
			h.t.Errorf("%s has %s: %q", where, n.name, data[max(0, i-60):min(len(data), i+len(n.text)+60)])
		}
	}
}

// clearTree fails if any needle is in some file below a directory, and returns how many files there are. skip leaves files out.
func (h *house) clearTree(all []needle, dir string, skip func(path string) bool) int {
	h.t.Helper()
	files := 0
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || skip != nil && skip(path) {
			return err
		}
		data, err := os.ReadFile(path)
		files++
		h.clear(all, path, data)
		return err
	})
	if err != nil {
		h.t.Error(err)
	}
	return files
}

// TestNeedles: the search finds a secret in each form in which a program writes it.
func TestNeedles(t *testing.T) {
	const secret = `tok-CANARY-needles-5f1c9e77/+&"<%=a2b44d0e`
	all := needles(map[string]string{"it": secret, "other": "quite another one, which is not there"})
	for name, form := range written(secret) {
		if found := find(all, []byte("some text before; "+form+" and after")); len(found) == 0 || strings.HasPrefix(found[0], "other") {
			t.Errorf("%s: found %q in %s", name, found, form)
		}
	}
	for _, text := range []string{secret[len(secret)/2-8:], secret[len(secret)-16:]} {
		if len(find(all, []byte(text))) == 0 {
			t.Errorf("the part %q is not found", text)
		}
	}
	if found := find(all, []byte("tok-PLACEHOLDER-0000000000000000000000000000")); len(found) > 0 {
		t.Errorf("found %q where nothing is", found)
	}
}
