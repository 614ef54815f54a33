package server

import (
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// lingering is how long a client that was answered before its body was read may go on sending it: long enough for most to see the answer, and too short
// to hold many connections.
const lingering = 2 * time.Second

// timely is a body under a deadline from the first moment, whoever reads it or does not. Without one, a client that says it will send something and does
// not holds its connection, even where it was refused: net/http wants to read the rest before it answers.
type timely struct {
	io.ReadCloser
	rc    *http.ResponseController
	ended atomic.Bool
}

// limitBody puts a request's body under its deadline. It returns nil where there is none.
func limitBody(w http.ResponseWriter, r *http.Request) *timely {
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	b := &timely{ReadCloser: r.Body, rc: http.NewResponseController(w)}
	_ = b.rc.SetReadDeadline(time.Now().Add(bodyTime)) // a recorder in tests has none
	r.Body = b
	return b
}

// Read takes the deadline away at the end: from there net/http reads only to see whether the client goes away, which may take as long as the answer.
func (b *timely) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) && !b.ended.Swap(true) {
		_ = b.rc.SetReadDeadline(time.Time{})
	}
	return n, err
}

// answered sees that an answer goes out although there is more to read, and that the connection ends soon.
func (b *timely) answered(h http.Header, major int) {
	if b == nil || b.ended.Load() {
		return
	}
	if major == 1 { // HTTP/2 has a stream for each request, and ends that
		h.Set("Connection", "close")
	}
	_ = b.rc.SetReadDeadline(time.Now().Add(lingering))
}
