package image

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// parallel is how many layers are fetched at once: what other tools do, and registries expect.
const parallel = 3

// PullOptions says how to reach a registry, and how much to take from it.
type PullOptions struct {
	// Dial connects to HOST:PORT, which a registry may have chosen. It resolves the name, and refuses every address that the person did not mean. Needed.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Roots vouch for certificates; nil: the system's.
	Roots *x509.CertPool
	// PlainHTTP names the one registry, HOST or HOST:PORT, that is spoken to without TLS; empty for none.
	PlainHTTP string
	// Authorize puts a credential into a request that is to be sent over TLS to the request's host, or refuses to. Nil: there is none.
	Authorize func(context.Context, *http.Request) error
	// Progress is told how far it is, often, by several goroutines at once. It may be nil.
	Progress func(Progress)
	// Record puts on record what a pull did, before its image is there, or why it failed. If it returns an error the image is not kept. Needed.
	Record func(context.Context, Attempt) error
	Bounds Bounds

	stall time.Duration // for tests; else answerPatience
}

// Progress is how far a pull is.
type Progress struct {
	Layers, LayersDone int   // in all; fetched, verified and unpacked
	Bytes, BytesDone   int64 // as they are sent
}

// Attempt is what goes on record of a pull.
type Attempt struct {
	Reference string
	Digest    string   // of the manifest; empty if it did not come so far
	Hosts     []string // HOST:PORT that were spoken to, or that were to be
	Bytes     int64    // of layers that came
	Err       error    // why there is no image; nil if there is one
}

// Pull fetches an image by tag or digest, verifies and unpacks it, and gives it the reference as a name. An image that is there already is not fetched again.
// After an error the store is as before.
//
// Invalid: what the registry sends is not what its digests say, or no image. Denied: the registry refuses, or sends us to a place that is not spoken to.
// TooMany: a bound was reached. Unsupported: the image is of a kind, or for a platform, that is not for here. NotFound, Unavailable: as they say.
func (s *Store) Pull(ctx context.Context, ref string, o PullOptions) (Image, error) {
	if o.Dial == nil || o.Record == nil {
		return Image{}, fault.New(fault.Internal, "a pull needs Dial and Record")
	}
	parsed, err := ParseReference(ref)
	if err != nil {
		return Image{}, err
	}
	if parsed.Registry == "" {
		return Image{}, fault.New(fault.Invalid, "%s names no registry, and none stands for it", parsed).WithHint("write its host too, as in registry.example.org/%s", parsed)
	}
	o.Bounds = o.Bounds.withDefaults()
	if o.stall == 0 {
		o.stall = answerPatience
	}
	p := &pull{store: s, o: o, from: newRegistry(parsed, o)}
	defer p.from.close()
	i, err := p.run(ctx)
	if err != nil {
		return Image{}, errors.Join(err, p.recordFailure(ctx, err))
	}
	return i, nil
}

// pull is one pull under way.
type pull struct {
	store *Store
	o     PullOptions
	from  *registry
	what  resolved

	mu   sync.Mutex
	done Progress
}

// thisPlatform is what images must be made for.
func thisPlatform() v1.Platform { return v1.Platform{OS: "linux", Architecture: runtime.GOARCH} }

func (p *pull) run(ctx context.Context) (Image, error) {
	index, manifest, err := p.from.find(ctx, thisPlatform())
	if err != nil {
		return Image{}, err
	}
	p.what.manifest = manifest // for the record, whatever comes
	if i, there, err := p.already(ctx); there || err != nil {
		return i, err
	}
	p.what, err = p.from.describeImage(ctx, manifest, thisPlatform(), p.o.Bounds)
	p.what.index = index
	if err != nil {
		return Image{}, err
	}
	config, err := honour(p.what.file)
	if err != nil {
		return Image{}, err
	}
	g, err := p.store.stage()
	if err != nil {
		return Image{}, err
	}
	i, err := p.fill(ctx, g, config)
	return i, errors.Join(err, g.discard())
}

// already gives an image that is there its name.
func (p *pull) already(ctx context.Context) (Image, bool, error) {
	digits, _ := hexOf(p.what.manifest.digest)
	if _, err := os.Lstat(p.store.content(digits)); err != nil {
		return Image{}, false, nil
	}
	if err := p.record(ctx, nil); err != nil {
		return Image{}, false, err
	}
	release, err := p.store.lock()
	if err != nil {
		return Image{}, false, err
	}
	defer release()
	i, err := p.store.name(digits, p.from.ref.String())
	if fault.KindOf(err) == fault.NotFound {
		return Image{}, false, nil // removed in this moment
	}
	return i, err == nil, err
}

