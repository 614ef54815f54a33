package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// maxSBOM bounds a bill of materials, in bytes: 10,000 packages with all they say of themselves have some 20 MB.
const maxSBOM = 64 << 20

// ImportOptions describes an image that was built here.
type ImportOptions struct {
	Config  Config    // Ignored is not read
	SBOM    []byte    // JSON; nil for none
	Created time.Time // part of the digest; the zero value leaves it out
	Bounds  Bounds
}

// Import makes an image of one layer, a tar that is not compressed, and calls it name: [PATH/]NAME[:TAG], without a registry, since it came from none. The same layer,
// configuration and time have the same digest everywhere. The layer is taken apart as carefully as one from a registry.
func (s *Store) Import(ctx context.Context, name string, layer io.Reader, o ImportOptions) (Image, error) {
	ref, err := ParseReference(name)
	if err != nil {
		return Image{}, err
	}
	if ref.Registry != "" || ref.Digest != "" {
		return Image{}, fault.New(fault.Invalid, "%s names a registry or a digest, but the image is made here", ref).WithHint("leave the registry out: %s:TAG", ref.Repository)
	}
	if len(o.SBOM) > maxSBOM {
		return Image{}, fault.New(fault.TooMany, "the bill of materials has %d bytes, more than %d", len(o.SBOM), maxSBOM)
	}
	if o.Config, err = HonourConfig(o.Config); err != nil {
		return Image{}, err
	}
	if _, err := s.Sweep(); err != nil {
		return Image{}, err
	}
	g, err := s.stage()
	if err != nil {
		return Image{}, err
	}
	i, err := g.importLayer(ctx, ref, layer, o)
	return i, errors.Join(err, g.discard())
}

func (g *staging) importLayer(ctx context.Context, ref Reference, layer io.Reader, o ImportOptions) (Image, error) {
	a, err := newApplier(g.tree(), o.Bounds)
	if err != nil {
		return Image{}, err
	}
	left := a.bounds.Unpacked
	unpacked, diffID, err := a.applyLayer(ctx, layer, "", "", &left)
	if err != nil {
		return Image{}, errors.Join(err, a.close())
	}
	notes, err := a.finishTree()
	if err != nil {
		return Image{}, err
	}
	manifest, config, err := describe(diffID, unpacked.bytes, o)
	if err != nil {
		return Image{}, err
	}
	if err := errors.Join(g.write("manifest.json", manifest), g.write("config.json", config)); err != nil {
		return Image{}, err
	}
	record := Image{Size: a.bytes, Files: a.files, Created: created(o.Created), Pulled: now(), Config: o.Config, Notes: notes}
	if o.SBOM != nil {
		record.SBOM = sbomName
		if err := g.write(sbomName, o.SBOM); err != nil {
			return Image{}, err
		}
	}
	sum := sha256.Sum256(manifest)
	return g.commit(hex.EncodeToString(sum[:]), record, ref.String())
}

// describe makes the OCI configuration and manifest of an image of one layer.
func describe(diffID string, size int64, o ImportOptions) (manifest, config []byte, err error) {
	layer, err := v1.NewHash(diffID)
	if err != nil {
		return nil, nil, err
	}
	config, err = encode(v1.ConfigFile{
		Architecture: runtime.GOARCH, OS: "linux", Created: v1.Time{Time: o.Created.UTC()}, RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{layer}},
		Config: v1.Config{Env: o.Config.Env, WorkingDir: o.Config.WorkingDir, Entrypoint: o.Config.Entrypoint, Cmd: o.Config.Cmd, User: o.Config.User},
	})
	if err != nil {
		return nil, nil, err
	}
	sum := sha256.Sum256(config)
	manifest, err = encode(v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
		Config: v1.Descriptor{MediaType: types.OCIConfigJSON, Size: int64(len(config)), Digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}},
		Layers: []v1.Descriptor{{MediaType: types.OCIUncompressedLayer, Size: size, Digest: layer}},
	})
	return manifest, config, err
}

// encode writes a document of an image: the same bytes for the same content.
func encode(v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode the image's description: %w", err)
	}
	return data, nil
}
