package git

import "io"

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
