// Package lfs (GATEWAY) translates the Git LFS API: what a request asks for, batch requests and their answers written anew, the places of objects
// behind tokens of our own, and content held to its name. It dials nothing, decides nothing and records nothing.
//
// Source for the API: git-lfs, docs/api (batch.md, basic-transfers.md, locking.md).
package lfs

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/cofferdam/cofferdam/internal/policy"
)

// ContentType is what requests and answers of the API are labelled with, except the objects themselves.
const ContentType = "application/vnd.git-lfs+json"

// Kind is what a call of the API does. The zero value is none.
type Kind uint8

// The kinds of calls.
const (
	BatchObjects Kind = iota + 1 // where to fetch objects from, or to put them
	VerifyObject                 // an upload is complete
	ListLocks
	VerifyLocks // the locks that a push could run into; asked before every push
	CreateLock
	Unlock
)

var kindNames = [...]string{BatchObjects: "batch", VerifyObject: "verify", ListLocks: "list locks", VerifyLocks: "verify locks", CreateLock: "lock", Unlock: "unlock"}

// String names the kind.
func (k Kind) String() string {
	if 0 < k && int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Call is a request of the API. The zero value is none.
type Call struct {
	Kind Kind
	ID   string // of the object that VerifyObject is about, of the lock that Unlock is about
}

// Access is what the call needs of the repository. It is NoAccess for BatchObjects, whose operation is in its body: ask Batch.Access.
// Verifying locks needs write access, as docs/api/locking.md has it: who may not push learns nothing by it that listing does not tell.
func (c Call) Access() policy.Access {
	switch c.Kind {
	case ListLocks:
		return policy.ReadAccess
	case VerifyObject, VerifyLocks, CreateLock, Unlock:
		return policy.WriteAccess
	}
	return policy.NoAccess
}

// Recognise says what a request is whose path below the repository is rest, as in info/lfs/objects/batch. What is not in the API is no call.
func Recognise(method, rest string) (Call, bool) {
	below, ok := strings.CutPrefix(rest, "info/lfs/")
	if !ok {
		return Call{}, false
	}
	switch method + " " + below {
	case "POST objects/batch":
		return Call{Kind: BatchObjects}, true
	case "GET locks":
		return Call{Kind: ListLocks}, true
	case "POST locks":
		return Call{Kind: CreateLock}, true
	case "POST locks/verify":
		return Call{Kind: VerifyLocks}, true
	}
	part := strings.Split(below, "/")
	if method != "POST" || len(part) != 3 {
		return Call{}, false
	}
	switch {
	case part[0] == "locks" && part[2] == "unlock" && validLock(part[1]):
		return Call{Kind: Unlock, ID: part[1]}, true
	case part[0] == "objects" && part[2] == "verify" && validOID(part[1]):
		return Call{Kind: VerifyObject, ID: part[1]}, true
	}
	return Call{}, false
}

// validLock reports whether a lock's id can stand in a path as it is. Forges number them; others make them of hexadecimal digits.
func validLock(id string) bool {
	return id != "" && len(id) <= 255 && strings.Trim(id, ".") != "" && !strings.ContainsFunc(id, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-._~", r))
	})
}

// validOID reports whether an object's id is a SHA-256 in lower-case hexadecimal, the one hash function of the API today.
func validOID(oid string) bool {
	return len(oid) == 64 && !strings.ContainsFunc(oid, func(r rune) bool { return !('0' <= r && r <= '9' || 'a' <= r && r <= 'f') })
}

// Message is the body of an answer that refuses: clients show the sentence.
func Message(sentence string) []byte {
	return encode(struct {
		Message string `json:"message"`
	}{sentence})
}

// encode writes a value of this package as JSON. All of them can be written.
func encode(v any) []byte {
	out, err := json.Marshal(v)
	if err != nil {
		panic("lfs: " + err.Error())
	}
	return out
}
