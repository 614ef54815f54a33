package confine

import (
	"fmt"
	"strings"
	"testing"
)

const good = "Name:\tx\nUid:\t65534\t65534\t65534\t65534\nGid:\t65534\t65534\t65534\t65534\nGroups:\t \nCapInh:\t0000000000000000\n" +
	"CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\n" +
	"NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n"

// TestCheck changes one thing at a time in the state of a confined thread; each must be noticed.
func TestCheck(t *testing.T) {
	for _, c := range []struct {
		name, old, new string
		user           bool   // the process was not started by root
		want           string // "" is accepted
	}{
		{name: "as meant"},
		{name: "as meant for a user", user: true},
		{name: "root thread", old: "Uid:\t65534\t65534\t65534\t65534", new: "Uid:\t0\t0\t0\t0", want: "users"},
		{name: "saved user", old: "Uid:\t65534\t65534\t65534\t65534", new: "Uid:\t65534\t65534\t0\t65534", want: "users"},
		{name: "file system user", old: "Uid:\t65534\t65534\t65534\t65534", new: "Uid:\t65534\t65534\t65534\t0", want: "users"},
		{name: "group", old: "Gid:\t65534", new: "Gid:\t0", want: "groups"},
		{name: "supplementary groups", old: "Groups:\t ", new: "Groups:\t0 4", want: "supplementary"},
		{name: "supplementary groups of a user", old: "Groups:\t ", new: "Groups:\t4 27", user: true},
		{name: "permitted", old: "CapPrm:\t0000000000000000", new: "CapPrm:\t0000000000200000", want: "capabilities 0x200000"},
		{name: "effective of a user", old: "CapEff:\t0000000000000000", new: "CapEff:\t0000000000000001", user: true, want: "capabilities"},
		{name: "inheritable", old: "CapInh:\t0000000000000000", new: "CapInh:\t0000000000000001", want: "capabilities"},
		{name: "ambient", old: "CapAmb:\t0000000000000000", new: "CapAmb:\t0000000000000001", want: "capabilities"},
		{name: "bounding of a user", old: "CapBnd:\t0000000000000000", new: "CapBnd:\t000001ffffffffff", user: true},
		{name: "no_new_privs", old: "NoNewPrivs:\t1", new: "NoNewPrivs:\t0", want: "no_new_privs"},
		{name: "no filter", old: "Seccomp:\t2", new: "Seccomp:\t0", want: "seccomp mode 0"},
		{name: "only the filter from before", old: "Seccomp_filters:\t1", new: "Seccomp_filters:\t0", want: "0 seccomp filters"},
		{name: "line missing", old: "CapEff:\t0000000000000000\n", new: "", want: `no line "CapEff"`},
		{name: "line twice", old: "Name:\tx\n", new: "Seccomp:\t2\n", want: "two lines"},
		{name: "not a number", old: "NoNewPrivs:\t1", new: "NoNewPrivs:\tyes", want: "NoNewPrivs"},
		{name: "two numbers", old: "Seccomp:\t2", new: "Seccomp:\t2 2", want: "want 1"},
		{name: "three users", old: "Uid:\t65534\t65534\t65534\t65534", new: "Uid:\t65534\t65534\t65534", want: "want 4"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := strings.Replace(good, c.old, c.new, 1)
			s, err := new(statusReader).parse([]byte(text))
			if err == nil {
				err = (&plan{root: !c.user, uid: 65534, gid: 65534}).check(s)
			}
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

// FuzzParseStatus holds that what is accepted has the state that is reported: written out and read again it is the same.
func FuzzParseStatus(f *testing.F) {
	f.Add(good)
	f.Add(strings.Replace(good, "Groups:\t ", "Groups:\t4 24 27", 1))
	f.Add(strings.Replace(good, "Seccomp_filters:\t1\n", "", 1))
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := new(statusReader).parse([]byte(text))
		if err != nil {
			return
		}
		again, err := new(statusReader).parse([]byte(format(s)))
		if err != nil || fmt.Sprint(again) != fmt.Sprint(s) {
			t.Errorf("%+v became %+v (%v)", s, again, err)
		}
	})
}

func format(s status) string {
	list := func(n []int) string { return strings.Trim(fmt.Sprint(n), "[]") }
	text := fmt.Sprintf("Uid: %s\nGid: %s\nGroups: %s\nCapInh: %x\nCapPrm: %x\nCapEff: %x\nCapBnd: %x\nCapAmb: %x\nNoNewPrivs: %d\nSeccomp: %d\n",
		list(s.uids[:]), list(s.gids[:]), list(s.groups), s.inheritable, s.permitted, s.effective, s.bounding, s.ambient, s.noNewPrivs, s.seccomp)
	if s.filters >= 0 {
		text += fmt.Sprintf("Seccomp_filters: %d\n", s.filters)
	}
	return text
}

func TestMissing(t *testing.T) {
	for version, want := range map[int]int{0: 1, 1: 1, 2: 1, 3: 0, 7: 0} {
		if got := (&plan{landlock: version}).missing(); len(got) != want {
			t.Errorf("Landlock %d: %q, want %d sentences", version, got, want)
		}
	}
	if r := (Report{}); r.Enforced() != nil {
		t.Errorf("an empty report says %q", r.Enforced())
	}
}
