package credential

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/private"
	"github.com/cofferdam/cofferdam/internal/seal"
)

const (
	suffix = ".credential"
	// maxStored bounds the store of one user: a directory is read whole.
	maxStored = 10000
)

// Store is a directory of sealed credentials, a file each. Several processes may use it at the same time. It keeps no key: what needs one gets a keyring,
// inside seal.Vault.Use.
type Store struct{ dir string }

// OpenStore opens the store of a directory, and makes it (mode 0700) where it is absent. It refuses a directory of another user, or in which others can write.
func OpenStore(dir string) (*Store, error) {
	if err := private.Dir(dir); err != nil {
		return nil, err
	}
	return &Store{dir: dir}, nil
}

// Normalised returns m as Add stores it, with what was not said filled in, or says what is wrong with it. Name, kind and scope must be set.
func Normalised(m Meta) (Meta, error) {
	m = m.withDefaults()
	return m, m.check()
}

// Add seals a new credential. It is there as a whole or not at all; a name that is taken is Conflict.
func (s *Store) Add(ring *seal.Keyring, m Meta, secrets Material) error {
	m, err := Normalised(m)
	if err != nil {
		return err
	}
	if err := secrets.check(m.Kind); err != nil {
		return err
	}
	m.Created, m.Rotated = time.Now().UTC().Truncate(time.Second), time.Time{}
	if m.Shape == "" {
		m.Shape = shapeOf(m, secrets)
	}
	r, err := newRecord(ring, m, secrets)
	if err != nil {
		return err
	}
	content, err := r.encode()
	if err != nil {
		return err
	}
	data, err := encodeSlot(1, content)
	if err != nil {
		return err
	}
	return s.create(m.Name, data)
}

// create puts a complete file under a free name.
func (s *Store) create(name Name, data []byte) error {
	f, err := os.CreateTemp(s.dir, ".new-*") // mode 0600
	if err != nil {
		return unwritable(err)
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Link(f.Name(), s.path(name))
	}
	err = errors.Join(err, os.Remove(f.Name()))
	if errors.Is(err, fs.ErrExist) {
		return fault.New(fault.Conflict, "there is a credential %s", name).WithHint("give it a new value with: cofferdam credential rotate %s; or choose another name", name)
	}
	if err != nil {
		return unwritable(err)
	}
	return s.sync()
}

func (s *Store) sync() error {
	d, err := os.Open(s.dir)
	if err != nil {
		return unwritable(err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return unwritable(err)
	}
	return nil
}

func (s *Store) path(name Name) string { return filepath.Join(s.dir, string(name)+suffix) }

// Get returns what is known of a credential without a key.
func (s *Store) Get(ctx context.Context, name Name) (Meta, error) {
	_, m, err := s.load(ctx, name)
	return m, err
}

func (s *Store) load(ctx context.Context, name Name) (record, Meta, error) {
	f, err := s.file(name, os.O_RDONLY)
	if err != nil {
		return record{}, Meta{}, err
	}
	defer f.file.Close()
	content, _, err := f.read(ctx)
	if err != nil {
		return record{}, Meta{}, err
	}
	return decodeRecord(name, content)
}

// file opens the file of a credential.
func (s *Store) file(name Name, mode int) (*slots, error) {
	if _, err := ParseName(string(name)); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(s.path(name), mode|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "there is no credential %s", name).WithHint("list them with: cofferdam credential list")
	}
	if err != nil {
		return nil, fault.New(fault.Unavailable, "cannot open the credential %s", name).Because(err)
	}
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0) {
		err = fault.New(fault.Denied, "others can read the file of the credential %s, or it is none", name).WithHint("type: chmod 600 %s", s.path(name))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &slots{file: f}, nil
}

// Names returns the names of all credentials, sorted.
func (s *Store) Names() ([]Name, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "cannot read the directory %s", s.dir).Because(err)
	}
	var names []Name
	for _, e := range entries {
		text, ok := strings.CutSuffix(e.Name(), suffix)
		if name, err := ParseName(text); ok && err == nil {
			names = append(names, name)
		}
	}
	if len(names) > maxStored {
		return nil, fault.New(fault.TooMany, "there are %d credentials, more than %d", len(names), maxStored)
	}
	slices.Sort(names)
	return names, nil
}

// List returns what is known of all credentials. One that is damaged does not hide the others: the error tells of it, and the list has the rest.
func (s *Store) List(ctx context.Context) ([]Meta, error) {
	list := []Meta{}
	err := s.each(func(name Name) error {
		m, err := s.Get(ctx, name)
		if err == nil {
			list = append(list, m)
		}
		return err
	})
	return list, err
}

