package seccomp

import (
	"sort"
	"strconv"
)

//go:generate go run numbers_gen.go

// call is a line of the table: a name and its number on each architecture, -1 where it does not exist.
type call struct {
	name         string
	amd64, arm64 int16
}

func (c *call) number(arch Arch) int {
	switch arch {
	case AMD64:
		return int(c.amd64)
	case ARM64:
		return int(c.arm64)
	}
	return -1
}

// lookup finds a name in the table, which is sorted. The number is -1 if another architecture has the call and this one has not.
func lookup(name string, arch Arch) (number int, known bool) {
	i := sort.Search(len(calls), func(i int) bool { return calls[i].name >= name })
	if i == len(calls) || calls[i].name != name {
		return -1, false
	}
	return calls[i].number(arch), true
}

// nameOf is for messages.
func nameOf(number uint32, arch Arch) string {
	for i := range calls {
		if n := calls[i].number(arch); n >= 0 && uint32(n) == number {
			return calls[i].name
		}
	}
	return "call " + strconv.FormatUint(uint64(number), 10)
}
