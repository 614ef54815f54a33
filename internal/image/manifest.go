package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"mime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Bounds of what describes an image.
const (
	maxManifest = 4 << 20 // bytes; registries take no larger ones (OCI distribution specification 1.1, "Pushing manifests")
	maxConfig   = 4 << 20
	maxLayers   = 128 // overlay file systems take no more, so images have fewer
	maxIndexes  = 2   // an index, and one in it
)

// document is a manifest or index whose bytes have the digest.
type document struct {
	mediaType types.MediaType
	digest    string
	data      []byte
}

func manifestTypes() []string {
	return []string{string(types.OCIImageIndex), string(types.DockerManifestList), string(types.OCIManifestSchema1), string(types.DockerManifestSchema2)}
}

// fetchManifest gets a manifest or index. want is the digest that it must have, or empty for a tag, whose digest is what comes.
func (r *registry) fetchManifest(ctx context.Context, name, want string) (document, error) {
	answer, data, err := r.document(ctx, "manifests/"+name, maxManifest, "a manifest", manifestTypes()...)
	if err != nil {
		return document{}, err
	}
	d := document{digest: digestOf(data), data: data}
	if want == "" {
		want = answer.Header.Get("Docker-Content-Digest")
	}
	if want != "" && want != d.digest {
		return d, fault.New(fault.Invalid, "%s sends a manifest with the digest %s in place of %s", answer.Request.URL.Host, short(d.digest), short(want)).
			WithHint("the image is broken or was tampered with; nothing of it was kept")
	}
	d.mediaType, err = manifestType(answer.Header.Get("Content-Type"), data)
	return d, err
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// manifestType settles what a document is: one thing by its header and by all that it says of itself, or it is refused. One that two readers take for two things
// would be verified as one and used as the other.
func manifestType(header string, data []byte) (types.MediaType, error) {
	var inside struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     types.MediaType `json:"mediaType"`
		Config        json.RawMessage `json:"config"`
		Layers        json.RawMessage `json:"layers"`
		Manifests     json.RawMessage `json:"manifests"`
		FSLayers      json.RawMessage `json:"fsLayers"`
	}
	if err := json.Unmarshal(data, &inside); err != nil {
		return "", fault.New(fault.Invalid, "the registry sends something else than a manifest").Because(err)
	}
	t, _, err := mime.ParseMediaType(header)
	outside := types.MediaType(t)
	if outside.IsSchema1() || inside.SchemaVersion == 1 || inside.FSLayers != nil {
		return "", fault.New(fault.Unsupported, "the image has a manifest of Docker's first schema, which names no configuration and is not verified").WithHint("have it pushed again by a tool of this decade")
	}
	if err != nil || !outside.IsImage() && !outside.IsIndex() {
		return "", fault.New(fault.Unsupported, "the registry sends a manifest of the type %.80q", header).WithHint("images are pulled, OCI and Docker version 2, schema 2; other artifacts are not")
	}
	if inside.SchemaVersion != 2 || inside.MediaType != "" && inside.MediaType != outside {
		return "", fault.New(fault.Invalid, "the manifest calls itself %.80q, schema %d, but was sent as %q", inside.MediaType, inside.SchemaVersion, outside)
	}
	if outside.IsIndex() && (inside.Config != nil || inside.Layers != nil) || outside.IsImage() && inside.Manifests != nil {
		return "", fault.New(fault.Invalid, "the manifest is an image and a list of images at once")
	}
	return outside, nil
}

// resolved is an image whose description is verified: the digests lead from what was asked for to the layers.
type resolved struct {
	index    string // digest of the outermost index; empty without one
	manifest document
	config   []byte
	layers   []layerPlan
	file     *v1.ConfigFile
}

// layerPlan is what is known of a layer before it is fetched.
type layerPlan struct {
	digest string
	size   int64
	how    string // compression
	diffID string
}

// find leads from the reference to the manifest of this platform.
func (r *registry) find(ctx context.Context, p v1.Platform) (index string, d document, err error) {
	name := r.ref.Digest
	if name == "" {
		name = r.ref.Tag
	}
	if d, err = r.fetchManifest(ctx, name, r.ref.Digest); err != nil {
		return "", d, err
	}
	for depth := 0; d.mediaType.IsIndex(); depth++ {
		if depth == maxIndexes {
			return "", d, fault.New(fault.Unsupported, "the image is a list of lists of lists of images").WithHint("pull one of them by its digest: REPOSITORY@sha256:HEX")
		}
		if index == "" {
			index = d.digest
		}
		next, err := choose(d.data, p)
		if err != nil {
			return "", d, err
		}
		if d, err = r.fetchManifest(ctx, next.Digest.String(), next.Digest.String()); err != nil {
			return "", d, err
		}
		if int64(len(d.data)) != next.Size || d.mediaType != next.MediaType {
			return "", d, fault.New(fault.Invalid, "a manifest has %d bytes and the type %q, but the list of images says %d and %.80q", len(d.data), d.mediaType, next.Size, next.MediaType)
		}
	}
	return index, d, nil
}

