package pack

import (
	"errors"
	"hash"
	"io"
	"iter"
)

// input turns what is written to a Reader into what its parser reads. Writer and parser take turns as coroutines: each waits while the other runs, so
// there is nothing to lock, and a parser needs no memory for what it did not get yet.
type input struct {
	chunk  []byte // the writer's, while it waits
	pos    int    // of the chunk: read
	hashed int    // of the chunk: in sum
	before int64  // bytes of earlier chunks
	ended  bool   // nothing comes any more
	sum    hash.Hash
	wait   func(struct{}) bool // lets the writer go on, until it has more; false: nobody wants to know

	resume func() (struct{}, bool)
	stop   func()
}

var errAbandoned = errors.New("the rest is not read")

// run starts a parser. It runs only within feed and end.
func (in *input) run(parse func()) {
	in.resume, in.stop = iter.Pull(func(wait func(struct{}) bool) {
		in.wait = wait
		if wait(struct{}{}) { // until the first bytes come
			parse()
		}
	})
	in.resume()
}

// feed lets the parser run until it has read everything, or has ended.
func (in *input) feed(p []byte) {
	in.chunk, in.pos, in.hashed = p, 0, 0
	in.resume()
	in.checksum()
	in.before += int64(len(p))
	in.chunk, in.pos, in.hashed = nil, 0, 0
}

// end lets the parser run to its end.
func (in *input) end() {
	in.ended = true
	in.resume()
	in.stop()
}

// offset is where the parser reads next.
func (in *input) offset() int64 { return in.before + int64(in.pos) }

// checksum brings sum up to where the parser reads.
func (in *input) checksum() {
	if in.sum != nil {
		in.sum.Write(in.chunk[in.hashed:in.pos])
		in.hashed = in.pos
	}
}

// more waits for bytes.
func (in *input) more() error {
	for in.pos == len(in.chunk) {
		if in.ended {
			return io.EOF
		}
		if !in.wait(struct{}{}) {
			return errAbandoned
		}
	}
	return nil
}

// Read implements io.Reader.
func (in *input) Read(p []byte) (int, error) {
	if in.pos == len(in.chunk) {
		if err := in.more(); err != nil {
			return 0, err
		}
	}
	n := copy(p, in.chunk[in.pos:])
	in.pos += n
	return n, nil
}

// ReadByte implements io.ByteReader, so that a decompressor takes no byte beyond its stream.
func (in *input) ReadByte() (byte, error) {
	if in.pos == len(in.chunk) {
		if err := in.more(); err != nil {
			return 0, err
		}
	}
	c := in.chunk[in.pos]
	in.pos++
	return c, nil
}
