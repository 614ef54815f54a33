package seal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
)

const (
	indexName = "keys.json"
	lockName  = "lock"
	maxIndex  = 1 << 20
	maxKeys   = 100
	// lockPatience is how long others may hold the vault: one of them may be waiting for a key command.
	lockPatience = commandPatience + 10*time.Second
)

// Vault is a directory that says which key-encryption keys there are and where each comes from; keys in files lie in it. Several processes may use
// it at the same time.
type Vault struct {
	dir    string
	getenv func(string) string
}

// index is keys.json. The keys are in it in the order in which they were made; the last is the current one.
type index struct {
	Format int     `json:"format"`
	Keys   []entry `json:"keys"`
}

type entry struct {
	ID      KeyID     `json:"id"`
	Source  Source    `json:"source"`
	Created time.Time `json:"created"`
}

// KeyStatus says how one key is.
type KeyStatus struct {
	ID      KeyID     `json:"id"`
	Source  string    `json:"source"`
	Created time.Time `json:"created"`
	Current bool      `json:"current"`
	Problem string    `json:"problem,omitempty"` // why it cannot be had
	Hint    string    `json:"hint,omitempty"`
}

// OpenVault opens the vault of a directory, which is made by Init. getenv is asked for CREDENTIALS_DIRECTORY.
func OpenVault(dir string, getenv func(string) string) *Vault {
	return &Vault{dir: dir, getenv: getenv}
}

// Initialised reports whether the vault has a key.
func (v *Vault) Initialised() (bool, error) {
	ix, err := v.load()
	return len(ix.Keys) > 0, err
}

// Init makes the vault and its first key; a zero source makes a key file. It refuses where there is one.
func (v *Vault) Init(ctx context.Context, s Source) (KeyID, error) {
	if err := os.MkdirAll(v.dir, 0o700); err != nil {
		return "", v.unwritable(err)
	}
	unlock, err := v.lock(ctx, unix.LOCK_EX)
	if err != nil {
		return "", err
	}
	defer unlock()
	ix, err := v.load()
	if err != nil {
		return "", err
	}
	if len(ix.Keys) > 0 {
		return "", fault.New(fault.Conflict, "there is a key already").WithHint("make a new one with: cofferdam seal rotate")
	}
	return v.add(ctx, ix, s)
}

