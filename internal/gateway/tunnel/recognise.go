package tunnel

import "bytes"

// Kind is what the first bytes of a connection are. The zero value is Opaque: neither of the protocols that can be judged.
type Kind uint8

// The kinds.
const (
	Opaque Kind = iota
	Partial
	TLS
	HTTP
)

// maxMethod bounds an HTTP method; the longest registered one, UPDATEREDIRECTREF, has 17 letters.
const maxMethod = 24

// Recognise tells from the first bytes what a client speaks. Partial means that more bytes are needed.
// TLS begins with a handshake record; HTTP with a method and a space. An SSH banner, having no space so early, is Opaque.
func Recognise(first []byte) Kind {
	if len(first) == 0 {
		return Partial
	}
	if first[0] == 0x16 {
		if len(first) > 1 && first[1] != 3 {
			return Opaque
		}
		return TLS
	}
	head := first[:min(len(first), maxMethod+1)]
	if i := bytes.IndexByte(head, ' '); i > 0 {
		head = head[:i]
	} else if len(first) > maxMethod || i == 0 {
		return Opaque
	}
	for _, c := range head {
		if !isMethod(c) {
			return Opaque
		}
	}
	if len(head) == len(first) {
		return Partial
	}
	return HTTP
}

// isMethod accepts what methods are made of in practice: letters and the hyphen of M-SEARCH. The grammar allows more (RFC 9110 §9.1).
func isMethod(c byte) bool {
	return 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || c == '-'
}
