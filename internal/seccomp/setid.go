package seccomp

import (
	"slices"

	"golang.org/x/sys/unix"
)

// The set-user-id and set-group-id bits of a file's mode, inode(7), and the bit of O_TMPFILE that is not O_DIRECTORY.
const (
	setUserID  = 0o4000
	setGroupID = 0o2000
	tmpfile    = unix.O_TMPFILE &^ unix.O_DIRECTORY
)

// WithoutSetID returns p with one more refusal: no file gets a set-user-id or set-group-id bit, whether it is made with it or given it.
// It is for sandboxes that share a writable folder with the host, where such a file would hand its owner's rights to whoever runs it.
func WithoutSetID(p Profile) Profile {
	var rules []Rule
	refuse := func(calls []string, when ...Condition) {
		rules = append(rules, Rule{Action: Errno(unix.EPERM), Calls: calls, When: when, Reason: "set-id bits on files that the host shares"})
	}
	for _, bit := range []uint32{setUserID, setGroupID} {
		refuse([]string{"chmod", "fchmod", "creat", "mknod"}, IntMasked(1, bit, bit))
		refuse([]string{"fchmodat", "fchmodat2", "mknodat"}, IntMasked(2, bit, bit))
		// Without these flags the mode argument is whatever the register held.
		for _, makes := range []uint32{unix.O_CREAT, tmpfile} {
			refuse([]string{"open"}, IntMasked(1, makes, makes), IntMasked(2, bit, bit))
			refuse([]string{"openat"}, IntMasked(2, makes, makes), IntMasked(3, bit, bit))
		}
	}
	rules = append(rules, Rule{Action: Errno(unix.ENOSYS), Calls: []string{"openat2"}, Reason: "its mode lies in memory, where a filter cannot look; libraries fall back to openat"})
	for _, r := range p.Rules {
		r.Calls = slices.DeleteFunc(slices.Clone(r.Calls), func(call string) bool { return call == "openat2" })
		if len(r.Calls) > 0 {
			rules = append(rules, r)
		}
	}
	p.Rules = rules
	return p
}
