package e2e

import (
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
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
	return u.differs(id).absent != "" || u.level == "gvisor" && u.uid != 0 && listed("E6b E9b E40f E25-4* E25-6*", id)
}

// differs finds the difference for an attack at the user's level.
func (u as) differs(id string) difference {
	switch u.level {
	case "gvisor":
		return atGVisor(id)
	case "vm-emulated":
		return inMachine(id)
	}
	return difference{}
}

// listed says whether an id is among those of a list of patterns.
func listed(ids, id string) bool {
	return slices.ContainsFunc(strings.Fields(ids), func(pattern string) bool {
		matches, err := path.Match(pattern, id)
		return matches && err == nil
	})
}

// absentInMachine are the attacks that the levels of virtual machines do not have, by reason.
func absentInMachine() map[string]string {
	return map[string]string{
		"the gateway's sockets are in another network stack than the sandbox's":       "A12a A12b A12c A12d C29",
		"the machine's users are its own: no user of the host's can become one":       "E18e",
		"a setting of the machine's own network stack":                                "E36c",
		"no folder can be written by the host's programs while a sandbox works in it": "E6b E9b E25-4* E25-6* E25-9[a-y] E40f",
		"the root is never this machine's system, so its directories are not seen":    "E25-3* E25-8*",
	}
}

// inMachine finds the difference for an attack at the levels of virtual machines.
func inMachine(id string) difference {
	for reason, ids := range absentInMachine() {
		if listed(ids, id) {
			return difference{absent: reason}
		}
	}
	switch {
	case listed("B4b B4c A14d", id): // to a group there is no ICMP answer over a cable (RFC 1122, 3.2.2): the record alone tells
		return difference{refused: "i/o timeout"}
	case id == "A14f": // what the room answers arrives as of a port
		return difference{refused: "connection refused"}
	}
	return difference{}
}

// absentAtGVisor are the attacks that level gvisor does not have, by reason.
func absentAtGVisor() map[string]string {
	return map[string]string{
		"the gateway's sockets are in another network stack than the sandbox's": "A12a A12b A12c A12d C29",
		"a setting of the sandbox's own network stack":                          "A13k E36c",
		"gVisor's network stack has no TCP Fast Open":                           "A14h",
		// The host's kernel sees none of these calls: what they open or change is gVisor's, which is the attacker's own.
		"it is done to gVisor's own kernel": "E18e E18f E21e E21g E21i E21t E22b E22c E22d E22f E23o E23v E24a E26-22 E21x05 E21x06 E21x14 E21x20 E21x21",
		"there is no filter around the command: gVisor's kernel takes its place; TestLevels looks at the other rights":      "E29",
		"process 1 can be killed from inside, which ends the attacker's own sandbox; TestLevels does it":                    "E28a",
		"ways around the filter of sockets, of which there is none: gVisor's sockets are its own, as E25-40 to E25-63 show": "E25-9*",
	}
}

// atGVisor finds the difference for an attack by its id.
func atGVisor(id string) difference {
	for reason, ids := range absentAtGVisor() {
		if listed(ids, id) {
			return difference{absent: reason}
		}
	}
	switch {
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
			u := users()[0]
			u.level = a.level
			u = u.furnished(t)
			s := &suite{newFindings(), newWorld(t)}
			t.Cleanup(s.findings.publish)
			few := a.slow && os.Getenv("SLOW") == ""
			if few {
				t.Run("few", func(t *testing.T) { s.try(t, u, fewProbes()) })
			}
			for _, b := range batches() {
				if !few && slices.Contains([]string{"egress", "empty", "kernel", "view"}, b.name) {
					t.Run(b.name, func(t *testing.T) { s.try(t, u, b) })
				}
			}
			for _, x := range scenes() {
				if !u.lacks(x.id) && !gatewayAlone(x.id) && (!few || listed(fewScenes, x.id)) {
					t.Run(x.id, func(t *testing.T) { s.play(t, u, x) })
				}
			}
		})
	}
}

// At a level at which a start takes seconds, some of each kind stand for all, unless SLOW is set: as many scripts as one sandbox makes in half a minute, and what has to be looked at from outside.
const (
	fewScripts = "A2 A10c A14[ag] A13[ad] A22 B15a E25a A1[ab] A26a E29 E12[ahn] E18[ac] E19a E20a E21[at] E21s2 E21x01 E22[ag] E23[dfm] E24[ab] E26-0[027] E26r E27a E28a " +
		"D15a E1[cd] E30[be] E32[ac] E33 E36a E37a E40[ab] E13"
	fewScenes = "E28c E9 E40h E40i R5"
)

// fewProbes are those scripts as one batch.
func fewProbes() batch {
	few := batch{name: "few", flags: openDoors(), allowed: allowedHits, files: linkTraps}
	for _, b := range batches() {
		few.probes = append(few.probes, slices.DeleteFunc(b.probes, func(p probe) bool { return !listed(fewScripts, p.id) })...)
	}
	return few
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
	for _, level := range []map[string]string{absentAtGVisor(), absentInMachine(), {"one of a few": fewScripts, "one of a few scenes": fewScenes}} {
		for reason, ids := range level {
			for id := range strings.FieldsSeq(ids) {
				if !slices.ContainsFunc(slices.Collect(maps.Keys(known)), func(k string) bool { return listed(id, k) }) {
					t.Errorf("left out for %q: %s, which there is not", reason, id)
				}
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

// absentTables say what is left out at which level.
func absentTables() string {
	var b strings.Builder
	section := func(title, text string, absent map[string]string, more string) {
		b.WriteString("## " + title + "\n\n" + text + "\n\n| attacks | why |\n|---|---|\n")
		for _, reason := range slices.Sorted(maps.Keys(absent)) {
			b.WriteString("| " + strings.NewReplacer("*", "…", "[a-y]", "a…y").Replace(absent[reason]) + " | " + reason + " |\n")
		}
		b.WriteString(more + "\n")
	}
	section("What level gvisor does not have", "These attacks are left out there; all others are refused there too, some in gVisor's own words.", absentAtGVisor(),
		"| E6b, E9b, E25-4…, E25-6…, E40f, as an ordinary user | a folder that the host's programs can write too is not to be had there |\n")
	section("What level vm-emulated does not have", "These attacks are left out there; all others are refused there too. The machine's own walls are attacked by `TestVM…`, `TestTaken…` (`internal/isolation/vm`) and `TestLevels` besides.", absentInMachine(), "")
	return b.String()
}
