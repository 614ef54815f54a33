package rootfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Bundles are where distributions keep the list of certificate authorities that OpenSSL, GnuTLS and Go read: Debian and Alpine, Fedora, SUSE, and OpenSSL's own place.
func Bundles() []string {
	return []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem"}
}

// maxBundle bounds a list of authorities; a full one has a quarter of a mebibyte.
const maxBundle = 8 << 20

// listing is a tree in which lists of authorities lie, or the part of one below a prefix.
type listing struct{ root, prefix string }

// below returns where a path lies in the tree.
func (l listing) below(path string) (string, bool) { return strings.CutPrefix(path, l.prefix+"/") }

// read reads a list; nil where there is none.
func (l listing) read(path string) ([]byte, error) {
	inside, ok := l.below(path)
	if !ok {
		return nil, nil
	}
	root, err := os.Open(l.root)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	// A link leads to where it will lead when the tree is the root, so never out of it. A pipe is not waited for.
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(int(root.Fd()), inside, &how)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the list of authorities %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxBundle))
	if err != nil {
		return nil, fmt.Errorf("read the list of authorities: %w", err)
	}
	return data, nil
}

// bundle returns a bundle with more authorities at its end; nil where there is none.
func (l listing) bundle(path string, more []byte) ([]byte, error) {
	data, err := l.read(path)
	if data == nil || err != nil {
		return nil, err
	}
	if len(data) > 0 && data[len(data)-1] != '\n' {
		data = append(data, '\n')
	}
	return append(data, more...), nil
}

// trusting calls f for each list that the tree has, with the sandbox's own authorities added to it.
func (b *builder) trusting(l listing, f func(path string, data []byte) error) error {
	if len(b.cfg.Trust) == 0 {
		return nil
	}
	for _, kind := range []struct {
		paths []string
		with  func(path string, more []byte) ([]byte, error)
	}{{Bundles(), l.bundle}, {JavaStores(), l.java}} {
		for _, path := range kind.paths {
			data, err := kind.with(path, b.cfg.Trust)
			if err != nil {
				return err
			}
			if data == nil {
				continue
			}
			if err := f(path, data); err != nil {
				return err
			}
		}
	}
	return nil
}

// seedTrust lays lists with the sandbox's own authorities into an overlay's upper directory.
func (b *builder) seedTrust(lower, upper, prefix string) error {
	l := listing{lower, strings.TrimSuffix(prefix, "/")}
	return b.trusting(l, func(path string, data []byte) error {
		path, _ = l.below(path) // it was read there
		if err := copyParents(lower, upper, "/"+path); err != nil {
			return err
		}
		return os.WriteFile(upper+"/"+path, data, 0o644)
	})
}

// bindTrust does the same where a directory is bound itself: a file with the list is bound over the host's.
func (b *builder) bindTrust(prefix string) error {
	return b.trusting(listing{b.view.root, ""}, func(path string, data []byte) error {
		if !strings.HasPrefix(path, prefix+"/") {
			return nil
		}
		return b.bindFile(path, stage+"/trust"+strings.ReplaceAll(path, "/", "-"), string(data))
	})
}