// choose finds the entry of an index for a platform, else one that is an index itself and says nothing of platforms.
func choose(data []byte, p v1.Platform) (v1.Descriptor, error) {
	index, err := v1.ParseIndexManifest(bytes.NewReader(data))
	if err != nil {
		return v1.Descriptor{}, fault.New(fault.Invalid, "the list of images is damaged").Because(err)
	}
	var others []string
	for _, m := range index.Manifests {
		if m.Platform != nil && m.Platform.OS == p.OS && m.Platform.Architecture == p.Architecture && (m.MediaType.IsImage() || m.MediaType.IsIndex()) {
			return m, checkDescriptor(m, maxManifest)
		}
		if m.Platform != nil && m.Platform.OS != "unknown" && len(others) < 20 { // attestations are for an unknown platform
			others = append(others, m.Platform.String())
		}
	}
	for _, m := range index.Manifests {
		if m.Platform == nil && m.MediaType.IsIndex() {
			return m, checkDescriptor(m, maxManifest)
		}
	}
	slices.Sort(others)
	return v1.Descriptor{}, fault.New(fault.NotFound, "the image is not made for %s; it is for: %.400s", p.String(), strings.Join(slices.Compact(others), ", ")).WithHint("ask its maker, or build it here: cofferdam image build")
}

// checkDescriptor refuses descriptors that lie elsewhere, are too large, or are not verified by SHA-256.
func checkDescriptor(d v1.Descriptor, most int64) error {
	if len(d.URLs) > 0 {
		return fault.New(fault.Unsupported, "a part of the image lies elsewhere: %.200q", d.URLs[0]).WithHint("only what the registry itself hands out is taken")
	}
	if _, ok := hexOf(d.Digest.String()); !ok {
		return fault.New(fault.Unsupported, "a part of the image is named by %.100q, which is no SHA-256 digest", d.Digest)
	}
	if d.Size <= 0 || d.Size > most {
		return fault.New(fault.TooMany, "a part of the image has %d bytes; %d are the most", d.Size, most).WithHint("if that is a layer and meant: --max-size SIZE")
	}
	return nil
}

// describeImage fetches the configuration that a manifest names, and holds the two to each other and to the bounds.
func (r *registry) describeImage(ctx context.Context, d document, p v1.Platform, b Bounds) (resolved, error) {
	out := resolved{manifest: d}
	m, err := v1.ParseManifest(bytes.NewReader(d.data))
	if err != nil {
		return out, fault.New(fault.Invalid, "the manifest is damaged").Because(err)
	}
	if !m.Config.MediaType.IsConfig() {
		return out, fault.New(fault.Unsupported, "the manifest is of no image: its configuration has the type %.80q", m.Config.MediaType).WithHint("other artifacts are not pulled")
	}
	if err := checkDescriptor(m.Config, maxConfig); err != nil {
		return out, err
	}
	if out.layers, err = planLayers(m.Layers, b); err != nil {
		return out, err
	}
	if out.config, err = r.fetchConfig(ctx, m.Config); err != nil {
		return out, err
	}
	if out.file, err = v1.ParseConfigFile(bytes.NewReader(out.config)); err != nil {
		return out, fault.New(fault.Invalid, "the image's configuration is damaged").Because(err)
	}
	return out, out.match(p)
}

func planLayers(layers []v1.Descriptor, b Bounds) ([]layerPlan, error) {
	if len(layers) == 0 || len(layers) > maxLayers {
		return nil, fault.New(fault.TooMany, "the image has %d layers; it must have 1 to %d", len(layers), maxLayers)
	}
	var plans []layerPlan
	total := int64(0)
	for _, l := range layers {
		how, ok := compression(l.MediaType)
		if !ok {
			return nil, fault.New(fault.Unsupported, "the image has a layer of the type %.100q", l.MediaType).WithHint("layers are tar, tar+gzip or tar+zstd, and lie in the registry itself")
		}
		if err := checkDescriptor(l, b.Packed-total); err != nil {
			return nil, err
		}
		total += l.Size
		plans = append(plans, layerPlan{digest: l.Digest.String(), size: l.Size, how: how})
	}
	return plans, nil
}

// match holds a configuration to its manifest and to this machine.
func (x *resolved) match(p v1.Platform) error {
	f := x.file
	if f.OS != p.OS || f.Architecture != p.Architecture {
		return fault.New(fault.Unsupported, "the image is for %.40s/%.40s, and this machine is %s", f.OS, f.Architecture, p.String()).WithHint("pull one that is made for this machine")
	}
	if f.RootFS.Type != "layers" || len(f.RootFS.DiffIDs) != len(x.layers) {
		return fault.New(fault.Invalid, "the image's configuration names %d layers, its manifest %d", len(f.RootFS.DiffIDs), len(x.layers))
	}
	for i, id := range f.RootFS.DiffIDs {
		if _, ok := hexOf(id.String()); !ok {
			return fault.New(fault.Unsupported, "a layer of the image is named by %.100q, which is no SHA-256 digest", id)
		}
		x.layers[i].diffID = id.String()
	}
	return nil
}

// fetchConfig gets the configuration whole, and believes it if its digest fits.
func (r *registry) fetchConfig(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	answer, data, err := r.document(ctx, "blobs/"+d.Digest.String(), d.Size, "a configuration")
	if err != nil {
		return nil, err
	}
	if got := digestOf(data); got != d.Digest.String() {
		return nil, wrongBlob(answer.Request.URL.Host, fmt.Sprintf("%d bytes with the digest %s", len(data), short(got)), layerPlan{digest: d.Digest.String(), size: d.Size})
	}
	return data, nil
}

func wrongBlob(where, got string, want layerPlan) error {
	return fault.New(fault.Invalid, "%s sends %s in place of %d bytes with the digest %s", where, got, want.size, short(want.digest)).
		WithHint("the image is broken or was tampered with; nothing of it was kept")
}
