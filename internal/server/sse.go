package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// The times of streams.
const (
	heartbeat = 15 * time.Second // proxies drop what is silent for a minute
	recheck   = 15 * time.Second // is the caller still signed in, with the same rights
)

// eventStream writes server-sent events.
type eventStream struct {
	to *steady
}

func newEventStream(w http.ResponseWriter) (*eventStream, error) {
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no") // nginx would hold events back
	e := &eventStream{newSteady(w)}
	return e, e.comment("begins")
}

// send writes one event. An id goes into the browser's Last-Event-ID; name is its type, "message" to browsers if empty.
func (e *eventStream) send(id int64, name string, v any) error {
	text, err := json.Marshal(v) // one line: JSON escapes line ends
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if id >= 0 {
		fmt.Fprintf(&b, "id: %d\n", id)
	}
	if name != "" {
		fmt.Fprintf(&b, "event: %s\n", name)
	}
	fmt.Fprintf(&b, "data: %s\n\n", text)
	return e.flush(b.Bytes())
}

// comment is what clients ignore.
func (e *eventStream) comment(text string) error { return e.flush([]byte(": " + text + "\n\n")) }

func (e *eventStream) flush(b []byte) error {
	if _, err := e.to.Write(b); err != nil {
		return err
	}
	return e.to.rc.Flush()
}

// from is where a stream goes on: what the browser saw last, or what the query says; otherwise if neither.
func from(r *http.Request, query string, otherwise int64) (int64, error) {
	for _, text := range []string{r.Header.Get("Last-Event-ID"), r.URL.Query().Get(query)} {
		if text == "" {
			continue
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < 0 {
			return 0, invalid(query)
		}
		return n, nil
	}
	return otherwise, nil
}

// only refuses query parameters that a stream does not know, as huma does for the rest.
func only(r *http.Request, known ...string) error {
	for name, values := range r.URL.Query() {
		if len(values) != 1 || !slices.Contains(known, name) {
			return invalid(name)
		}
	}
	return nil
}
