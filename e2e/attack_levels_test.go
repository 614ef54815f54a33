package e2e

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// difference says how an attack goes at level gvisor, where the kernel that a program inside speaks to is another: refused by that one's words, or no attack
// at all, with the reason. What is not here must be refused as at level container.
type difference struct {
	refused string // regular expression beside the probe's
	absent  string // why there is no such attack
	more    string // what the probe's script has behind it at this level
}

// lacks says whether an attack needs what a user does not get at his level: at level gvisor a folder that the host's programs can write too, without root. TestLevels
// holds that such a sandbox does not start.
func (u as) lacks(id string) bool {
	if u.level != "gvisor" {
		return false
	}
	shared := id == "E6b" || id == "E9b" || id == "E40f" || strings.HasPrefix(id, "E25-4") || strings.HasPrefix(id, "E25-6")
	return atGVisor(id).absent != "" || shared && u.uid != 0
}

// absentAtGVisor are the attacks that level gvisor does not have, by reason.
func absentAtGVisor() map[string]string {
	return map[string]string{
		"the gateway's sockets are in another network stack than the sandbox's": "A12a A12b A12c A12d C29",
		"a setting of the sandbox's own network stack":                          "A13k E36c",
		"gVisor's network stack has no TCP Fast Open":                           "A14h",
		// The host's kernel sees none of these calls: what they open or change is gVisor's, which is the attacker's own.
		"it is done to gVisor's own kernel": "E18e E18f E21e E21g E21i E21t E22b E22c E22d E22f E23o E23v E24a E26-22 E21x05 E21x06 E21x14 E21x20 E21x21",
		"there is no filter around the command: gVisor's kernel takes its place; TestLevels looks at the other rights": "E29",
		"process 1 can be killed from inside, which ends the attacker's own sandbox; TestLevels does it":               "E28a",
	}
}

// atGVisor finds the difference for an attack by its id.
func atGVisor(id string) difference {
	for reason, ids := range absentAtGVisor() {
		if strings.Contains(" "+ids+" ", " "+id+" ") {
			return difference{absent: reason}
		}
	}
	switch {
	case strings.HasPrefix(id, "E25-9"):
		return difference{absent: "ways around the filter of sockets, of which there is none: gVisor's sockets are its own, as E25-40 to E25-63 show"}
	case id == "B4b" || id == "B4c" || id == "A14d": // gVisor hands no ICMP answer to a socket that is not connected: the record alone tells
		return difference{refused: "i/o timeout"}
	case id == "E26r": // of gVisor's own kernel events
		return difference{more: " 15"}
	case id == "A14f": // nor to ping
		return difference{refused: "temporarily unavailable"}
	}
	for _, family := range []string{"E12", "E21", "E22", "E23", "E24", "E25-", "E26-", "E27"} { // system calls and sockets: gVisor has its own reasons and words
		if strings.HasPrefix(id, family) {
			return difference{refused: "refused after .*: |[Nn]ot permitted|denied|[Ii]nvalid|[Nn]o such|not supported|not implemented|inappropriate|cannot|failed"}
		}
	}
	return difference{}
}

// TestAttackLevels makes the attacks in which the level has a part at each level but the first, as the most powerful user that there is.
func TestAttackLevels(t *testing.T) {
	needsOfAttacks(t)
	for _, a := range levels()[1:] {
		t.Run(a.level, func(t *testing.T) {
			testenv.Need(t, a.needs...)
			if a.image {
				t.Skip("the attacks look for this machine's files and programs, which its root has none of: TestLevels and the level's own tests attack it")
			}
			u := users()[0]
			u.level = a.level
			s := &suite{newFindings(), newWorld(t)}
			t.Cleanup(func() { s.findings.publish(t) })
			for _, b := range batches() {
				if slices.Contains([]string{"egress", "empty", "kernel", "view"}, b.name) {
					t.Run(b.name, func(t *testing.T) { s.try(t, u, b) })
				}
			}
			for _, x := range scenes() {
				if !u.lacks(x.id) && !gatewayAlone(x.id) {
					t.Run(x.id, func(t *testing.T) { s.play(t, u, x) })
				}
			}
		})
	}
}

// gatewayAlone says whether a scene is about the gateway and the records, in which no level has a part; or one of many of a kind, of which the first stand for all.
func gatewayAlone(id string) bool {
	return slices.Contains([]string{"E27f", "E39", "F31", "B10a", "B10b", "R7", "R8"}, id) ||
		strings.HasPrefix(id, "E25-") && !strings.HasSuffix(id, "0") && !strings.HasPrefix(id, "E25-9")
}

