package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/private"
)

// A store is a directory:
//
//	records/names.json   what is called what
//	records/HEX.json     what is known of one image
//	content/HEX/         one image: tree/, manifest.json, config.json, lock; perhaps sbom.json and disk
//	staging/ID/          what is being made or removed; locked while somebody is at it
//
// An image is there if its record and its content are. A name may only point to one that is there.
const (
	recordsDir = "records"
	contentDir = "content"
	stagingDir = "staging"
	namesFile  = "names.json"
	lockName   = "lock"
	treeName   = "tree"
	diskName   = "disk"
	sbomName   = "sbom.json"
)

// maxRecord bounds what is read of a file of the store's own, in bytes.
const maxRecord = 16 << 20

// minPrefix is how many digits of a digest a person types at least.
const minPrefix = 6

// Store is a directory of images. Several processes may use it at once.
type Store struct{ dir string }

// Open opens the store of a directory, and makes it (mode 0700) where it is absent. It refuses a directory of another user, or that others can look into.
func Open(dir string) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open images: %w", err)
	}
	if err := private.Dir(dir); err != nil {
		return nil, err
	}
	for _, d := range []string{recordsDir, contentDir, stagingDir} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, fault.New(fault.Unavailable, "cannot make the directory %s", filepath.Join(dir, d)).Because(err)
		}
	}
	return &Store{dir: dir}, nil
}

// Paths says where a process that pulls writes, and where it only puts finished images, for a caller that confines it.
func (s *Store) Paths() (write []string, place string) {
	return []string{filepath.Join(s.dir, recordsDir), filepath.Join(s.dir, stagingDir)}, filepath.Join(s.dir, contentDir)
}

func (s *Store) content(hex string) string { return filepath.Join(s.dir, contentDir, hex) }

func (s *Store) record(hex string) string { return filepath.Join(s.dir, recordsDir, hex+".json") }

// lock waits until no other process changes names or images. It is held for moments only.
func (s *Store) lock() (release func(), err error) {
	f, err := os.OpenFile(filepath.Join(s.dir, recordsDir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock images: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock images: %w", err), f.Close())
	}
	return func() { _ = f.Close() }, nil // nothing is in it
}

// names reads what is called what: name to digest.
func (s *Store) names() (map[string]string, error) {
	names := map[string]string{}
	data, err := readBounded(filepath.Join(s.dir, recordsDir, namesFile))
	if errors.Is(err, fs.ErrNotExist) {
		return names, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &names)
	}
	if err != nil {
		return nil, fmt.Errorf("read the names of images: %w", err)
	}
	return names, nil
}

// changeNames changes the names. The caller holds the lock.
func (s *Store) changeNames(change func(map[string]string)) error {
	names, err := s.names()
	if err != nil {
		return err
	}
	change(names)
	return writeWhole(filepath.Join(s.dir, recordsDir, namesFile), names)
}

// writeWhole replaces a file of the store: a reader sees the old one or the new one, after a power loss too.
func writeWhole(name string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(name), err)
	}
	f, err := os.CreateTemp(filepath.Dir(name), "new-")
	if err != nil {
		return err
	}
	_, err = f.Write(append(data, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // prune removes it otherwise
		return fmt.Errorf("write %s: %w", filepath.Base(name), err)
	}
	return nil
}

func readBounded(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxRecord {
		return nil, fmt.Errorf("%s has %d bytes, more than %d", name, info.Size(), maxRecord)
	}
	return os.ReadFile(name)
}

// load reads one image. An image that is not there whole is NotFound.
func (s *Store) load(hex string, names map[string]string) (Image, error) {
	var i Image
	missing := fault.New(fault.NotFound, "no image %s", hex[:12]).WithHint("list images with: cofferdam image list")
	data, err := readBounded(s.record(hex))
	if errors.Is(err, fs.ErrNotExist) {
		return i, missing
	}
	if err == nil {
		err = json.Unmarshal(data, &i)
	}
	if err != nil {
		return i, fmt.Errorf("read the record of image %s: %w", hex[:12], err)
	}
	dir := s.content(hex)
	i.Digest, i.Tree, i.Disk = "sha256:"+hex, filepath.Join(dir, treeName), filepath.Join(dir, diskName)
	if i.SBOM != "" {
		i.SBOM = filepath.Join(dir, sbomName)
	}
	if _, err := os.Lstat(i.Tree); err != nil {
		return i, missing
	}
	i.Names = []string{}
	for name, digest := range names {
		if digest == i.Digest {
			i.Names = append(i.Names, name)
		}
	}
	slices.Sort(i.Names)
	return i, nil
}

