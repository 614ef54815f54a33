package wire

import (
	"bytes"
	"crypto/sha1"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	idA  = "1111111111111111111111111111111111111111"
	idB  = "2222222222222222222222222222222222222222"
	none = "0000000000000000000000000000000000000000"
)

// lines makes pkt-lines; "" is a flush.
func lines(all ...string) string {
	var b []byte
	for _, one := range all {
		if one == "" {
			b = AppendFlush(b)
		} else {
			b = AppendLine(b, one)
		}
	}
	return string(b)
}

func TestReadPush(t *testing.T) {
	long := idA + strings.Repeat("1", 24)
	many := []string{}
	for i := range maxCommands + 1 {
		many = append(many, fmt.Sprintf("%s %s refs/heads/b%d", none, idA, i))
	}
	for _, c := range []struct {
		name, in string
		err      error
		out      string // commands, options
	}{
		{"probe", "0000", nil, ""},
		{"one", lines(idA+" "+idB+" refs/heads/main\x00 report-status side-band-64k agent=git/2", ""), nil, "refs/heads/main"},
		{"line break at its end", lines(idA+" "+idB+" refs/heads/main\x00report-status\n", ""), nil, "refs/heads/main"},
		{"two", lines(idA+" "+idB+" refs/heads/a\x00", none+" "+idB+" refs/tags/v1\n", ""), nil, "refs/heads/a refs/tags/v1"},
		{"deleted already", lines(none+" "+none+" refs/heads/a", ""), nil, "refs/heads/a"},
		{"no capabilities", lines(idA+" "+idB+" refs/heads/a", ""), nil, "refs/heads/a"},
		{"shallow first", lines("shallow "+idA, idA+" "+idB+" refs/heads/a", ""), nil, "refs/heads/a"},
		{"sha256", lines(long+" "+long+" refs/heads/a\x00object-format=sha256", ""), nil, "refs/heads/a"},
		{"options", lines(idA+" "+idB+" refs/heads/a\x00push-options", "", "ci.skip", "x=y z", ""), nil, "refs/heads/a ci.skip x=y z"},

		{"nothing", "", io.ErrUnexpectedEOF, ""},
		{"no flush", lines(idA + " " + idB + " refs/heads/a"), io.ErrUnexpectedEOF, ""},
		{"no options", lines(idA+" "+idB+" refs/heads/a\x00push-options", ""), io.ErrUnexpectedEOF, ""},
		{"a pack at once", "PACK\x00\x00\x00\x02", ErrSyntax, ""},
		{"in the middle of a pack", "\x9d\x02x\x9c\x01\x02", ErrSyntax, ""},
		{"length 3", "0003", ErrSyntax, ""},
		{"delimiter", "0001", ErrSyntax, ""},
		{"signed", lines("push-cert\x00report-status", "certificate version 0.1", "push-cert-end", ""), ErrSigned, ""},
		{"shallow late", lines(idA+" "+idB+" refs/heads/a", "shallow "+idA, ""), ErrSyntax, ""},
		{"only shallow", lines("shallow "+idA, ""), ErrSyntax, ""},
		{"shallow of another format", lines("shallow "+long, idA+" "+idB+" refs/heads/a", ""), ErrDisagree, ""},
		{"ids of another format", lines(long+" "+long+" refs/heads/a", ""), ErrDisagree, ""},
		{"unknown format", lines(idA+" "+idB+" refs/heads/a\x00object-format=md5", ""), ErrDisagree, ""},
		{"upper case", lines(strings.ToUpper(strings.Replace(idA, "1", "a", 1))+" "+idB+" refs/heads/a", ""), ErrDisagree, ""},
		{"twice", lines(idA+" "+idB+" refs/heads/a", idA+" "+none+" refs/heads/a", ""), ErrTwice, ""},
		{"no full name", lines(idA+" "+idB+" main", ""), ErrRefName, ""},
		{"HEAD", lines(idA+" "+idB+" HEAD", ""), ErrRefName, ""},
		{"dots", lines(idA+" "+idB+" refs/heads/../main", ""), ErrRefName, ""},
		{"NUL in the second line", lines(idA+" "+idB+" refs/heads/a\x00", idA+" "+idB+" refs/heads/b\x00x", ""), ErrRefName, ""},
		{"space at its end", lines(idA+" "+idB+" refs/heads/a ", ""), ErrRefName, ""},
		{"two line breaks", lines(idA+" "+idB+" refs/heads/a\n\n", ""), ErrRefName, ""},
		{"too many", lines(append(many, "")...), ErrManyRefs, ""},
		{"too long", lines(slices.Repeat([]string{"shallow " + idA}, 30_000)...), ErrSyntax, ""},
		{"control character in an option", lines(idA+" "+idB+" refs/heads/a\x00push-options", "", "a\x1b[2J", ""), ErrOptionName, ""},
	} {
		const pack = "PACK what follows"
		r := strings.NewReader(c.in + pack)
		if c.err == io.ErrUnexpectedEOF {
			r = strings.NewReader(c.in)
		}
		p, err := ReadPush(r)
		if err != c.err {
			t.Errorf("%s: %v, not %v", c.name, err, c.err)
		}
		if err != nil {
			continue
		}
		var got []string
		for _, one := range p.Commands {
			got = append(got, one.Ref)
		}
		if out := strings.Join(append(got, p.Options...), " "); out != c.out {
			t.Errorf("%s: %q", c.name, out)
		}
		if rest, _ := io.ReadAll(r); string(rest) != pack {
			t.Errorf("%s: what follows is %q", c.name, rest)
		}
	}
}

