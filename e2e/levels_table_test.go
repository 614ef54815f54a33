package e2e

import (
	"os"
	"slices"
	"testing"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// able is what a level of isolation is able to do, and what it is made of. What is not said here every level must do.
type able struct {
	level  string
	needs  []string // of the machine, for testenv.Need
	kernel string   // which one programs inside speak to: host, gvisor, guest
	image  bool     // its root is never this machine's system: a tree is made for it
	shares bool     // has folders that the host's programs can write too; where it depends on the user, sharesFor says so
	inside bool     // a command is a process of the host's, too
	mortal bool     // process 1 can be killed from inside, which ends that sandbox
	frozen bool     // a kernel that freezes is noticed by the runner's silence, which takes half a minute
	slow   bool     // a start takes seconds: a selection is made unless SLOW is set
	// helpers are the kinds of process that a sandbox has on the host at least. Each is killed once.
	helpers []string
}

// levels is the table.
func levels() []able {
	ours := []string{"cofferdam", "cofferdam-supervisor"}
	return []able{
		{level: "container", kernel: "host", shares: true, inside: true, helpers: append(slices.Clone(ours), "cofferdam-runner", "command")},
		{level: "gvisor", needs: []string{"gvisor"}, kernel: "gvisor", shares: true, mortal: true, frozen: true, helpers: append(slices.Clone(ours), "runsc", "runsc-gofer", "runsc-sandbox")},
		{level: "vm-emulated", needs: []string{"vm-emulated"}, kernel: "guest", image: true, slow: true, helpers: append(slices.Clone(ours), "command")}, // QEMU is that command
	}
}

// able finds the row of a user's level.
func (u as) able() able {
	for _, a := range levels() {
		if a.level == u.level || u.level == "" && a.level == "container" {
			return a
		}
	}
	panic("no such level: " + u.level)
}

// sharesFor says whether a sandbox of this user's can work in a folder that the host's programs can write too. gVisor needs more than one user id for it.
func (a able) sharesFor(u as) bool { return a.shares && (a.level != "gvisor" || u.uid == 0) }

// lacking says why the level is not for this user on this machine, or nothing.
func (a able) lacking(u as) string {
	if a.kernel != "guest" || u.uid == 0 {
		return ""
	}
	const readWrite = 0o006
	if info, err := os.Stat("/dev/net/tun"); err != nil || info.Mode()&readWrite != readWrite {
		return "a machine's network needs /dev/net/tun, which ordinary users cannot open here"
	}
	return ""
}

// part is one article of the contract.
type part struct {
	name  string
	test  func(*testing.T, *house)
	quick bool // tried at slow levels, too, when SLOW is not set
}

// tryParts holds each user at each level to parts of the contract, several at once. Where the machine lacks what a level needs, it is skipped.
func tryParts(t *testing.T, parts []part) {
	t.Helper()
	testenv.Need(t, "userns")
	for _, a := range levels() {
		for _, u := range users() {
			t.Run(a.level+"/"+u.name, func(t *testing.T) {
				t.Parallel()
				u.level = a.level
				own := u.furnished(t)
				for _, p := range parts {
					if a.slow && !p.quick && os.Getenv("SLOW") == "" {
						continue
					}
					t.Run(p.name, func(t *testing.T) { p.test(t, newHouse(t, own)) })
				}
			})
		}
	}
}
