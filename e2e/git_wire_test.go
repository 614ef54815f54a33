package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// zeroID stands for no commit in the commands of a push.
var zeroID = strings.Repeat("0", 40)

// pkt is a text as a pkt-line (gitprotocol-common).
func pkt(text string) string { return fmt.Sprintf("%04x%s", len(text)+4, text) }

// command is one command of a push.
func command(from, to, ref string) string { return from + " " + to + " " + ref }

// pushBody is the body of a push as git sends it: commands, the first with capabilities, a flush, options if there are any, a pack.
func pushBody(pack []byte, options []string, commands ...string) []byte {
	var b bytes.Buffer
	for i, c := range commands {
		if i == 0 {
			c += "\x00 report-status side-band-64k atomic object-format=sha1 agent=attack/1"
			if options != nil {
				c += " push-options"
			}
		}
		b.WriteString(pkt(c))
	}
	b.WriteString("0000")
	for i, o := range options {
		b.WriteString(pkt(o))
		if i == len(options)-1 {
			b.WriteString("0000")
		}
	}
	b.Write(pack)
	return b.Bytes()
}

// gitChange is what a commit changes: files by path, with what is in them.
type gitChange map[string]string

// workshop is a repository of the forge's that it does not serve to anybody: packs are made there.
const workshop = "workshop.git"

// openWorkshop makes it, with what acme/site has.
func (f *forge) openWorkshop() {
	f.t.Helper()
	f.git("", "clone", "-q", "--bare", filepath.Join(f.root, "acme/site.git"), filepath.Join(f.root, workshop))
}

// commit makes a commit in the workshop on a parent, and returns its id.
func (f *forge) commit(change gitChange, parent string) string {
	f.t.Helper()
	var s strings.Builder
	fmt.Fprintf(&s, "commit refs/heads/scratch\ncommitter Ada <ada@example.com> 1700001000 +0000\ndata 6\nchange\nfrom %s\n", parent)
	for _, path := range slices.Sorted(maps.Keys(change)) {
		fmt.Fprintf(&s, "M 100644 inline %s\ndata %d\n%s\n", path, len(change[path]), change[path])
	}
	s.WriteString("\ndone\n")
	cmd := exec.Command("git", "fast-import", "--quiet", "--done", "--force")
	cmd.Dir, cmd.Env, cmd.Stdin = filepath.Join(f.root, workshop), f.environment(), strings.NewReader(s.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		f.t.Fatalf("fast-import: %v: %s\n%s", err, out, s.String())
	}
	return f.git(workshop, "rev-parse", "refs/heads/scratch")
}

// pack makes a pack of what is reachable from some commits and not from others (^ID).
func (f *forge) pack(flags []string, revisions ...string) []byte {
	f.t.Helper()
	cmd := exec.Command("git", append([]string{"pack-objects", "--revs", "--stdout", "-q"}, flags...)...)
	cmd.Dir, cmd.Env, cmd.Stdin = filepath.Join(f.root, workshop), f.environment(), strings.NewReader(strings.Join(revisions, "\n")+"\n")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil || !bytes.HasPrefix(out, []byte("PACK")) {
		f.t.Fatalf("pack-objects %v: %v: %s", revisions, err, errs.String())
	}
	return out
}

// countPack returns a pack with another number of objects in its head than it has.
func countPack(pack []byte, by int) []byte {
	other := bytes.Clone(pack)
	binary.BigEndian.PutUint32(other[8:], binary.BigEndian.Uint32(other[8:])+uint32(by))
	return other
}

// gitBasic is a header with a user's password.
func gitBasic(password string) string {
	return "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("x:"+password))
}

// TestForms hides a secret at every place of an encoding and looks for it there.
func TestForms(t *testing.T) {
	for before := range 7 {
		for after := range 7 {
			encoded := base64.StdEncoding.EncodeToString([]byte("abcdefg"[:before] + gitToken + "hijklmn"[:after]))
			if !slices.ContainsFunc(slices.Collect(maps.Values(forms(gitToken))), func(form string) bool { return len(form) > 20 && strings.Contains(encoded, form) }) {
				t.Errorf("not found with %d before and %d after: %s", before, after, encoded)
			}
		}
	}
}
