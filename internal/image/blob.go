package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// stallBytes is what must come of a download in each span of patience, until the end comes.
const stallBytes = 16 << 10

// errStalled is why a download was given up.
var errStalled = errors.New("stalled")

// fetchBlob writes a layer to a file, and believes it if size and digest fit.
func (r *registry) fetchBlob(ctx context.Context, l layerPlan, file string, progress func(int64)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	answer, err := r.get(ctx, "blobs/"+l.digest)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if n := answer.ContentLength; n >= 0 && n != l.size {
		return wrongBlob(answer.Request.URL.Host, fmt.Sprintf("%d bytes", n), l)
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("keep a layer: %w", err)
	}
	body := &watched{from: answer.Body, progress: progress}
	defer body.watch(r.patience, func() { cancel(errStalled) })()
	hash := sha256.New()
	n, err := io.Copy(io.MultiWriter(onlyWriter{f}, hash), io.LimitReader(body, l.size+1)) // one more, to see whether there is more
	err = errors.Join(err, f.Close())
	if errors.Is(context.Cause(ctx), errStalled) {
		return fault.New(fault.Unavailable, "%s sends less than %d KiB in %v", answer.Request.URL.Host, stallBytes>>10, r.patience).WithHint("try again later")
	}
	if err != nil {
		return blobError(answer, err)
	}
	if got := "sha256:" + hex.EncodeToString(hash.Sum(nil)); n != l.size || got != l.digest {
		what := fmt.Sprintf("%d bytes with the digest %s", n, short(got))
		if n > l.size {
			what = "more bytes"
		}
		return wrongBlob(answer.Request.URL.Host, what, l)
	}
	return nil
}

// blobError tells the disk's trouble from the network's.
func blobError(answer *http.Response, err error) error {
	if _, disk := errors.AsType[*os.PathError](err); disk {
		return entryError("a layer", err)
	}
	return unread(answer, err)
}

// watched is a body that somebody watches: whether bytes come.
type watched struct {
	from     io.Reader
	progress func(int64)
	came     atomic.Int64
}

// Read reads and counts.
func (w *watched) Read(p []byte) (int, error) {
	n, err := w.from.Read(p)
	w.came.Add(int64(n))
	w.progress(int64(n))
	return n, err
}

// watch calls stalled once if too little comes. The returned function ends the watch.
func (w *watched) watch(patience time.Duration, stalled func()) (end func()) {
	done, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		ticker := time.NewTicker(patience)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				if w.came.Swap(0) < stallBytes {
					stalled()
					return
				}
			}
		}
	}()
	return func() {
		close(done)
		<-over
	}
}
