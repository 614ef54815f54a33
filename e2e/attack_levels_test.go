package e2e

import "strings"

// difference says how an attack goes at level gvisor, where the kernel that a program inside speaks to is another: refused by that one's words, or no attack
// at all, with the reason. What is not here must be refused as at level container.
type difference struct {
	refused string // regular expression beside the probe's
	absent  string // why there is no such attack
}

// lacks says whether an attack needs what a user does not get at his level: at level gvisor a folder that the host's programs can write too, without root. TestLevels
// holds that such a sandbox does not start.
func (u as) lacks(id string) bool {
	if u.level != "gvisor" {
		return false
	}
	shared := id == "E6b" || id == "E9b" || strings.HasPrefix(id, "E25-4") || strings.HasPrefix(id, "E25-6")
	return atGVisor(id).absent != "" || shared && u.uid != 0
}

// atGVisor finds the difference for an attack by its id.
func atGVisor(id string) difference {
	for reason, ids := range map[string]string{
		"the gateway's sockets are in another network stack than the sandbox's": "A12a A12b A12c A12d C29",
		"a setting of the sandbox's own network stack":                          "A13k E36c",
		"gVisor's network stack has no TCP Fast Open":                           "A14h",
		// The host's kernel sees none of these calls: what they open or change is gVisor's, which is the attacker's own.
		"it is done to gVisor's own kernel": "E18e E18f E21e E21g E21i E21t E22b E22c E22d E22f E23o E23v E24a E26-22 E21x05 E21x06 E21x14 E21x20 E21x21",
		"there is no filter around the command: gVisor's kernel takes its place; TestLevels looks at the other rights": "E29",
		"process 1 can be killed from inside, which ends the attacker's own sandbox; TestLevels does it":               "E28a",
	} {
		if strings.Contains(" "+ids+" ", " "+id+" ") {
			return difference{absent: reason}
		}
	}
	switch {
	case strings.HasPrefix(id, "E25-9"):
		return difference{absent: "ways around the filter of sockets, of which there is none: gVisor's sockets are its own, as E25-40 to E25-63 show"}
	case id == "B4b" || id == "B4c" || id == "A14d": // gVisor hands no ICMP answer to a socket that is not connected: the record alone tells
		return difference{refused: "i/o timeout"}
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