func TestAppendPush(t *testing.T) {
	in := lines(idA+" "+idB+" refs/heads/a\x00 report-status-v2 side-band-64k push-options push-cert=nonce session-id=x agent=git/2.40", none+" "+idB+" refs/heads/b", "", "o", "")
	p, err := ReadPush(strings.NewReader(in))
	if err != nil {
		t.Fatal(err)
	}
	want := lines(idA+" "+idB+" refs/heads/a\x00 report-status-v2 side-band-64k push-options agent=git/2.40 report-status", none+" "+idB+" refs/heads/b", "", "o", "")
	if got := string(p.Append(nil)); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestValidRef(t *testing.T) {
	for _, name := range []string{"refs/heads/main", "refs/heads/a/b", "refs/for/main", "refs/x", "refs/heads/ü"} {
		if !ValidRef(name) {
			t.Errorf("%q is refused", name)
		}
	}
	for _, name := range []string{
		"", "refs/", "refs", "heads/main", "HEAD", "refs//main", "refs/heads/", "refs/heads/.a", "refs/heads/a.lock", "refs/heads/a.lock/b", "refs/heads/a..b", "refs/heads/a.",
		"refs/heads/a b", "refs/heads/a~1", "refs/heads/a^", "refs/heads/a:b", "refs/heads/a?", "refs/heads/*", "refs/heads/[", `refs/heads/\`, "refs/heads/a@{1}",
		"refs/heads/a\x00", "refs/heads/a\x7f", "refs/heads/a\n", "refs/" + strings.Repeat("a", maxRef),
	} {
		if ValidRef(name) {
			t.Errorf("%q is accepted", name)
		}
	}
}

// FuzzReadPush holds it to this: what is accepted and written anew means the same when it is read again.
func FuzzReadPush(f *testing.F) {
	f.Add([]byte("0000"))
	f.Add([]byte(lines(idA+" "+idB+" refs/heads/main\x00 report-status side-band-64k", "")))
	f.Add([]byte(lines("shallow "+idA, none+" "+idB+" refs/heads/a\x00push-options", idB+" "+none+" refs/tags/b", "", "x", "")))
	f.Fuzz(func(t *testing.T, in []byte) {
		p, err := ReadPush(bytes.NewReader(in))
		if err != nil || len(p.Commands) == 0 {
			return
		}
		again, err := ReadPush(bytes.NewReader(p.Append(nil)))
		if err != nil {
			t.Fatalf("%q: %v", p.Append(nil), err)
		}
		if !slices.Equal(p.Commands, again.Commands) || !slices.Equal(p.Shallow, again.Shallow) || !slices.Equal(p.Options, again.Options) {
			t.Fatalf("%+v\n%+v", p, again)
		}
		for _, c := range p.Commands {
			if !ValidRef(c.Ref) {
				t.Fatalf("%q", c.Ref)
			}
		}
	})
}

// TestOracle gives the same bytes to git itself: a ref that git changes was in what was read, and is set to what was read.
func TestOracle(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("no git")
	}
	repo := filepath.Join(t.TempDir(), "r.git")
	git := func(stdin string, args ...string) string {
		t.Helper()
		cmd := exec.Command("git", args...)
		cmd.Dir, cmd.Stdin = filepath.Dir(repo), strings.NewReader(stdin)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b")
		out, _ := cmd.Output() // a push that git refuses ends with an error
		return string(out)
	}
	git("", "init", "-q", "--bare", repo)
	git("", "-C", repo, "config", "receive.advertisePushOptions", "true")
	tree := strings.TrimSpace(git("", "-C", repo, "mktree"))
	one := strings.TrimSpace(git("one", "-C", repo, "commit-tree", tree))
	two := strings.TrimSpace(git("two", "-C", repo, "commit-tree", tree, "-p", one))
	refs := func() map[string]string {
		all := map[string]string{}
		for line := range strings.Lines(git("", "-C", repo, "for-each-ref", "--format=%(refname) %(objectname)")) {
			name, id, _ := strings.Cut(strings.TrimSpace(line), " ")
			all[name] = id
		}
		return all
	}
	empty := []byte("PACK\x00\x00\x00\x02\x00\x00\x00\x00")
	sum := sha1.Sum(empty)
	empty = append(empty, sum[:]...)
	random := rand.New(rand.NewPCG(1, 2))
	changed := 0
	for i := range 250 {
		git("", "-C", repo, "update-ref", "refs/heads/main", one)
		git("", "-C", repo, "update-ref", "-d", "refs/heads/new")
		before := refs()
		commands := []string{
			one + " " + two + " refs/heads/main\x00 report-status push-options side-band-64k object-format=sha1", none + " " + two + " refs/heads/new",
			"", "option", "",
		}
		if i%5 == 0 {
			commands[0] = one + " " + none + " refs/heads/main\x00 report-status delete-refs"
			commands = append(commands[:2:2], "")
		}
		body := []byte(lines(commands...))
		for range i % 4 { // 0: as it is
			mutate(random, &body)
		}
		p, err := ReadPush(bytes.NewReader(body))
		git(string(append(body, empty...)), "receive-pack", "--stateless-rpc", repo)
		after := refs()
		if err != nil {
			continue // stricter than git: it is refused
		}
		told := map[string]string{}
		for _, c := range p.Commands {
			told[c.Ref] = c.New.String()
		}
		for name, id := range after {
			if before[name] != id {
				changed++
				if told[name] != id {
					t.Errorf("%q: git sets %s to %s, and we read %v", body, name, id, told)
				}
			}
		}
		for name := range before {
			if after[name] == "" && told[name] != none {
				t.Errorf("%q: git deletes %s, and we read %v", body, name, told)
			}
		}
	}
	if changed < 50 {
		t.Errorf("git changed only %d refs: the test does not test", changed)
	}
}

// mutate changes a byte, removes one, doubles one, or exchanges the length of a line.
func mutate(random *rand.Rand, body *[]byte) {
	b := *body
	at := random.IntN(len(b))
	switch random.IntN(4) {
	case 0:
		b[at] = byte(random.IntN(256))
	case 1:
		b = slices.Delete(b, at, at+1)
	case 2:
		b = slices.Insert(b, at, b[at])
	case 3:
		b[at] = "\x00 \n0f/.r"[random.IntN(8)]
	}
	*body = b
}