// each calls f for every credential, those that were removed meanwhile excepted, and collects the errors.
func (s *Store) each(f func(Name) error) error {
	names, err := s.Names()
	if err != nil {
		return err
	}
	var problems []error
	for _, name := range names {
		if err := f(name); err != nil && fault.KindOf(err) != fault.NotFound {
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}

// Masks opens a credential and returns of each secret what a person may see. It proves that the credential can be opened.
func (s *Store) Masks(ctx context.Context, ring *seal.Keyring, name Name) (map[Field]string, error) {
	r, _, err := s.load(ctx, name)
	if err != nil {
		return nil, err
	}
	key, err := ring.Unwrap(r.owner(), r.DataKey)
	if err != nil {
		return nil, sealedAs(name, err)
	}
	defer key.Wipe()
	secrets, err := r.open(key)
	if err != nil {
		return nil, sealedAs(name, err)
	}
	masks := map[Field]string{}
	for f, v := range secrets {
		masks[f] = v.Mask()
		v.Wipe()
	}
	return masks, nil
}

// Rotate replaces some secrets of a credential. Sandboxes that run use the new ones with their next request.
func (s *Store) Rotate(ctx context.Context, ring *seal.Keyring, name Name, changed Material) error {
	return s.update(ctx, name, func(r record, m Meta) (record, error) {
		key, err := ring.Unwrap(r.owner(), r.DataKey)
		if err != nil {
			return r, sealedAs(name, err)
		}
		defer key.Wipe()
		m.Rotated = time.Now().UTC().Truncate(time.Second)
		r, err = r.change(key, m, changed)
		return r, sealedAs(name, err)
	})
}

// Edit changes what is known of a credential, its conditions above all, and leaves its secrets as they are. Name and kind stay. What is known is bound to the secrets, so this
// needs the key. Sandboxes that run hold their next request to the new conditions, and what is under way outside of them is cut.
func (s *Store) Edit(ctx context.Context, ring *seal.Keyring, name Name, edit func(Meta) (Meta, error)) error {
	return s.update(ctx, name, func(r record, m Meta) (record, error) {
		next, err := edit(m)
		if err != nil {
			return r, err
		}
		if next.Name != m.Name || next.Kind != m.Kind || !next.Created.Equal(m.Created) || !next.Rotated.Equal(m.Rotated) {
			return r, fault.New(fault.Internal, "an edit of %s makes it another credential", name)
		}
		if next, err = Normalised(next); err != nil {
			return r, err
		}
		key, err := ring.Unwrap(r.owner(), r.DataKey)
		if err != nil {
			return r, sealedAs(name, err)
		}
		defer key.Wipe()
		r, err = r.change(key, next, nil)
		return r, sealedAs(name, err)
	})
}

// Remove erases a credential. It is lent no more from that moment, also to sandboxes that run.
func (s *Store) Remove(ctx context.Context, name Name) error {
	f, err := s.file(name, os.O_RDWR)
	if err != nil {
		return err
	}
	defer f.file.Close()
	// Gone by name first: an interruption between the two then leaves nothing under the name, and holders see a file without links.
	if err := os.Remove(s.path(name)); err != nil {
		return unwritable(err)
	}
	return errors.Join(s.sync(), f.erase(ctx))
}

// Rewrap puts the data keys of all credentials under the ring's current key, each at a stroke, and returns how many it changed. Sandboxes that run do not notice.
func (s *Store) Rewrap(ctx context.Context, ring *seal.Keyring) (done int, err error) {
	err = s.each(func(name Name) error {
		return s.update(ctx, name, func(r record, _ Meta) (record, error) {
			if r.DataKey.Key == ring.Current() {
				return r, nil
			}
			w, err := ring.Rewrap(r.owner(), r.DataKey)
			if err != nil {
				return r, sealedAs(name, err)
			}
			r.DataKey = w
			done++
			return r, nil
		})
	})
	return done, err
}

// KeysInUse counts the credentials under each key. It fails if one of them cannot be read: its key would not be counted.
func (s *Store) KeysInUse(ctx context.Context) (map[seal.KeyID]int, error) {
	used := map[seal.KeyID]int{}
	err := s.each(func(name Name) error {
		r, _, err := s.load(ctx, name)
		if err == nil {
			used[r.DataKey.Key]++
		}
		return err
	})
	return used, err
}

func (s *Store) update(ctx context.Context, name Name, f func(record, Meta) (record, error)) error {
	file, err := s.file(name, os.O_RDWR)
	if err != nil {
		return err
	}
	defer file.file.Close()
	return updateRecord(ctx, file, name, f)
}

// updateRecord changes a record in place, or leaves it as it is where f fails.
func updateRecord(ctx context.Context, file *slots, name Name, f func(record, Meta) (record, error)) error {
	return file.update(ctx, func(content []byte) ([]byte, error) {
		r, m, err := decodeRecord(name, content)
		if err != nil {
			return nil, err
		}
		if r, err = f(r, m); err != nil {
			return nil, err
		}
		return r.encode()
	})
}

// sealedAs says which credential could not be opened.
func sealedAs(name Name, err error) error {
	if err == nil {
		return nil
	}
	return fault.New(fault.KindOf(err), "the credential %s", name).Because(err).WithHint("%s", fault.HintOf(err))
}
