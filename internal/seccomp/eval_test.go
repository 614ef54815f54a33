package seccomp

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// data is struct seccomp_data.
type data struct {
	number uint32
	arch   Arch
	args   [6]uint64
}

func (d data) word(offset uint32) (uint32, error) {
	switch {
	case offset == offsetNumber:
		return d.number, nil
	case offset == offsetArch:
		return uint32(d.arch), nil
	case offset >= offsetArgs && offset < offsetArgs+48 && offset%4 == 0:
		return uint32(d.args[(offset-offsetArgs)/8] >> (32 * ((offset / 4) % 2))), nil
	}
	return 0, fmt.Errorf("load from offset %d", offset)
}

// execute runs a filter as the kernel would. It knows the instructions that Compile emits and those of libseccomp, and counts steps.
func execute(filter []unix.SockFilter, d data) (action Action, steps int, err error) {
	var a uint32
	for pc := 0; pc < len(filter); pc++ {
		steps++
		in := filter[pc]
		taken := false
		switch in.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			if a, err = d.word(in.K); err != nil {
				return 0, steps, err
			}
			continue
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			a &= in.K
			continue
		case unix.BPF_RET | unix.BPF_K:
			return Action(in.K), steps, nil
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(in.K)
			continue
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			taken = a == in.K
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			taken = a > in.K
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			taken = a >= in.K
		default:
			return 0, steps, fmt.Errorf("instruction %d: code %#x", pc, in.Code)
		}
		if taken {
			pc += int(in.Jt)
		} else {
			pc += int(in.Jf)
		}
	}
	return 0, steps, fmt.Errorf("ran off the end")
}

// judge is the meaning of a profile, written down as plainly as possible.
func judge(p Profile, arch Arch, d data) Action {
	if d.arch != arch {
		return KillProcess
	}
	if arch == AMD64 && d.number >= x32Bit && d.number != skipped {
		return KillProcess // x32, and numbers that no table has
	}
	for _, r := range p.Rules {
		for _, name := range r.Calls {
			if n, _ := lookup(name, arch); n >= 0 && uint32(n) == d.number && holds(r.When, d) {
				return r.Action
			}
		}
	}
	return p.Default
}

func holds(when []Condition, d data) bool {
	for _, c := range when {
		arg := d.args[c.Arg]
		ok := false
		switch c.Op {
		case EqualTo:
			ok = arg == c.Value
		case NotEqual:
			ok = arg != c.Value
		case LessThan:
			ok = arg < c.Value
		case LessOrEqual:
			ok = arg <= c.Value
		case GreaterThan:
			ok = arg > c.Value
		case GreaterOrEqual:
			ok = arg >= c.Value
		case MaskedEqual:
			ok = arg&c.Mask == c.Value
		}
		if !ok {
			return false
		}
	}
	return true
}
