package seccomp

import (
	"slices"

	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data (include/uapi/linux/seccomp.h).
const (
	offsetNumber = 0
	offsetArch   = 4
	offsetArgs   = 16
)

// label names an instruction by how many were emitted before it. A program is emitted from its end to its start, so that the targets of
// jumps, which only go forward, exist before the jumps.
type label int

// program is BPF code under construction, last instruction first.
type program struct {
	code    []unix.SockFilter
	returns []labelled // the latest copy of each return
}

type labelled struct {
	action Action
	at     label
}

// nearest is the longest distance to a target which a conditional jump may have before detours for both its targets are added:
// offsets are 8 bits wide and each detour moves the other target by one.
const nearest = 253

func (p *program) emit(code uint16, jt, jf uint8, k uint32) label {
	p.code = append(p.code, unix.SockFilter{Code: code, Jt: jt, Jf: jf, K: k})
	return label(len(p.code) - 1)
}

// distance is the offset that the next instruction would need to jump to l.
func (p *program) distance(l label) int { return len(p.code) - 1 - int(l) }

// ret returns the label of an instruction that ends with the action, a new one if the last copy is too far away.
func (p *program) ret(a Action) label {
	for i := range p.returns {
		r := &p.returns[i]
		if r.action != a {
			continue
		}
		if p.distance(r.at) > nearest {
			r.at = p.emit(unix.BPF_RET|unix.BPF_K, 0, 0, uint32(a))
		}
		return r.at
	}
	at := p.emit(unix.BPF_RET|unix.BPF_K, 0, 0, uint32(a))
	p.returns = append(p.returns, labelled{a, at})
	return at
}

// near returns a label with the meaning of l within reach of a conditional jump.
func (p *program) near(l label) label {
	if p.distance(l) <= nearest {
		return l
	}
	if target := p.code[l]; target.Code == unix.BPF_RET|unix.BPF_K {
		return p.emit(target.Code, 0, 0, target.K)
	}
	return p.jump(l)
}

// jump emits an unconditional jump, whose offset is 32 bits wide.
func (p *program) jump(l label) label {
	return p.emit(unix.BPF_JMP|unix.BPF_JA, 0, 0, uint32(p.distance(l)))
}

// branch compares the accumulator with k by op (JEQ, JGT, JGE) and goes to yes or no.
func (p *program) branch(op uint16, k uint32, yes, no label) label {
	if yes == no {
		return yes
	}
	yes, no = p.near(yes), p.near(no)
	return p.emit(unix.BPF_JMP|op|unix.BPF_K, uint8(p.distance(yes)), uint8(p.distance(no)), k)
}

// load puts a word of seccomp_data into the accumulator and falls through to what was emitted before.
func (p *program) load(offset uint32) label {
	return p.emit(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, 0, 0, offset)
}

// condition emits code that goes to yes if c holds and to no otherwise.
func (p *program) condition(c Condition, yes, no label) label {
	switch c.Op {
	case EqualTo:
		return p.masked(c.Arg, ^uint64(0), c.Value, yes, no)
	case NotEqual:
		return p.masked(c.Arg, ^uint64(0), c.Value, no, yes)
	case MaskedEqual:
		return p.masked(c.Arg, c.Mask, c.Value, yes, no)
	case GreaterThan:
		return p.ordered(c, unix.BPF_JGT, yes, no)
	case GreaterOrEqual:
		return p.ordered(c, unix.BPF_JGE, yes, no)
	case LessThan:
		return p.ordered(c, unix.BPF_JGE, no, yes)
	case LessOrEqual:
		return p.ordered(c, unix.BPF_JGT, no, yes)
	}
	return no // check has refused other operators; should it ever not, the rule does not match
}

// masked tests argument&mask == value, a half at a time; a half without mask bits is not looked at.
func (p *program) masked(arg uint8, mask, value uint64, yes, no label) label {
	at := yes
	for half := range uint32(2) { // the low half is tested last, so it is emitted first
		m, v := uint32(mask>>(32*half)), uint32(value>>(32*half))
		if m == 0 {
			continue
		}
		next := p.branch(unix.BPF_JEQ, v, at, no)
		if next == at { // yes and no are one place: there is nothing to test
			continue
		}
		if m != ^uint32(0) {
			p.emit(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, 0, 0, m)
		}
		at = p.load(argument(arg, half))
	}
	return at
}

// ordered tests argument > value (JGT) or argument >= value (JGE): the high halves decide unless they are equal.
func (p *program) ordered(c Condition, op uint16, yes, no label) label {
	if yes == no {
		return yes
	}
	high, low := uint32(c.Value>>32), uint32(c.Value)
	p.branch(op, low, yes, no)
	at := p.load(argument(c.Arg, 0))
	at = p.branch(unix.BPF_JEQ, high, at, no)
	p.branch(unix.BPF_JGT, high, yes, at)
	return p.load(argument(c.Arg, 1))
}

// argument is the offset of the low (0) or high (1) half of an argument on a little-endian machine.
func argument(arg uint8, half uint32) uint32 { return offsetArgs + 8*uint32(arg) + 4*half }

// finish returns the instructions in the order of their execution.
func (p *program) finish() []unix.SockFilter {
	slices.Reverse(p.code)
	return p.code
}
