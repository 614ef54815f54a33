package image

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// staging is an image that is being made. Its directory is locked while its maker lives, so that what a killed one left is known by its lock.
type staging struct {
	store *Store
	dir   string
	lock  *os.File
}

// stage makes a place for a new image.
func (s *Store) stage() (*staging, error) {
	release, err := s.lock() // no sweep comes between making and locking
	if err != nil {
		return nil, err
	}
	defer release()
	return s.stageLocked()
}

// stageLocked is stage for who holds the store's lock.
func (s *Store) stageLocked() (*staging, error) {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails since Go 1.24
	g := &staging{store: s, dir: filepath.Join(s.dir, stagingDir, hex.EncodeToString(id[:]))}
	if err := os.Mkdir(g.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make a place for the image: %w", err)
	}
	var err error
	if g.lock, err = os.OpenFile(g.dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return nil, errors.Join(err, os.Remove(g.dir))
	}
	if err := unix.Flock(int(g.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock the place for the image: %w", err), g.discard())
	}
	for _, dir := range []string{g.image(), g.tree()} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, errors.Join(err, g.discard())
		}
	}
	if err := os.WriteFile(filepath.Join(g.image(), lockName), nil, 0o600); err != nil {
		return nil, errors.Join(err, g.discard())
	}
	return g, nil
}

// image is what becomes content/HEX.
func (g *staging) image() string { return filepath.Join(g.dir, "image") }

func (g *staging) tree() string { return filepath.Join(g.image(), treeName) }

// write adds a file to the image.
func (g *staging) write(name string, data []byte) error {
	if err := os.WriteFile(filepath.Join(g.image(), name), data, 0o600); err != nil {
		return fmt.Errorf("write %s of the image: %w", name, err)
	}
	return nil
}

// discard removes what was made.
func (g *staging) discard() error {
	err := removeAll(g.dir)
	return errors.Join(err, g.lock.Close())
}

// commit puts a finished image into the store, and gives it its names. If it is there already the one that is there stays.
func (g *staging) commit(hexDigest string, record Image, names ...string) (Image, error) {
	if err := unix.Syncfs(int(g.lock.Fd())); err != nil { // no image that is there may have empty files after a power loss
		return Image{}, fmt.Errorf("write the image to the disk: %w", err)
	}
	release, err := g.store.lock()
	if err != nil {
		return Image{}, err
	}
	defer release()
	if _, err := os.Lstat(g.store.content(hexDigest)); errors.Is(err, os.ErrNotExist) {
		if err := writeWhole(g.store.record(hexDigest), record); err != nil {
			return Image{}, err
		}
		if err := os.Rename(g.image(), g.store.content(hexDigest)); err != nil {
			return Image{}, errors.Join(fmt.Errorf("put the image in place: %w", err), os.Remove(g.store.record(hexDigest)))
		}
	} else if err != nil {
		return Image{}, err
	}
	return g.store.name(hexDigest, names...)
}

// name gives an image that is there more names. The caller holds the lock.
func (s *Store) name(hexDigest string, names ...string) (Image, error) {
	if _, err := os.Lstat(s.content(hexDigest)); err != nil {
		return Image{}, fault.New(fault.NotFound, "the image %s was removed meanwhile", hexDigest[:12]).WithHint("try again")
	}
	err := s.changeNames(func(all map[string]string) {
		for _, name := range names {
			all[name] = "sha256:" + hexDigest
		}
	})
	if err != nil {
		return Image{}, err
	}
	all, err := s.names()
	if err != nil {
		return Image{}, err
	}
	return s.load(hexDigest, all)
}

// Remove takes a name from an image, and the image away with its last one. A digest, or digits of one, stands for the image with all its names.
// NotFound: there is none. Conflict: somebody holds it; then its names stay too.
func (s *Store) Remove(ref string) error {
	g, err := s.takeAway(ref)
	if err != nil || g == nil {
		return err
	}
	return g.discard()
}

// takeAway makes an image, or one of its names, not be there. What is left to delete is returned, since that takes long, and nobody should wait for it.
func (s *Store) takeAway(ref string) (*staging, error) {
	release, err := s.lock()
	if err != nil {
		return nil, err
	}
	defer release()
	i, err := s.Find(ref)
	if err != nil {
		return nil, err
	}
	if r, err := ParseReference(ref); err == nil && len(i.Names) > 1 && slices.Contains(i.Names, r.String()) {
		return nil, s.changeNames(func(all map[string]string) { delete(all, r.String()) })
	}
	return s.removeContent(i)
}