// fill fetches and unpacks the layers, and commits the image.
func (p *pull) fill(ctx context.Context, g *staging, config Config) (Image, error) {
	a, err := newApplier(g.tree(), p.o.Bounds)
	if err != nil {
		return Image{}, err
	}
	if err := p.layers(ctx, g, a); err != nil {
		return Image{}, errors.Join(err, a.close())
	}
	if err := errors.Join(g.write("manifest.json", p.what.manifest.data), g.write("config.json", p.what.config), p.record(ctx, nil)); err != nil {
		return Image{}, errors.Join(err, a.close())
	}
	notes, err := a.finishTree()
	if err != nil {
		return Image{}, err
	}
	digits, _ := hexOf(p.what.manifest.digest)
	record := Image{Index: p.what.index, Size: a.bytes, Files: a.files, Created: created(p.what.file.Created.Time), Pulled: now(), Source: p.from.ref.String(), Config: config, Notes: notes}
	return g.commit(digits, record, p.from.ref.String())
}

// created is when an image was made, as its maker says, if a record can hold it.
func created(at time.Time) time.Time {
	if at = at.UTC(); at.Year() < 1 || at.Year() > 9999 {
		return time.Time{}
	}
	return at
}

// layers fetches several layers at once, the lowest first, and applies them in order.
func (p *pull) layers(ctx context.Context, g *staging, a *applier) error {
	blobs, order := p.blobs(g)
	p.tell(0, 0)
	group, ctx := errgroup.WithContext(ctx)
	queue := make(chan *blob, len(order))
	for _, b := range order {
		queue <- b
	}
	close(queue)
	for range parallel {
		group.Go(func() error {
			for b := range queue {
				if err := p.fetch(ctx, b); err != nil {
					return err
				}
			}
			return nil
		})
	}
	group.Go(func() error {
		left := p.o.Bounds.Unpacked
		for _, l := range p.what.layers {
			b := blobs[l.digest]
			select {
			case <-b.ready:
			case <-ctx.Done():
				return ctx.Err()
			}
			if err := p.apply(ctx, a, l, b, &left); err != nil {
				return err
			}
			p.tell(0, 1)
		}
		return nil
	})
	return group.Wait()
}

// blobs plans the downloads. A blob that is several layers is fetched once.
func (p *pull) blobs(g *staging) (map[string]*blob, []*blob) {
	blobs := map[string]*blob{}
	var order []*blob
	for i, l := range p.what.layers {
		b := blobs[l.digest]
		if b == nil {
			b = &blob{plan: l, file: filepath.Join(g.dir, fmt.Sprintf("blob-%d", i)), ready: make(chan struct{})}
			blobs[l.digest], order = b, append(order, b)
			p.done.Bytes += l.size
		}
		b.uses++
	}
	p.done.Layers = len(p.what.layers)
	return blobs, order
}

// blob is a layer on its way.
type blob struct {
	plan  layerPlan
	file  string
	ready chan struct{} // closed when it is there and verified
	uses  int           // layers that are still to be made of it
}

func (p *pull) fetch(ctx context.Context, b *blob) error {
	if err := p.from.fetchBlob(ctx, b.plan, b.file, func(n int64) { p.tell(n, 0) }); err != nil {
		return err
	}
	close(b.ready)
	return nil
}

func (p *pull) apply(ctx context.Context, a *applier, l layerPlan, b *blob, left *int64) error {
	f, err := os.Open(b.file)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, _, err = a.applyLayer(ctx, f, l.how, l.diffID, left); err != nil {
		return err
	}
	if b.uses--; b.uses > 0 {
		return nil
	}
	return os.Remove(b.file)
}

// tell adds to the progress and passes it on.
func (p *pull) tell(bytes int64, layers int) {
	p.mu.Lock()
	p.done.BytesDone += bytes
	p.done.LayersDone += layers
	now := p.done
	p.mu.Unlock()
	if p.o.Progress != nil {
		p.o.Progress(now)
	}
}

// record puts the pull on record.
func (p *pull) record(ctx context.Context, failure error) error {
	p.mu.Lock()
	bytes := p.done.BytesDone
	p.mu.Unlock()
	err := p.o.Record(ctx, Attempt{
		Reference: p.from.ref.String(), Digest: p.what.manifest.digest, Hosts: p.from.spokenTo(), Bytes: bytes, Err: failure,
	})
	if err != nil {
		return fmt.Errorf("put the pull on record: %w", err)
	}
	return nil
}

// recordFailure also records what was given up: then with a context that has not ended.
func (p *pull) recordFailure(ctx context.Context, failure error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return p.record(ctx, failure)
}
