package image

import (
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Bounds of an image. A zero stands for the default.
type Bounds struct {
	Unpacked int64 // bytes of all layers as archives, and of all files that come out of them; 16 GiB
	Packed   int64 // bytes of all layers as they are sent; 16 GiB
	Files    int64 // entries of all layers; 2,000,000
}

// The defaults are far above images that people use: the largest well-known ones, for machine learning, have some 10 GiB and 300,000 files.
const (
	defaultUnpacked = 16 << 30
	defaultPacked   = 16 << 30
	defaultFiles    = 2_000_000
)

func (b Bounds) withDefaults() Bounds {
	if b.Unpacked <= 0 {
		b.Unpacked = defaultUnpacked
	}
	if b.Packed <= 0 {
		b.Packed = defaultPacked
	}
	if b.Files <= 0 {
		b.Files = defaultFiles
	}
	return b
}

func (b Bounds) tooLarge() error {
	return fault.New(fault.TooMany, "the image unpacks to more than %d bytes", b.Unpacked).WithHint("if that is meant: --max-size SIZE")
}

// maxWindow is the memory that a zstd stream may ask for, in bytes: what the strongest level without --ultra uses is 8 MiB, with --long 128.
const maxWindow = 128 << 20

// compression says how a layer of a media type is packed. What is not listed is no layer that is taken: foreign layers lie elsewhere, by a URL.
func compression(t types.MediaType) (how string, ok bool) {
	switch t {
	case types.OCILayer, types.DockerLayer:
		return "gzip", true
	case types.OCILayerZStd:
		return "zstd", true
	case types.OCIUncompressedLayer, types.DockerUncompressedLayer:
		return "", true
	}
	return "", false
}

// stream is an unpacked layer as it goes by: counted against what the image may still have, and hashed.
type stream struct {
	from  io.Reader
	left  *int64 // of Bounds.Unpacked, for all layers together
	over  error
	hash  hash.Hash
	bytes int64
	close func()
}

// openStream unpacks a layer.
func openStream(packed io.Reader, how string, left *int64, over error) (*stream, error) {
	s := &stream{from: packed, left: left, over: over, hash: sha256.New(), close: func() {}}
	switch how {
	case "gzip":
		z, err := gzip.NewReader(bufio.NewReaderSize(packed, 64<<10))
		if err != nil {
			return nil, damaged(fmt.Errorf("gzip: %w", err))
		}
		s.from = z
	case "zstd":
		z, err := zstd.NewReader(packed, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, damaged(fmt.Errorf("zstd: %w", err))
		}
		s.from, s.close = z, z.Close
	}
	return s, nil
}

// Read reads unpacked bytes. What is over the bound is an error, however little was sent for it.
func (s *stream) Read(p []byte) (int, error) {
	n, err := s.from.Read(p)
	s.bytes += int64(n)
	if *s.left -= int64(n); *s.left < 0 {
		return 0, s.over
	}
	_, _ = s.hash.Write(p[:n]) // never fails
	return n, err
}

// digest reads what is left behind the archive, which counts too, and returns the digest of all of it: what a configuration calls a layer's diff ID.
func (s *stream) digest(buffer []byte) (string, error) {
	if _, err := io.CopyBuffer(io.Discard, onlyReader{s}, buffer); err != nil {
		return "", damaged(err)
	}
	return "sha256:" + hex.EncodeToString(s.hash.Sum(nil)), nil
}

type onlyReader struct{ io.Reader }

// applyLayer unpacks one layer into the tree and holds it to its diff ID, if there is one to hold it to.
func (a *applier) applyLayer(ctx context.Context, packed io.Reader, how, diffID string, left *int64) (s *stream, digest string, err error) {
	s, err = openStream(packed, how, left, a.bounds.tooLarge())
	if err != nil {
		return nil, "", err
	}
	defer s.close()
	if err := a.layer(ctx, s); err != nil {
		return nil, "", err
	}
	digest, err = s.digest(a.buffer)
	if err == nil && diffID != "" && digest != diffID {
		err = fault.New(fault.Invalid, "a layer unpacks to %s, but the image's configuration names %s", short(digest), short(diffID)).
			WithHint("the image is broken or was tampered with; nothing of it was kept")
	}
	return s, digest, err
}

// finishTree ends the unpacking and says what was left out.
func (a *applier) finishTree() ([]string, error) {
	err := a.finish()
	a.left.xattrs += a.plain
	return a.left.notes(), errors.Join(err, a.close())
}
