// Package image (CONTROL) keeps images: file system trees with a configuration, pulled from registries or built here, unpacked once and shared read-only.
//
// What comes from a registry is hostile until its digest fits: manifests, configurations and layers are bounded and verified before they count, nothing of a layer
// is written outside the image's own tree, and a configuration only suggests. An image is in the store whole or not at all.
package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Image is one image in a store. Its files are never written by a run: they are the lower layer of an overlay.
type Image struct {
	Names   []string  `json:"names"`            // what it is called, sorted; an image that lost its last name has none
	Digest  string    `json:"digest"`           // of its manifest for this platform: sha256:HEX
	Index   string    `json:"index,omitempty"`  // digest of the list of platforms that it was chosen from
	Tree    string    `json:"tree"`             // absolute path of the unpacked root
	Disk    string    `json:"disk"`             // absolute path where a disk image of Tree may be kept; it need not exist
	Size    int64     `json:"size"`             // bytes in regular files
	Files   int64     `json:"files"`            // entries of all layers
	Created time.Time `json:"created,omitzero"` // as its maker says
	Pulled  time.Time `json:"pulled,omitzero"`  // when it came here
	Source  string    `json:"source,omitempty"` // the reference that it was pulled by; empty: it was built here
	Config  Config    `json:"config"`           // as far as it is honoured
	Notes   []string  `json:"notes,omitempty"`  // what was left out of its files, and why, a sentence each
	SBOM    string    `json:"sbom,omitempty"`   // absolute path of its bill of materials
}

// Hold keeps the image from being removed for as long as the file is open, also in other processes that inherit it.
// NotFound: it was removed since it was found.
func (i Image) Hold() (*os.File, error) {
	name := filepath.Join(filepath.Dir(i.Tree), lockName)
	f, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, i.gone()
	}
	if err != nil {
		return nil, fmt.Errorf("hold image: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil { // whoever removes it has it alone
		_ = f.Close() // nothing is in it
		return nil, i.gone()
	}
	ours, err1 := f.Stat()
	there, err2 := os.Stat(name)
	if err1 != nil || err2 != nil || !os.SameFile(ours, there) {
		_ = f.Close() // it was removed before the lock was ours
		return nil, i.gone()
	}
	return f, nil
}

func (i Image) gone() error {
	return fault.New(fault.NotFound, "the image %s is not there any more", short(i.Digest)).WithHint("list images with: cofferdam image list")
}

// short is the part of a digest that people see.
func short(digest string) string {
	if hex, ok := hexOf(digest); ok {
		return hex[:12]
	}
	return digest
}
