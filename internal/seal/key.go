// Package seal (WORDS) encrypts secrets at rest: AES-256-GCM under a data key for each record, itself wrapped under a key-encryption key that is known by its id.
//
// What is sealed is bound to its place. A value that is moved to another record, field or tenant, or whose description was changed, does not open.
package seal

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/secret"
)

// keySize makes it AES-256.
const keySize = 32

// KeyID names a key-encryption key. It is derived from the key, so a wrong key cannot pass under the right name. The zero value names none.
type KeyID string

// String returns the id.
func (id KeyID) String() string { return string(id) }

// Key is a key-encryption key. The zero value opens and seals nothing.
type Key struct {
	id       KeyID
	material secret.Bytes
}

// NewKey returns a fresh random key.
func NewKey() Key {
	material := make([]byte, keySize)
	_, _ = rand.Read(material) // never fails since Go 1.24
	return newKey(material)
}

// newKey takes material over and clears it.
func newKey(material []byte) Key {
	// The id is public. As a MAC under the key it tells nothing about it.
	mac := hmac.New(sha256.New, material)
	mac.Write([]byte("cofferdam key id"))
	return Key{id: KeyID(hex.EncodeToString(mac.Sum(nil)[:8])), material: secret.Take(material)}
}

// ParseKey reads a key as Encode writes it (one line of base64), as 64 hexadecimal digits, or as 32 raw bytes. It clears data.
func ParseKey(data []byte) (Key, error) {
	defer clear(data)
	material := make([]byte, base64.StdEncoding.DecodedLen(len(data))+keySize)
	defer clear(material)
	text, n := bytes.TrimSuffix(bytes.TrimSuffix(data, []byte("\n")), []byte("\r")), 0
	var err error
	switch len(text) {
	case base64.StdEncoding.EncodedLen(keySize):
		n, err = base64.StdEncoding.Strict().Decode(material, text)
	case hex.EncodedLen(keySize):
		n, err = hex.Decode(material, text)
	default:
		if len(data) == keySize {
			n = copy(material, data)
		}
	}
	if err != nil || n != keySize {
		return Key{}, fault.New(fault.Invalid, "this is no key: it takes 32 bytes").WithHint("write them as one line of base64, as made by: head -c 32 /dev/urandom | base64")
	}
	if bytes.Count(material[:n], material[:1]) == n {
		return Key{}, fault.New(fault.Invalid, "this is no key: all its bytes are the same").WithHint("make one with: head -c 32 /dev/urandom | base64")
	}
	return newKey(material[:n]), nil
}

// ID returns the name of the key.
func (k Key) ID() KeyID { return k.id }

// Encode returns the key as one line of base64, for the file it is kept in. The caller clears it.
func (k Key) Encode() []byte {
	return append(base64.StdEncoding.AppendEncode(nil, k.material.Reveal()), '\n')
}
