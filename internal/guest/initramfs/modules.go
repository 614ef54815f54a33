package initramfs

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Drivers are the names of the modules that a machine needs, where its kernel does not have them built in: its bus, disks, network and port, and the file systems of its view.
func Drivers() []string {
	return []string{"virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net", "virtio_console", "vmw_vsock_virtio_transport", "overlay", "erofs"}
}

// CryptDrivers are those that only encrypted scratch needs: the device mapper's encryption, the cipher's mode with what that is made of, and the processor's own AES,
// without which the kernel's portable one takes its place.
func CryptDrivers() []string { return []string{"dm_crypt", "ecb", "xts", "aesni_intel"} }

// Resolve finds modules and all that they need in a kernel's directory of modules (lib/modules/RELEASE), and returns their paths in an order in which each comes after those
// that it needs. Modules that are built in are left out.
func Resolve(dir string, names []string) ([]string, error) {
	r := resolver{paths: map[string]string{}, state: map[string]state{}}
	if err := r.builtIn(filepath.Join(dir, "modules.builtin")); err != nil {
		return nil, err
	}
	if err := filepath.WalkDir(dir, r.find); err != nil {
		return nil, err
	}
	for _, name := range names {
		if err := r.add(name); err != nil {
			return nil, err
		}
	}
	return r.order, nil
}

type resolver struct {
	paths map[string]string // by name
	state map[string]state
	order []string
}

// state is how far a module is. The zero value is untouched.
type state uint8

const (
	adding state = iota + 1
	added
)

// builtIn notes what the kernel has without a module.
func (r *resolver) builtIn(list string) error {
	data, err := os.ReadFile(list)
	if err != nil {
		return fmt.Errorf("read what the kernel has built in: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		r.state[nameOf(strings.TrimSpace(line))] = added
	}
	return nil
}

func (r *resolver) find(path string, d fs.DirEntry, err error) error {
	if err == nil && d.Type().IsRegular() && strings.Contains(d.Name(), ".ko") {
		r.paths[nameOf(path)] = path
	}
	return err
}

// nameOf is a module's name: that of its file, with underscores.
func nameOf(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// add appends a module after what it needs.
func (r *resolver) add(name string) error {
	switch r.state[name] {
	case added:
		return nil
	case adding:
		return fmt.Errorf("module %s needs itself", name)
	}
	path, ok := r.paths[name]
	if !ok {
		return fmt.Errorf("the kernel has no module %s", name)
	}
	r.state[name] = adding
	needs, err := needsOf(path)
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	for _, need := range needs {
		if err := r.add(need); err != nil {
			return fmt.Errorf("%s needs: %w", name, err)
		}
	}
	r.state[name] = added
	r.order = append(r.order, path)
	return nil
}

// needsOf reads which modules one needs from the section in which the kernel's build has written them.
func needsOf(path string) ([]string, error) {
	if !strings.HasSuffix(path, ".ko") {
		return nil, errors.New("it is compressed, which is not read here")
	}
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("it says nothing about itself")
	}
	data, err := section.Data()
	if err != nil {
		return nil, err
	}
	var needs []string
	for word := range strings.SplitSeq(string(data), "\x00") {
		if list, ok := strings.CutPrefix(word, "depends="); ok && list != "" {
			needs = append(needs, strings.Split(strings.ReplaceAll(list, "-", "_"), ",")...)
		}
	}
	return needs, nil
}
