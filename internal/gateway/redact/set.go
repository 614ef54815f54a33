package redact

import (
	"bytes"
	"cmp"
	"slices"
)

// Set finds its entries in bytes. It does not change and is safe for concurrent use. A nil Set finds nothing.
//
// It is the algorithm of Wu and Manber (1994) with blocks of two bytes: most bytes of a text without a find are stepped over in strides of seven.
type Set struct {
	patterns []pattern // longest first
	longest  int
	shift    *[1 << 16]uint8 // by block: how far the window may move, at most stride
	buckets  map[uint16][]int
	first    [256]bool // some pattern begins so
}

// stride is the longest step: no byte of the block that was looked at can be one of the first eight of a find. Four of them are looked at together,
// so that a step need not wait for the one before; that all four are the longest shows in their bits, which is why it must be a power of two less one.
const stride = MinLength - 1

// NewSet returns a Set of the entries that are long enough to be found.
func NewSet(entries []Entry) *Set {
	s := &Set{buckets: map[uint16][]int{}}
	for i, e := range entries {
		if len(e.Value) >= MinLength {
			s.patterns = append(s.patterns, patterns(e, i)...)
		}
	}
	if len(s.patterns) == 0 {
		return nil
	}
	slices.SortStableFunc(s.patterns, func(a, b pattern) int {
		return cmp.Or(cmp.Compare(len(b.text), len(a.text)), bytes.Compare(a.text, b.text), cmp.Compare(a.entry, b.entry))
	})
	s.longest = len(s.patterns[0].text)
	s.shift = new([1 << 16]uint8)
	for i := range s.shift {
		s.shift[i] = stride
	}
	for i, p := range s.patterns {
		s.first[p.text[0]] = true
		for j := range stride {
			b := block(p.text[j], p.text[j+1])
			s.shift[b] = min(s.shift[b], uint8(stride-1-j))
		}
		last := block(p.text[MinLength-2], p.text[MinLength-1])
		s.buckets[last] = append(s.buckets[last], i)
	}
	return s
}

func block(a, b byte) uint16 { return uint16(a)<<8 | uint16(b) }

// hit is a find, or with no pattern the place from which on the bytes may be the beginning of one.
type hit struct {
	at      int
	pattern *pattern
}

// next looks for the first find at or after from.
func (s *Set) next(b []byte, from int) hit {
	shift := s.shift
	for i := from + stride; i < len(b); {
		for i+3*stride < len(b) {
			near, far := b[i-1:i+stride+1], b[i+2*stride-1:i+3*stride+1]
			if shift[block(near[0], near[1])]&shift[block(near[stride], near[stride+1])]&shift[block(far[0], far[1])]&shift[block(far[stride], far[stride+1])] != stride {
				break
			}
			i += 4 * stride
		}
		if i >= len(b) {
			break
		}
		if step := shift[block(b[i-1], b[i])]; step > 0 {
			i += int(step)
			continue
		}
		at := i - MinLength + 1
		for _, k := range s.buckets[block(b[i-1], b[i])] {
			p := &s.patterns[k]
			if bytes.HasPrefix(b[at:], p.text) {
				return hit{at, p}
			}
			if bytes.HasPrefix(p.text, b[at:]) {
				return hit{at: at} // a longer one may be under way, and goes before a shorter one
			}
		}
		i++
	}
	for at := max(from, len(b)-MinLength+1); at < len(b); at++ {
		if s.first[b[at]] && s.begins(b[at:]) {
			return hit{at: at}
		}
	}
	return hit{at: len(b)}
}

// begins says whether some pattern begins with the bytes.
func (s *Set) begins(b []byte) bool {
	return slices.ContainsFunc(s.patterns, func(p pattern) bool { return bytes.HasPrefix(p.text, b) })
}

// Replace replaces all finds in b itself and returns how many there were. A beginning of eight bytes and more at the end, as of a text that
// was cut off, counts as a find.
func (s *Set) Replace(b []byte) int {
	if s == nil {
		return 0
	}
	w := Stream{set: s}
	copy(b, w.next(b, atEnd))
	return w.Count
}

// Text is Replace for a string.
func (s *Set) Text(text string) (string, int) {
	if s == nil || len(text) < MinLength {
		return text, 0
	}
	b := []byte(text)
	n := s.Replace(b)
	if n == 0 {
		return text, 0
	}
	return string(b), n
}

// Find returns the entry that is first found in b, whole; ok is false if there is none.
func (s *Set) Find(b []byte) (entry int, ok bool) {
	if s == nil {
		return 0, false
	}
	w := Stream{set: s}
	w.next(b, atEnd)
	return w.found, w.whole
}