// List returns all images, the newest first.
func (s *Store) List() ([]Image, error) {
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	hexes, err := s.all()
	if err != nil {
		return nil, err
	}
	list := []Image{}
	for _, hex := range hexes {
		i, err := s.load(hex, names)
		if fault.KindOf(err) == fault.NotFound {
			continue // it is being made or removed
		}
		if err != nil {
			return nil, err
		}
		list = append(list, i)
	}
	slices.SortStableFunc(list, func(a, b Image) int { return b.Pulled.Compare(a.Pulled) })
	return list, nil
}

// all returns the digits of every digest of which there is content.
func (s *Store) all() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, contentDir))
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var hexes []string
	for _, e := range entries {
		if len(e.Name()) == 64 && isHex(e.Name()) {
			hexes = append(hexes, e.Name())
		}
	}
	return hexes, nil
}

// Find returns the image that a person means: by a name as it was pulled or built, by name@digest, by a digest, or by at least six digits of one that fit no other.
// NotFound: there is none. Invalid: it is no name, or several fit.
func (s *Store) Find(ref string) (Image, error) {
	names, err := s.names()
	if err != nil {
		return Image{}, err
	}
	digits := strings.TrimPrefix(ref, "sha256:")
	parsed, parseErr := ParseReference(ref)
	if parseErr == nil {
		if hex, ok := hexOf(names[parsed.String()]); ok {
			i, err := s.load(hex, names)
			if fault.KindOf(err) == fault.NotFound {
				err = notHere(parsed)
			}
			return i, err
		}
		if parsed.Digest != "" {
			return s.byPinned(parsed, names)
		}
	}
	if len(digits) >= minPrefix && len(digits) <= 64 && isHex(digits) {
		return s.byDigits(digits, names)
	}
	if parseErr != nil {
		return Image{}, parseErr
	}
	return Image{}, notHere(parsed)
}

func notHere(r Reference) error {
	e := fault.New(fault.NotFound, "there is no image %s here", r)
	if r.Registry == "" {
		return e.WithHint("list images with: cofferdam image list; pull one with: cofferdam image pull REGISTRY/%s", r)
	}
	return e.WithHint("cofferdam image pull %s", r)
}

// byPinned finds NAME@DIGEST where the name has moved on, or was pulled by tag: the digest says what it is, and the repository must be one that it came from.
func (s *Store) byPinned(r Reference, names map[string]string) (Image, error) {
	list, err := s.List()
	if err != nil {
		return Image{}, err
	}
	for _, i := range list {
		if i.Digest != r.Digest && i.Index != r.Digest {
			continue
		}
		for _, name := range append(slices.Clone(i.Names), i.Source) {
			if other, err := ParseReference(name); err == nil && other.Registry == r.Registry && other.Repository == r.Repository {
				return i, nil
			}
		}
	}
	return Image{}, notHere(r)
}

func (s *Store) byDigits(digits string, names map[string]string) (Image, error) {
	hexes, err := s.all()
	if err != nil {
		return Image{}, err
	}
	var found []string
	for _, hex := range hexes {
		if strings.HasPrefix(hex, digits) {
			found = append(found, hex)
		}
	}
	switch len(found) {
	case 0:
		return Image{}, fault.New(fault.NotFound, "no image %.70q", digits).WithHint("list images with: cofferdam image list; pull one with: cofferdam image pull REF")
	case 1:
		return s.load(found[0], names)
	}
	return Image{}, fault.New(fault.Invalid, "%d images begin with %s", len(found), digits).WithHint("type more of the digest")
}

// now is the time of a record, without the part that JSON would not bring back alike.
func now() time.Time { return time.Now().UTC().Truncate(time.Second) }
