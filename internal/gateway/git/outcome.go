package git

import (
	"io"
	"net/http"
	"time"
)

// bodyPause is how long a client may say nothing in the middle of a request: git compresses what it sends, which takes a while for a large file.
const bodyPause = 2 * time.Minute

// patient reads a request's body with a limit on silence, so that nobody holds for long what others wait for.
type patient struct {
	io.ReadCloser
	control *http.ResponseController
}

func (p *patient) Read(b []byte) (int, error) {
	if err := p.control.SetReadDeadline(time.Now().Add(bodyPause)); err != nil {
		return 0, err
	}
	return p.ReadCloser.Read(b)
}

// finishing is an answer's body whose end is the operation's.
type finishing struct {
	io.ReadCloser
	passage Passage
	o       Outcome
	done    bool
}

func (f *finishing) Read(b []byte) (int, error) {
	n, err := f.ReadCloser.Read(b)
	f.o.In += int64(n)
	return n, err
}

// Close records the end.
func (f *finishing) Close() error {
	err := f.ReadCloser.Close()
	if !f.done {
		f.done = true
		f.passage.Finish(f.o)
	}
	return err
}
