// Package build (CONTROL) makes images on this machine: from a directory, from a tar archive, or from a distribution's packages, without a container engine.
//
// Every source becomes one layer, which the store unpacks like one that was pulled. The layer is composed in memory, with contents in one file without a
// name, so nothing that a source says is ever a path on this machine. No program of the source runs: not a package's scripts, not a file of the tree. What
// scripts would have done for a usable base is done here and listed in docs/images.md. Set-id bits, devices, pipes and sockets are left out. Equal sources
// give equal layers, byte for byte: names are in order, times are those of the source, and what is made here has the newest of them.
package build

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// The bounds where Options has none: as those of an image that is pulled.
const (
	DefaultBytes = 16 << 30
	DefaultFiles = 2_000_000
)

// Options bound a build and say how it goes about it.
type Options struct {
	// Temp is the directory for what is needed only while building; empty is the system's.
	Temp string
	// MaxBytes is the most that the files may have together, in bytes; 0 is DefaultBytes. MaxFiles is how many there may be; 0 is DefaultFiles.
	MaxBytes int64
	MaxFiles int
	// Refresh fetches the package lists anew instead of taking those that this machine has.
	Refresh bool
	// Confine is called once, when the build will start no program and open no file any more, for a process that gives up its rights then: before the first
	// byte of an archive is read, and before FromDir and FromPackages return. nil does nothing.
	Confine func() error
	// Tell is told what is going on, a few words at a time; nil says nothing.
	Tell func(Step)
}

// Step is what a build is doing.
type Step struct {
	What       string // "resolving", "fetching", "unpacking", ...
	Detail     string // a package, or a sum; may be empty
	Done, Of   int    // packages; 0 where nothing is counted
	FetchBytes int64  // how much is to be fetched
}

func (o Options) tell(s Step) {
	if o.Tell != nil {
		o.Tell(s)
	}
}

func (o Options) confine() error {
	if o.Confine == nil {
		return nil
	}
	return o.Confine()
}

// Built is a layer that is ready to be imported. Close it.
type Built struct {
	layer *layer
	// Packages are those that the image holds, in order of their names.
	Packages []Package
	// Database says where Packages come from: "apt", "dpkg", "apk"; empty if the source has no record of packages.
	Database string
	// Newest is the newest time of modification in it, the image's date.
	Newest time.Time
	Counts Counts
}

// Counts says what a layer holds, and what was left out of the source.
type Counts struct {
	Files    int   `json:"files"`
	Dirs     int   `json:"dirs"`
	Links    int   `json:"links"` // symbolic ones
	Bytes    int64 `json:"bytes"` // of files, each counted once however many names it has
	Special  int   `json:"special,omitempty"`
	SetID    int   `json:"set_id,omitempty"`
	Excluded int   `json:"excluded,omitempty"`
	Other    int   `json:"other_file_systems,omitempty"` // directories on which something else is mounted
}

// Close frees what the layer takes.
func (b *Built) Close() error { return b.layer.close() }

// Layer returns the layer as a tar stream. It may be read several times, by one reader at a time; the reader is closed before Built is.
func (b *Built) Layer(ctx context.Context) io.ReadCloser {
	r, w := io.Pipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.CloseWithError(b.layer.stream(ctx, w)) // nil is the end of the stream
	}()
	return stream{r, ended}
}

// stream ends its writer when it is closed.
type stream struct {
	*io.PipeReader
	ended chan struct{}
}

func (s stream) Close() error {
	err := s.PipeReader.Close()
	<-s.ended
	return err
}

// FromDir makes a layer of a directory. Symbolic links in it are kept and not followed, and other file systems that are mounted below are left out. Files keep
// their owners if root builds; those of an ordinary user belong to root inside. The directory may change meanwhile: the layer holds what was read.
func FromDir(ctx context.Context, dir string, o Options) (*Built, error) {
	o.tell(Step{What: "reading", Detail: dir})
	return o.make(func(l *layer) error {
		if err := l.addDir(ctx, dir); err != nil {
			return err
		}
		return o.confine()
	})
}

// FromTar makes a layer of a tar archive: plain, or compressed by gzip or zstd.
func FromTar(ctx context.Context, r io.Reader, o Options) (*Built, error) {
	o.tell(Step{What: "reading"})
	return o.make(func(l *layer) error {
		if err := o.confine(); err != nil {
			return err
		}
		return l.addTar(ctx, r, "")
	})
}

// make fills a layer from a source that is not made of packages, and looks for what it says of its packages.
func (o Options) make(fill func(*layer) error) (*Built, error) {
	l, err := newLayer(o)
	if err != nil {
		return nil, err
	}
	if err = fill(l); err == nil {
		err = l.check()
	}
	if err != nil {
		return nil, l.abandon(err)
	}
	b := &Built{layer: l, Newest: l.newest(), Counts: l.counts}
	if b.Packages, b.Database, err = l.database(); err != nil {
		return nil, l.abandon(err)
	}
	return b, nil
}

// FromPackages makes a layer of a recipe's packages and all that they depend on, fetched and verified by this machine's apt-get.
func FromPackages(ctx context.Context, r Recipe, o Options) (*Built, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	l, err := newLayer(o)
	if err != nil {
		return nil, err
	}
	b := &Built{layer: l, Database: "apt"}
	if b.Packages, err = l.addPackages(ctx, r, o); err == nil {
		err = o.confine()
	}
	if err == nil {
		err = l.finish(r, b.Packages)
	}
	if err == nil {
		err = l.check()
	}
	if err != nil {
		return nil, l.abandon(err)
	}
	b.Newest, b.Counts = l.newest(), l.counts
	return b, nil
}

// addPackages fetches a recipe's packages and adds their contents. Nothing is left of the directory that it works in.
func (l *layer) addPackages(ctx context.Context, r Recipe, o Options) (packages []Package, err error) {
	work, err := os.MkdirTemp(o.Temp, "cofferdam-build-")
	if err != nil {
		return nil, fault.New(fault.Unavailable, "cannot make a directory for the build").WithHint("set TMPDIR to a directory that you can write").Because(err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	debs, err := fetch(ctx, work, r, o)
	if err != nil {
		return nil, err
	}
	return l.addDebs(ctx, debs, o)
}
