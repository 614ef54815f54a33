package rootfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// Bundles are where distributions keep the list of certificate authorities that OpenSSL, GnuTLS and Go read: Debian and Alpine, Fedora, SUSE, and OpenSSL's own place.
func Bundles() []string {
	return []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem"}
}

// maxBundle bounds a list of authorities; a full one has a quarter of a mebibyte.
const maxBundle = 8 << 20

// withTrust returns a bundle of a tree with the sandbox's own authorities at its end; nil where the tree has no such bundle.
func (b *builder) withTrust(tree, path string) ([]byte, error) {
	root, err := os.OpenRoot(tree)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.Open(strings.TrimPrefix(path, "/"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the list of authorities: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxBundle))
	if err != nil {
		return nil, fmt.Errorf("read the list of authorities: %w", err)
	}
	if len(data) > 0 && data[len(data)-1] != '\n' {
		data = append(data, '\n')
	}
	return append(data, b.cfg.Trust...), nil
}

// seedTrust lays bundles with the sandbox's own authorities into an overlay's upper directory.
func (b *builder) seedTrust(lower, upper, prefix string) error {
	if len(b.cfg.Trust) == 0 {
		return nil
	}
	for _, bundle := range Bundles() {
		path, ok := strings.CutPrefix(bundle, strings.TrimSuffix(prefix, "/"))
		if !ok {
			continue
		}
		data, err := b.withTrust(lower, path)
		if err != nil || data == nil {
			if err != nil {
				return err
			}
			continue
		}
		if err := copyParents(lower, upper, path); err != nil {
			return err
		}
		if err := os.WriteFile(upper+path, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// bindTrust does the same where a directory is bound itself: a file with the bundle is bound over the host's.
func (b *builder) bindTrust(prefix string) error {
	if len(b.cfg.Trust) == 0 {
		return nil
	}
	for i, bundle := range Bundles() {
		if !strings.HasPrefix(bundle, prefix+"/") {
			continue
		}
		data, err := b.withTrust(b.view.root, bundle)
		if err != nil {
			return err
		}
		if data == nil {
			continue
		}
		if err := b.bindFile(bundle, stage+"/trust"+strconv.Itoa(i), string(data)); err != nil {
			return err
		}
	}
	return nil
}
