package pack

import (
	"encoding/binary"
	"fmt"
)

// apply makes an object of its base and a difference: two sizes, then pieces of the base and pieces of its own (gitformat-pack, "Deltified representation").
func apply(base, change []byte, most int64) ([]byte, error) {
	damaged := fmt.Errorf("%w: a difference does not fit its base", ErrDamaged)
	from, n := binary.Uvarint(change)
	if n <= 0 || from != uint64(len(base)) {
		return nil, damaged
	}
	change = change[n:]
	size, n := binary.Uvarint(change)
	if n <= 0 {
		return nil, damaged
	}
	if size > uint64(most) {
		return nil, ErrTooLarge
	}
	change = change[n:]
	out := make([]byte, 0, size)
	for len(change) > 0 {
		op := change[0]
		change = change[1:]
		var piece []byte
		switch {
		case op&0x80 != 0:
			offset, length, used := copied(op, change)
			if used > len(change) || uint64(offset)+uint64(length) > uint64(len(base)) {
				return nil, damaged
			}
			change, piece = change[used:], base[offset:offset+length]
		case op != 0:
			if int(op) > len(change) {
				return nil, damaged
			}
			piece, change = change[:op], change[op:]
		default:
			return nil, damaged // reserved
		}
		if uint64(len(out)+len(piece)) > size {
			return nil, damaged
		}
		out = append(out, piece...)
	}
	if uint64(len(out)) != size {
		return nil, damaged
	}
	return out, nil
}

// copied reads where in the base a piece is: bits of the operation say which bytes of offset and length follow. used is too large if they do not.
func copied(op byte, b []byte) (offset, length uint32, used int) {
	for bit := range 7 {
		if op&(1<<bit) == 0 {
			continue
		}
		if used >= len(b) {
			return 0, 0, len(b) + 1
		}
		if bit < 4 {
			offset |= uint32(b[used]) << (8 * bit)
		} else {
			length |= uint32(b[used]) << (8 * (bit - 4))
		}
		used++
	}
	if length == 0 {
		length = 0x10000
	}
	return offset, length, used
}