// Use loads the keys and keeps the vault from being pruned until f returns. Whoever seals a new record does it inside.
// It does not call f if the current key cannot be had, or is not the one that its id names.
func (v *Vault) Use(ctx context.Context, f func(*Keyring) error) error {
	if ok, err := v.Initialised(); err != nil || !ok {
		return errors.Join(err, errNoKey(err))
	}
	unlock, err := v.lock(ctx, unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer unlock()
	ring, err := v.keyring(ctx)
	if err != nil {
		return err
	}
	return f(ring)
}

// errNoKey is nothing if there is a reason already.
func errNoKey(already error) error {
	if already != nil {
		return nil
	}
	return fault.New(fault.Unavailable, "there is no key to seal with").WithHint("make one with: cofferdam seal init")
}

// Advance makes a new current key. The others stay until Prune, so that what is sealed under them opens, whatever happens meanwhile.
func (v *Vault) Advance(ctx context.Context, s Source) (KeyID, error) {
	if ok, err := v.Initialised(); err != nil || !ok {
		return "", errors.Join(err, errNoKey(err))
	}
	unlock, err := v.lock(ctx, unix.LOCK_EX)
	if err != nil {
		return "", err
	}
	defer unlock()
	ix, err := v.load()
	if err != nil {
		return "", err
	}
	// A rotation away from a key that is not here would leave records behind that nobody can open.
	if _, err := v.keyring(ctx); err != nil {
		return "", err
	}
	return v.add(ctx, ix, s)
}

// Prune forgets every key but the current one that inUse does not count, and erases key files of ours. It returns which. Nobody can seal
// meanwhile, so a key that is not in use will not be.
func (v *Vault) Prune(ctx context.Context, inUse func() (map[KeyID]int, error)) ([]KeyID, error) {
	if ok, err := v.Initialised(); err != nil || !ok {
		return nil, errors.Join(err, errNoKey(err))
	}
	unlock, err := v.lock(ctx, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer unlock()
	ix, err := v.load()
	if err != nil {
		return nil, err
	}
	used, err := inUse()
	if err != nil {
		return nil, err
	}
	current := ix.Keys[len(ix.Keys)-1].ID
	gone := slices.DeleteFunc(slices.Clone(ix.Keys), func(e entry) bool { return e.ID == current || used[e.ID] > 0 })
	if len(gone) == 0 {
		return nil, nil
	}
	ix.Keys = slices.DeleteFunc(ix.Keys, func(e entry) bool { return slices.ContainsFunc(gone, func(g entry) bool { return g.ID == e.ID }) })
	if err := v.save(ix); err != nil {
		return nil, err
	}
	var ids []KeyID
	for _, e := range gone {
		ids = append(ids, e.ID)
		if e.Source.File != "" {
			err = errors.Join(err, erase(filepath.Join(v.dir, e.Source.File)))
		}
	}
	return ids, err
}

// Status looks at every key, and says of each whether it can be had.
func (v *Vault) Status(ctx context.Context) ([]KeyStatus, error) {
	ix, err := v.load()
	if err != nil {
		return nil, err
	}
	list := []KeyStatus{}
	for i, e := range ix.Keys {
		s := KeyStatus{ID: e.ID, Source: e.Source.String(), Created: e.Created, Current: i == len(ix.Keys)-1}
		if _, err := v.fetch(ctx, e); err != nil {
			s.Problem, s.Hint = err.Error(), fault.HintOf(err)
		}
		list = append(list, s)
	}
	return list, nil
}

// keyring fetches all keys. The current one must be there; of an older one that is not, the reason is kept for whoever needs it.
func (v *Vault) keyring(ctx context.Context) (*Keyring, error) {
	ix, err := v.load()
	if err != nil {
		return nil, err
	}
	if len(ix.Keys) == 0 {
		return nil, errNoKey(nil)
	}
	var current Key
	var older []Key
	missing := map[KeyID]error{}
	for i, e := range ix.Keys {
		key, err := v.fetch(ctx, e)
		switch {
		case err == nil && i == len(ix.Keys)-1:
			current = key
		case err == nil:
			older = append(older, key)
		case i == len(ix.Keys)-1:
			return nil, err
		default:
			missing[e.ID] = err
		}
	}
	ring := NewKeyring(current, older...)
	ring.missing = missing
	return ring, nil
}

// fetch reads a key and checks that it is the one that is meant.
func (v *Vault) fetch(ctx context.Context, e entry) (Key, error) {
	key, err := e.Source.read(ctx, v)
	if err != nil {
		return Key{}, err
	}
	if key.ID() != e.ID {
		return Key{}, fault.New(fault.Unavailable, "the %s holds the key %s, not %s", e.Source, key.ID(), e.ID).
			WithHint("bring the right key back from where you keep copies; nothing was changed")
	}
	return key, nil
}

// add makes or reads a key and makes it the current one. A key file is on the disk before the index names it.
func (v *Vault) add(ctx context.Context, ix index, s Source) (KeyID, error) {
	if len(ix.Keys) >= maxKeys {
		return "", fault.New(fault.TooMany, "there are %d keys", len(ix.Keys)).WithHint("remove those that nothing is sealed under: cofferdam seal prune")
	}
	key, err := Key{}, error(nil)
	if sameSource(s, Source{}) {
		key = NewKey()
		s.File = key.ID().String() + ".key"
		err = v.writeKey(s.File, key)
	} else if err = s.check(); err == nil {
		key, err = s.read(ctx, v)
	}
	if err != nil {
		return "", err
	}
	if slices.ContainsFunc(ix.Keys, func(e entry) bool { return e.ID == key.ID() }) {
		return "", fault.New(fault.Conflict, "the %s hands over the key %s, which is in use already", s, key.ID()).WithHint("put a new key there first, under another name: the old one is needed until all is rewrapped")
	}
	// A source that hands over a new key under an old name has lost the old key: what is sealed under it could not be opened any more.
	if i := slices.IndexFunc(ix.Keys, func(e entry) bool { return sameSource(e.Source, s) }); i >= 0 {
		return "", fault.New(fault.Conflict, "the %s is where the key %s comes from", s, ix.Keys[i].ID).WithHint("give the new key another name, so that both can be had until all is rewrapped")
	}
	ix.Format = 1
	ix.Keys = append(ix.Keys, entry{ID: key.ID(), Source: s, Created: time.Now().UTC().Truncate(time.Second)})
	return key.ID(), v.save(ix)
}

func (v *Vault) writeKey(name string, key Key) error {
	data := key.Encode()
	defer clear(data)
	return v.write(name, data)
}

// write puts a file in place at a stroke, private, and on the disk before it returns.
func (v *Vault) write(name string, data []byte) error {
	f, err := os.CreateTemp(v.dir, ".new-*") // mode 0600
	if err != nil {
		return v.unwritable(err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(v.dir, name))
	}
	if err != nil {
		return v.unwritable(errors.Join(err, os.Remove(f.Name())))
	}
	return v.syncDir()
}

func (v *Vault) syncDir() error {
	d, err := os.Open(v.dir)
	if err != nil {
		return v.unwritable(err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return v.unwritable(err)
	}
	return nil
}

// erase overwrites a key file and removes it. Journals and flash keep copies: that is why keys are rotated, not only erased.
func erase(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		_, err = f.WriteAt(make([]byte, maxKeyText), 0)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err = errors.Join(err, os.Remove(path)); err != nil {
		return fmt.Errorf("erase the key file %s: %w", path, err)
	}
	return nil
}

// load reads the index. No index is an empty one.
func (v *Vault) load() (index, error) {
	path := filepath.Join(v.dir, indexName)
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return index{}, nil
	}
	if err != nil {
		return index{}, fault.New(fault.Unavailable, "cannot read %s", path).Because(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil {
		err = checkPrivate(path, info)
	}
	if err == nil && info.Size() > maxIndex {
		err = fault.New(fault.Conflict, "%s is too long", path)
	}
	if err != nil {
		return index{}, err
	}
	dec := json.NewDecoder(f)
	dec.DisallowUnknownFields()
	var ix index
	if err := dec.Decode(&ix); err != nil {
		return index{}, fault.New(fault.Conflict, "%s is damaged", path).Because(err).WithHint("bring it back from a copy")
	}
	return ix, ix.check(path)
}

func (ix index) check(path string) error {
	if ix.Format != 1 {
		return fault.New(fault.Unsupported, "%s has format %d, which this version does not know", path, ix.Format)
	}
	for _, e := range ix.Keys {
		if err := e.Source.check(); err != nil || e.ID == "" {
			return fault.New(fault.Conflict, "%s is damaged", path).Because(err).WithHint("bring it back from a copy")
		}
	}
	return nil
}

func (v *Vault) save(ix index) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	if err := enc.Encode(ix); err != nil {
		return fmt.Errorf("encode %s: %w", indexName, err)
	}
	return v.write(indexName, b.Bytes())
}

// lock takes the vault, shared to seal, alone to change which keys there are.
func (v *Vault) lock(ctx context.Context, how int) (unlock func(), err error) {
	info, err := os.Stat(v.dir)
	if err != nil {
		return nil, v.unwritable(err)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return nil, fault.New(fault.Denied, "others can write in the key directory %s", v.dir).WithHint("type: chmod 700 %s", v.dir)
	}
	f, err := os.OpenFile(filepath.Join(v.dir, lockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, v.unwritable(err)
	}
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil // closing lets go of the lock
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", v.dir, err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fault.New(fault.Unavailable, "another cofferdam is busy with the keys in %s", v.dir).Because(context.Cause(ctx)), f.Close())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (v *Vault) unwritable(err error) error {
	return fault.New(fault.Unavailable, "the key directory %s cannot be used", v.dir).Because(err).WithHint("set COFFERDAM_STATE to a directory that you can write")
}
