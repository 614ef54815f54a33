package seccomp

import (
	"cmp"
	"errors"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// x32Bit marks a call of the x32 table on amd64 (__X32_SYSCALL_BIT): the same kernel functions under numbers which a filter written for
// amd64 numbers does not know.
const x32Bit = 0x40000000

// skipped is the number that a call has after a debugger cancelled it, or that a program uses to ask for nothing. No table has it.
const skipped = ^uint32(0)

// MaxInstructions is the longest filter that the kernel takes (BPF_MAXINSNS).
const MaxInstructions = 4096

// Compile makes the filter for one architecture. It refuses a profile with a name that no architecture has, with rules that cannot
// match or cannot be reached, and with an action or operator left out: each would be a hole that reads like a wall.
func Compile(profile Profile, arch Arch) ([]unix.SockFilter, error) {
	if arch != AMD64 && arch != ARM64 {
		return nil, errors.New("seccomp: no table of system calls for " + arch.String())
	}
	if !profile.Default.valid() {
		return nil, errors.New("seccomp: the profile has no valid default action")
	}
	uses, err := resolve(profile.Rules, arch)
	if err != nil {
		return nil, err
	}
	p := &program{code: make([]unix.SockFilter, 0, 256), returns: make([]labelled, 0, 8)}
	p.head(p.tree(segments(uses, profile, arch), profile), arch)
	if len(p.code) > MaxInstructions {
		return nil, errors.New("seccomp: the filter has " + strconv.Itoa(len(p.code)) + " instructions, the kernel takes " + strconv.Itoa(MaxInstructions))
	}
	return p.finish(), nil
}

// use says that a rule speaks of a call.
type use struct {
	number uint32
	rule   int
}

// resolve returns who speaks of which number, sorted by number and then by the order of the rules.
func resolve(rules []Rule, arch Arch) ([]use, error) {
	uses := make([]use, 0, 512)
	for i := range rules {
		if err := rules[i].check(); err != nil {
			return nil, errors.New("seccomp: rule " + strconv.Itoa(i) + ": " + err.Error())
		}
		for _, name := range rules[i].Calls {
			number, known := lookup(name, arch)
			if !known {
				return nil, errors.New("seccomp: rule " + strconv.Itoa(i) + ": unknown system call " + strconv.Quote(name))
			}
			if number >= 0 {
				uses = append(uses, use{uint32(number), i})
			}
		}
	}
	slices.SortFunc(uses, func(a, b use) int {
		return cmp.Or(cmp.Compare(a.number, b.number), cmp.Compare(a.rule, b.rule))
	})
	for i := 1; i < len(uses); i++ {
		earlier, later := uses[i-1], uses[i]
		if earlier.number == later.number && (earlier.rule == later.rule || len(rules[earlier.rule].When) == 0) {
			return nil, errors.New("seccomp: rule " + strconv.Itoa(later.rule) + " is never reached for " + nameOf(later.number, arch))
		}
	}
	return uses, nil
}

// segment is a range of numbers, up to the start of the next, that are treated alike: by one action or, for one number, by rules.
type segment struct {
	start  uint32
	action Action // if there are no rules
	rules  []use
}

// same says that two neighbours are one range.
func (s *segment) same(next segment) bool {
	return len(s.rules) == 0 && len(next.rules) == 0 && s.action == next.action
}

// segments covers all numbers from 0 to 2^32-1.
func segments(uses []use, profile Profile, arch Arch) []segment {
	standard := profile.Default
	s := make([]segment, 1, 2*len(uses)+4)
	s[0] = segment{action: standard}
	add := func(next segment) {
		if s[len(s)-1].start == next.start { // the default, added after the number before, does not reach as far as here
			s = s[:len(s)-1]
		}
		if len(s) == 0 || !s[len(s)-1].same(next) {
			s = append(s, next)
		}
	}
	for i := 0; i < len(uses); {
		j := i + 1
		for j < len(uses) && uses[j].number == uses[i].number {
			j++
		}
		next := segment{start: uses[i].number, rules: uses[i:j]}
		if first := &profile.Rules[uses[i].rule]; len(first.When) == 0 {
			next = segment{start: next.start, action: first.Action}
		}
		add(next)
		add(segment{start: uses[i].number + 1, action: standard})
		i = j
	}
	if arch == AMD64 {
		add(segment{start: x32Bit, action: KillProcess})
		add(segment{start: skipped, action: standard})
	}
	return s
}

// tree emits a binary search over the segments: the kernel runs the filter on every call that it cannot answer from its cache.
func (p *program) tree(s []segment, profile Profile) label {
	if len(s) == 1 {
		return p.leaf(s[0], profile)
	}
	mid := len(s) / 2
	right := p.tree(s[mid:], profile)
	left := p.tree(s[:mid], profile)
	return p.branch(unix.BPF_JGE, s[mid].start, right, left)
}

// leaf emits what is done with one segment.
func (p *program) leaf(s segment, profile Profile) label {
	if len(s.rules) == 0 {
		return p.ret(s.action)
	}
	next := p.ret(profile.Default)
	for _, u := range slices.Backward(s.rules) {
		rule := &profile.Rules[u.rule]
		failed, passed := next, p.ret(rule.Action)
		for _, c := range slices.Backward(rule.When) {
			passed = p.condition(c, passed, failed)
		}
		next = passed
	}
	return next
}

// head emits the start of the filter, which leads to root: the architecture decides first, because it says what the number means.
func (p *program) head(root label, arch Arch) {
	kill := p.ret(KillProcess)
	if p.distance(root) != 0 {
		p.jump(root)
	}
	number := p.load(offsetNumber)
	p.branch(unix.BPF_JEQ, uint32(arch), number, kill)
	p.load(offsetArch)
}
