package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/secret"
)

// overhead is what sealing adds: a random nonce of 12 bytes before, a tag of 16 after (NIST SP 800-38D). With random nonces one data key serves
// 2^32 seals; a record is sealed anew when a person or a token endpoint changes it, which is many orders of magnitude less.
const overhead = 12 + 16

// Owner says whose data key it is. Both parts are set.
type Owner struct {
	Tenant string
	Record string // never used twice, even for records of the same name
}

// Place is where a sealed value stands within its owner's record.
type Place struct {
	Field   string
	Version uint64   // grows with each change of the record, so that old and new fields cannot be mixed
	About   [32]byte // digest of what the record says in plain, so that its conditions cannot be changed
}

// Wrapped is a data key under a key-encryption key.
type Wrapped struct {
	Key  KeyID  `json:"key"`
	Data []byte `json:"data"`
}

// DataKey seals the values of one record. Who has it can do without the key-encryption key, for that record only. The zero value does nothing.
type DataKey struct {
	owner    Owner
	material secret.Bytes
}

// Seal encrypts a value for its place.
func (d DataKey) Seal(p Place, plain secret.Bytes) ([]byte, error) {
	aead, err := gcm(d.material)
	if err != nil {
		return nil, err
	}
	return aead.Seal(nil, nil, plain.Reveal(), valueContext(d.owner, p)), nil
}

// Open decrypts a value, if it was sealed under this data key for this very place.
func (d DataKey) Open(p Place, sealed []byte) (secret.Bytes, error) {
	aead, err := gcm(d.material)
	if err != nil {
		return secret.Bytes{}, err
	}
	plain, err := aead.Open(nil, nil, sealed, valueContext(d.owner, p))
	if err != nil {
		return secret.Bytes{}, fault.New(fault.Conflict, "the sealed field %q was changed, damaged or moved from elsewhere", p.Field)
	}
	return secret.Take(plain), nil
}

// Wipe overwrites the key, best effort.
func (d DataKey) Wipe() { d.material.Wipe() }

// Keyring holds the current key and older ones. It does not change, and is safe for concurrent use. The zero value holds none.
type Keyring struct {
	current KeyID
	keys    map[KeyID]Key
	missing map[KeyID]error // older keys that are known of but could not be had, and why
}

// NewKeyring returns a keyring that wraps under current and unwraps under all.
func NewKeyring(current Key, older ...Key) *Keyring {
	r := &Keyring{current: current.id, keys: map[KeyID]Key{}}
	for _, k := range append(older, current) {
		if k.id != "" {
			r.keys[k.id] = k
		}
	}
	return r
}

// Current returns the id of the key that new data keys are wrapped under.
func (r *Keyring) Current() KeyID { return r.current }

// IDs returns the ids of all keys at hand, sorted.
func (r *Keyring) IDs() []KeyID { return slices.Sorted(maps.Keys(r.keys)) }

// NewDataKey makes a data key for a new record and wraps it under the current key.
func (r *Keyring) NewDataKey(o Owner) (DataKey, Wrapped, error) {
	material := make([]byte, keySize)
	_, _ = rand.Read(material) // never fails since Go 1.24
	d := DataKey{owner: o, material: secret.Take(material)}
	w, err := r.wrap(d)
	return d, w, err
}

// Unwrap opens the data key of a record. It says which key is missing, or that the record does not belong there.
func (r *Keyring) Unwrap(o Owner, w Wrapped) (DataKey, error) {
	key, err := r.key(w.Key)
	if err != nil {
		return DataKey{}, err
	}
	aead, err := gcm(key.material)
	if err != nil {
		return DataKey{}, err
	}
	material, err := aead.Open(nil, nil, w.Data, keyContext(o, w.Key))
	if err != nil || len(material) != keySize {
		return DataKey{}, fault.New(fault.Conflict, "the data key was changed, damaged or moved from another record")
	}
	return DataKey{owner: o, material: secret.Take(material)}, nil
}

// Rewrap puts a data key under the current key. What is sealed under the data key stays as it is.
func (r *Keyring) Rewrap(o Owner, w Wrapped) (Wrapped, error) {
	d, err := r.Unwrap(o, w)
	if err != nil {
		return Wrapped{}, err
	}
	defer d.Wipe()
	return r.wrap(d)
}

func (r *Keyring) wrap(d DataKey) (Wrapped, error) {
	if d.owner.Tenant == "" || d.owner.Record == "" {
		return Wrapped{}, fault.New(fault.Internal, "a data key without an owner")
	}
	key, err := r.key(r.current)
	if err != nil {
		return Wrapped{}, err
	}
	aead, err := gcm(key.material)
	if err != nil {
		return Wrapped{}, err
	}
	return Wrapped{Key: key.id, Data: aead.Seal(nil, nil, d.material.Reveal(), keyContext(d.owner, key.id))}, nil
}

func (r *Keyring) key(id KeyID) (Key, error) {
	if key, ok := r.keys[id]; ok && id != "" {
		return key, nil
	}
	e := fault.New(fault.Unavailable, "the key %.40q, which it is sealed under, is not here", id).
		WithHint("bring the key back from where you keep copies; see: cofferdam seal status")
	if cause := r.missing[id]; cause != nil {
		return Key{}, e.Because(cause)
	}
	return Key{}, e
}

func gcm(material secret.Bytes) (cipher.AEAD, error) {
	if material.Len() != keySize {
		return nil, fault.New(fault.Internal, "no key")
	}
	block, err := aes.NewCipher(material.Reveal())
	if err != nil {
		return nil, fmt.Errorf("make a cipher: %w", err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// keyContext and valueContext are the additional data that every seal is bound to. The first text keeps the two apart, and this format from later ones.
func keyContext(o Owner, id KeyID) []byte {
	return join("cofferdam data key 1", o.Tenant, o.Record, string(id))
}

func valueContext(o Owner, p Place) []byte {
	version := binary.BigEndian.AppendUint64(nil, p.Version)
	return join("cofferdam value 1", o.Tenant, o.Record, p.Field, string(version), string(p.About[:]))
}

// join writes each part after its length: no two lists of parts give the same bytes.
func join(parts ...string) []byte {
	var out []byte
	for _, p := range parts {
		out = binary.BigEndian.AppendUint32(out, uint32(len(p)))
		out = append(out, p...)
	}
	return out
}