// advisory is a hole that somebody's sandbox had, and what of ours tries it.
type advisory struct {
	name, what string
	cases      string // ids of attacks
	tests      string // other tests
}

func advisories() []advisory {
	return []advisory{
		{"CVE-2019-5736 (runc)", "the runtime's program is overwritten through /proc/self/exe", "E32c E32d E40a E40b E40c", ""},
		{"CVE-2024-21626 (runc)", "a directory of the host is left open, or is the working directory", "E37a E37b E40d", "TestLeakedDescriptors, TestLevelsKept"},
		{"CVE-2025-31133, CVE-2025-52565, CVE-2025-52881, CVE-2023-27561, CVE-2019-19921 (runc)", "what is masked, /dev/console, /dev/null and the files of /proc are links that the image or a race has put there", "E12i E12j E32a E32b E40e E40f", ""},
		{"CVE-2021-30465 (runc)", "a mount's target is changed for a link while the sandbox is made", "E40f", "internal/rootfs"},
		{"CVE-2016-9962 (runc)", "a process that enters the sandbox is traced, its files are taken", "E22a E22b E22e E30a E37b", ""},
		{"CVE-2022-0492, CVE-2022-0185 (Linux)", "control groups' release agent; a file system's context, in a user namespace of one's own", "E12n E12o E21a E21t E32e", ""},
		{"CVE-2020-15257 (containerd)", "an abstract socket of the host", "E25a E25-03", ""},
		{"CVE-2026-24834 (Kata Containers)", "the image behind the root file system is written", "E19a E19b E19c E30e E40i", "TestLevels, root"},
		{"CVE-2026-46695 (Boxlite)", "read-only mounts are remounted for writing", "E12e E12f E12g E12h E21x01 E40g E40h", "TestLevels, read-only"},
		{"CVE-2026-46703 (Boxlite)", "an archive writes through a link that it has made", "E9 E6a", "internal/image, internal/workspace, internal/runner/files"},
		{"CVE-2026-47243 (microsandbox)", "links and dots lead out of a folder that is shared", "E1a E1b E1c E13", "TestLevelsKept"},
		{"CVE-2026-1386 (Firecracker)", "the jailer follows a link where it puts files", "E40e E40f", "internal/rootfs, internal/workspace"},
	}
}

// TestAdvisories holds that each attack which the list names exists.
func TestAdvisories(t *testing.T) {
	known := map[string]bool{}
	for _, b := range batches() {
		for _, p := range b.probes {
			known[p.id] = true
		}
	}
	for _, x := range scenes() {
		known[x.id] = true
	}
	for _, a := range advisories() {
		for id := range strings.FieldsSeq(a.cases) {
			if !known[id] {
				t.Errorf("%s names %s, which there is not", a.name, id)
			}
		}
	}
	for reason, ids := range absentAtGVisor() {
		for id := range strings.FieldsSeq(ids) {
			if !known[id] {
				t.Errorf("left out for %q: %s, which there is not", reason, id)
			}
		}
	}
}

func advisoriesTable() string {
	var b strings.Builder
	b.WriteString("## Known holes of others\n\nEach is tried again at every level, in the form that it would have here. A hole in the emulated hardware of a virtual machine monitor (CVE-2026-5747 and its like) has no such form: what is around the monitor has to hold.\n\n| advisory | what it was | attacks below | other tests |\n|---|---|---|---|\n")
	for _, a := range advisories() {
		b.WriteString("| " + a.name + " | " + a.what + " | " + a.cases + " | " + a.tests + " |\n")
	}
	return b.String() + "\n"
}

func atGVisorTable() string {
	var b strings.Builder
	b.WriteString("## What level gvisor does not have\n\nThese attacks are left out there; all others are refused there too, some in gVisor's own words.\n\n| attacks | why |\n|---|---|\n")
	reasons := absentAtGVisor()
	for _, reason := range slices.Sorted(maps.Keys(reasons)) {
		b.WriteString("| " + reasons[reason] + " | " + reason + " |\n")
	}
	b.WriteString("| E25-9… | " + atGVisor("E25-9a").absent + " |\n| E6b, E9b, E25-4…, E25-6…, E40f, as an ordinary user | a folder that the host's programs can write too is not to be had there |\n")
	return b.String() + "\n"
}
