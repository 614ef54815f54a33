package wire

import (
	"io"
	"strings"
)

// Ref is one line of the answer to ls-refs.
type Ref struct {
	ID   ID
	Name string
	// Symbolic is what the ref points to by name, or "".
	Symbolic string
}

// AppendLsRefs appends the question for refs that begin with any of the prefixes, with what symbolic ones point to.
func AppendLsRefs(b []byte, f Format, prefixes ...string) []byte {
	b = AppendLine(b, "command=ls-refs\n")
	if f != SHA1 { // older servers do not know the word
		b = AppendLine(b, "object-format="+f.String()+"\n")
	}
	b = AppendDelimiter(b)
	b = AppendLine(b, "symrefs\n")
	for _, prefix := range prefixes {
		b = AppendLine(b, "ref-prefix "+prefix+"\n")
	}
	return AppendFlush(b)
}

// maxLsRefs bounds the answer.
const maxLsRefs = 64 << 20

// ReadLsRefs reads the answer, and calls each for every ref.
func ReadLsRefs(r io.Reader, f Format, each func(Ref)) error {
	lines := NewReader(r, maxLsRefs)
	for {
		kind, payload, err := lines.Next()
		if err != nil {
			return early(err)
		}
		if kind == Flush {
			return nil
		}
		if kind != Data {
			return ErrSyntax
		}
		parts := strings.Split(string(chomp(payload)), " ")
		id, ok := ParseID(f, []byte(parts[0]))
		if len(parts) < 2 || !ok && parts[0] != "unborn" {
			return ErrSyntax
		}
		ref := Ref{ID: id, Name: parts[1]}
		for _, attribute := range parts[2:] {
			if target, ok := strings.CutPrefix(attribute, "symref-target:"); ok {
				ref.Symbolic = target
			}
		}
		each(ref)
	}
}