// removeContent takes an image out of its place, to be deleted. The caller holds the lock of the store.
func (s *Store) removeContent(i Image) (*staging, error) {
	hexDigest, _ := hexOf(i.Digest)
	lock, err := os.Open(filepath.Join(s.content(hexDigest), lockName))
	if err != nil {
		return nil, fmt.Errorf("remove image: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fault.New(fault.Conflict, "the image %s is in use", short(i.Digest)).WithHint("see what runs with: cofferdam ps")
	}
	g, err := s.stageLocked()
	if err != nil {
		return nil, err
	}
	err = s.changeNames(func(all map[string]string) {
		for name, digest := range all {
			if digest == i.Digest {
				delete(all, name)
			}
		}
	})
	if err == nil {
		err = os.Rename(s.content(hexDigest), filepath.Join(g.dir, "removed"))
	}
	if err == nil {
		err = os.Remove(s.record(hexDigest))
	}
	if err != nil {
		return nil, errors.Join(err, g.discard())
	}
	return g, nil
}

// Pruned says what Prune removed.
type Pruned struct {
	Leftovers int      `json:"leftovers"` // of processes that were killed
	Images    []string `json:"images"`    // digests of images without a name
}

// Prune removes what killed pulls and builds have left, and with unnamed also images that have lost their last name to a newer one and that nobody holds.
func (s *Store) Prune(unnamed bool) (Pruned, error) {
	p := Pruned{Images: []string{}}
	var err error
	if p.Leftovers, err = s.Sweep(); err != nil || !unnamed {
		return p, err
	}
	list, err := s.List()
	if err != nil {
		return p, err
	}
	for _, i := range list {
		if len(i.Names) > 0 {
			continue
		}
		g, err := s.takeUnnamed(i.Digest)
		if kind := fault.KindOf(err); err != nil && (kind == fault.Conflict || kind == fault.NotFound) {
			continue // in use, or somebody was faster
		}
		if err != nil {
			return p, err
		}
		if g == nil {
			continue
		}
		if err := g.discard(); err != nil {
			return p, err
		}
		p.Images = append(p.Images, i.Digest)
	}
	return p, nil
}

// takeUnnamed takes an image away unless it has a name by now.
func (s *Store) takeUnnamed(digest string) (*staging, error) {
	release, err := s.lock()
	if err != nil {
		return nil, err
	}
	defer release()
	i, err := s.Find(digest)
	if err != nil || len(i.Names) > 0 {
		return nil, err
	}
	return s.removeContent(i)
}

// Sweep removes what killed pulls and builds have left, and says how many things those were. A process that is going to confine itself calls it before.
func (s *Store) Sweep() (n int, err error) {
	dead, n, err := s.dead()
	for _, g := range dead {
		err = errors.Join(err, g.discard())
	}
	return n + len(dead), err
}

// dead finds, and locks, what is being made by nobody, and removes records without an image. The store is locked meanwhile, so that nobody is between making a place and
// locking it, or between a record and its image.
func (s *Store) dead() (list []*staging, records int, err error) {
	release, err := s.lock()
	if err != nil {
		return nil, 0, err
	}
	defer release()
	entries, err := os.ReadDir(filepath.Join(s.dir, stagingDir))
	if err != nil {
		return nil, 0, fmt.Errorf("look for left-overs: %w", err)
	}
	for _, e := range entries {
		g := &staging{store: s, dir: filepath.Join(s.dir, stagingDir, e.Name())}
		g.lock, err = os.OpenFile(g.dir, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, os.ErrNotExist) {
			continue // its maker was done with it
		}
		if err != nil {
			return list, 0, fmt.Errorf("look at a left-over: %w", err)
		}
		if unix.Flock(int(g.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
			_ = g.lock.Close() // its maker lives
			continue
		}
		list = append(list, g)
	}
	records, err = s.sweepRecords()
	return list, records, err
}

// sweepRecords removes records without an image, which a process leaves that is killed between the two, and files that were being written.
// The caller holds the lock, under which both are made.
func (s *Store) sweepRecords() (n int, err error) {
	dir := filepath.Join(s.dir, recordsDir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, fmt.Errorf("look for left-overs: %w", err)
	}
	for _, e := range entries {
		hexDigest, isRecord := strings.CutSuffix(e.Name(), ".json")
		stale := strings.HasPrefix(e.Name(), "new-")
		if isRecord && len(hexDigest) == 64 {
			_, err := os.Lstat(s.content(hexDigest))
			stale = errors.Is(err, os.ErrNotExist)
		}
		if stale {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return n, err
			}
			n++
		}
	}
	return n, nil
}

// removeAll removes a directory of the store, also one in which directories cannot be entered by who owns them. Nothing is followed.
func removeAll(dir string) error {
	above, err := os.OpenFile(filepath.Dir(dir), unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer above.Close()
	if err := removeAt(above, filepath.Base(dir)); err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return nil
}

func removeAt(dir *os.File, name string) error {
	err := unix.Unlinkat(int(dir.Fd()), name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) {
		return err
	}
	open := func() (int, error) {
		return unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	}
	fd, err := open()
	if errors.Is(err, unix.EACCES) {
		if err := unix.Fchmodat(int(dir.Fd()), name, 0o700, 0); err != nil { // it is a directory, so no link is followed
			return err
		}
		fd, err = open()
	}
	if err != nil {
		return err
	}
	below := os.NewFile(uintptr(fd), name)
	err = emptyAt(below)
	if err = errors.Join(err, below.Close()); err != nil {
		return err
	}
	return unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR)
}

// emptyAt removes what is in a directory. One that its owner may not write to is opened up first.
func emptyAt(dir *os.File) error {
	names, err := entries(dir)
	if err != nil {
		return err
	}
	opened := false
	for _, name := range names {
		err := removeAt(dir, name)
		if errors.Is(err, unix.EACCES) && !opened {
			opened = true
			if err = unix.Fchmod(int(dir.Fd()), 0o700); err == nil {
				err = removeAt(dir, name)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}
