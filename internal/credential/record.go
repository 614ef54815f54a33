package credential

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/seal"
)

// tenant is whose credentials these are. One machine's own store has one tenant; it is part of what sealed values are bound to, so that a record
// carried to a store of several does not open there.
const tenant = "local"

// record is the content of a credential's file.
type record struct {
	Format  int              `json:"format"`
	ID      string           `json:"id"` // random: what is sealed is bound to it, not to the name, which can be used again
	About   json.RawMessage  `json:"about"`
	Version uint64           `json:"version"`
	DataKey seal.Wrapped     `json:"data_key"`
	Fields  map[Field][]byte `json:"fields"`
}

// newRecord seals a new credential.
func newRecord(ring *seal.Keyring, m Meta, secrets Material) (record, error) {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails since Go 1.24
	r := record{Format: 1, ID: hex.EncodeToString(id[:])}
	key, wrapped, err := ring.NewDataKey(r.owner())
	if err != nil {
		return r, err
	}
	defer key.Wipe()
	r.DataKey = wrapped
	return r.sealed(key, m, secrets)
}

func (r record) owner() seal.Owner { return seal.Owner{Tenant: tenant, Record: r.ID} }

func (r record) place(f Field) seal.Place {
	return seal.Place{Field: string(f), Version: r.Version, About: sha256.Sum256(r.About)}
}

// sealed returns the record's next version.
func (r record) sealed(key seal.DataKey, m Meta, secrets Material) (record, error) {
	about, err := json.Marshal(m)
	if err != nil {
		return r, fmt.Errorf("encode a credential: %w", err)
	}
	r.About, r.Fields = about, map[Field][]byte{}
	r.Version++
	for f, v := range secrets {
		if r.Fields[f], err = key.Seal(r.place(f), v); err != nil {
			return r, err
		}
	}
	return r, nil
}

// open decrypts all fields.
func (r record) open(key seal.DataKey) (Material, error) {
	out := Material{}
	for f, data := range r.Fields {
		v, err := key.Open(r.place(f), data)
		if err != nil {
			return nil, err
		}
		out[f] = v
	}
	return out, nil
}

// change returns the next version, in which some secrets are others.
func (r record) change(key seal.DataKey, m Meta, changed Material) (record, error) {
	secrets, err := r.open(key)
	if err != nil {
		return r, err
	}
	maps.Copy(secrets, changed)
	if err := secrets.check(m.Kind); err != nil {
		return r, err
	}
	return r.sealed(key, m, secrets)
}

func (r record) encode() ([]byte, error) {
	data, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode a credential: %w", err)
	}
	return append(data, '\n'), nil
}

// decodeRecord reads a record that stands under a name, and its description.
func decodeRecord(name Name, data []byte) (record, Meta, error) {
	var r record
	var m Meta
	if err := strictly(data, &r); err != nil {
		return r, m, damaged(name, err)
	}
	if r.Format != 1 {
		return r, m, fault.New(fault.Unsupported, "the credential %s has format %d, which this version does not know", name, r.Format)
	}
	if err := strictly(r.About, &m); err != nil {
		return r, m, damaged(name, err)
	}
	if m.Name != name {
		return r, m, damaged(name, fmt.Errorf("its file holds the credential %.80q", m.Name))
	}
	if err := m.check(); err != nil {
		return r, m, damaged(name, err)
	}
	return r, m, nil
}

func strictly(data []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return err
	}
	if dec.More() {
		return fmt.Errorf("something follows")
	}
	return nil
}

func damaged(name Name, cause error) error {
	return fault.New(fault.Conflict, "the file of the credential %s was changed or damaged", name).Because(cause).
		WithHint("bring it back from a copy, or remove the credential and add it again")
}
