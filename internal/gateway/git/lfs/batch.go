package lfs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/policy"
)

const (
	maxRequest = 1 << 20 // bytes of a request; a thousand objects need about 100 KB
	maxObjects = 1000    // git-lfs asks for 100 at a time (lfs.transfer.batchSize)
	maxText    = 4096    // bytes of a path, a ref, a cursor

	nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" // SHA-256 of no bytes
)

// Operation is what is to be done with the objects of a batch. The zero value is none.
type Operation uint8

// The operations.
const (
	Download Operation = iota + 1
	Upload
)

// String returns the name that the operation has on the wire.
func (o Operation) String() string {
	switch o {
	case Download:
		return "download"
	case Upload:
		return "upload"
	}
	return fmt.Sprintf("operation(%d)", uint8(o))
}

// ParseOperation reads an operation's name.
func ParseOperation(s string) (Operation, error) {
	switch s {
	case "download":
		return Download, nil
	case "upload":
		return Upload, nil
	}
	return 0, fault.New(fault.Invalid, "operation %.20q of a batch is neither download nor upload", s)
}

// Object is a large file: its content's SHA-256 and its size in bytes.
type Object struct {
	OID  string `json:"oid"`
	Size int64  `json:"size"`
}

// Batch asks for the places of objects. It has at least one, and none twice. Only ReadBatch makes one.
type Batch struct {
	Operation Operation
	Ref       string // full name of the ref that the objects belong to, which servers may judge by; may be empty
	Objects   []Object
}

// Size is how many bytes the objects have together.
func (b Batch) Size() int64 {
	var total int64
	for _, o := range b.Objects {
		if total += o.Size; total < 0 {
			return math.MaxInt64
		}
	}
	return total
}

// Access is what the batch needs of the repository.
func (b Batch) Access() policy.Access {
	switch b.Operation {
	case Download:
		return policy.ReadAccess
	case Upload:
		return policy.WriteAccess
	}
	return policy.NoAccess
}

// ref is the optional object of requests that names a ref.
type ref struct {
	Name string `json:"name,omitempty"`
}

// ReadBatch reads a batch request. It is strict in what is judged or sent on; what it does not know is not sent on, so it does no harm.
func ReadBatch(body io.Reader) (Batch, error) {
	var in struct {
		Operation string   `json:"operation"`
		Transfers []string `json:"transfers"`
		Ref       *ref     `json:"ref"`
		Objects   []Object `json:"objects"`
		HashAlgo  string   `json:"hash_algo"`
	}
	if err := decode(body, maxRequest, &in); err != nil {
		return Batch{}, fault.New(fault.Invalid, "the LFS batch request cannot be read").Because(err)
	}
	operation, err := ParseOperation(in.Operation)
	if err != nil {
		return Batch{}, err
	}
	b := Batch{Operation: operation}
	switch {
	case in.HashAlgo != "" && in.HashAlgo != "sha256":
		return Batch{}, fault.New(fault.Invalid, "hash function %.20q is not supported for LFS: only sha256 is", in.HashAlgo)
	case len(in.Transfers) > 0 && !slices.Contains(in.Transfers, "basic"):
		return Batch{}, fault.New(fault.Unsupported, "LFS objects are transferred by the basic method only, which the client does not offer").
			WithHint("git config lfs.basictransfersonly true")
	case len(in.Objects) == 0:
		return Batch{}, fault.New(fault.Invalid, "the LFS batch request names no object")
	case len(in.Objects) > maxObjects:
		return Batch{}, fault.New(fault.TooMany, "%d LFS objects at once are more than %d", len(in.Objects), maxObjects).WithHint("git config lfs.transfer.batchSize 100")
	}
	if b.Ref, err = in.Ref.name(); err != nil {
		return Batch{}, err
	}
	seen := make(map[string]int64, len(in.Objects))
	for _, o := range in.Objects {
		size, again := seen[o.OID]
		switch {
		case !validOID(o.OID):
			return Batch{}, fault.New(fault.Invalid, "LFS object %.80q is not named by a SHA-256", o.OID)
		case o.Size < 0:
			return Batch{}, fault.New(fault.Invalid, "LFS object %s has a negative size", o.OID)
		case (o.Size == 0) != (o.OID == nothing): // a request without a body has nothing that could be found to be wrong
			return Batch{}, fault.New(fault.Invalid, "LFS object %s has not %d bytes", o.OID, o.Size)
		case again && size != o.Size:
			return Batch{}, fault.New(fault.Invalid, "LFS object %s is named twice with different sizes", o.OID)
		case again:
			continue
		}
		seen[o.OID] = o.Size
		b.Objects = append(b.Objects, o)
	}
	return b, nil
}

// name returns the ref's name, which may be empty.
func (r *ref) name() (string, error) {
	if r == nil || r.Name == "" {
		return "", nil
	}
	if !strings.HasPrefix(r.Name, "refs/") || !plain(r.Name) {
		return "", fault.New(fault.Invalid, "ref %.80q of an LFS request is not a full name of a ref", r.Name)
	}
	return r.Name, nil
}

// Encode writes the request for the upstream: the same question in our words, for the basic transfer method.
func (b Batch) Encode() []byte {
	out := struct {
		Operation string   `json:"operation"`
		Transfers []string `json:"transfers"`
		Ref       *ref     `json:"ref,omitempty"`
		Objects   []Object `json:"objects"`
		HashAlgo  string   `json:"hash_algo"`
	}{b.Operation.String(), []string{"basic"}, nil, b.Objects, "sha256"}
	if b.Ref != "" {
		out.Ref = &ref{Name: b.Ref}
	}
	return encode(out)
}

// plain reports whether a text is short and without control characters, so that it can be sent on and shown.
func plain(s string) bool {
	return len(s) <= maxText && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || 0x7f <= r && r < 0xa0 || r == '\u2028' || r == '\u2029' })
}

// decode reads one JSON value of at most limit bytes, and nothing after it.
func decode(r io.Reader, limit int64, into any) error {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	switch {
	case err != nil:
		return err
	case int64(len(data)) > limit:
		return fmt.Errorf("longer than %d bytes", limit)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(into); err != nil {
		return errors.New("not the JSON that it should be") // json's own words repeat what was read
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("more than one JSON value")
	}
	return nil
}
