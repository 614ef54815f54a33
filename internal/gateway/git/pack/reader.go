package pack

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"strconv"

	"github.com/klauspost/compress/zlib"

	"github.com/cofferdam/cofferdam/internal/gateway/git/wire"
)

// Reader reads a pack that is written to it as it passes. Its work and memory are bounded by Limits, however the bytes are split and whatever they are.
//
// It is as strict as git index-pack, and stricter: a base must be in the pack, no object may be there twice, and commits, tags and trees must be
// well-formed. So what a Reader took whole, git takes too, as the same objects, if it can apply the deltas of blobs, which are not all tried here; and
// without its last bytes, the checksum, it is a pack to neither.
//
// It is not safe for concurrent use. Close or Stop must be called once it was made, also after an error.
type Reader struct {
	format  wire.Format
	scratch Scratch
	limits  Limits
	strict  bool // refuse what a checkout would trip over: not asked of what an upstream has had for years

	in      input
	z       io.ReadCloser // over in
	stream  *bufio.Reader // over z, for deltas
	sum     hash.Hash     // of one object
	name    [32]byte      // where it goes
	entries entries
	kept    *index
	waiting []waiting
	blobs   retention
	top     int64 // of scratch
	work    int64 // bytes worked through
	objects int

	base     []byte // content of slot baseSlot
	baseSlot uint32
	result   []byte
	chunk    []byte

	err    error // why the parser ended; nil if it is not at its end, or all is well
	ended  bool
	closed bool
}

// retention says which blobs are kept. Some writers (libgit2, dulwich) name the base of a delta by its id, git by its distance. What a delta of a blob is
// called can only be told with its base at hand, so blobs are kept until the first delta shows that the writer is of the other kind.
type retention struct {
	off   bool // they are not kept
	sure  bool // a delta was seen
	bytes int64
	lost  bool // one was not kept that should have been
}

// keptBlobs is the part of scratch that blobs may take.
const keptBlobs = 4

// NewReader returns a reader of a pack of a repository with this format.
func NewReader(format wire.Format, scratch Scratch, limits Limits) *Reader {
	r := &Reader{format: format, scratch: scratch, limits: limits.orDefault(), strict: true, kept: newIndex(format), baseSlot: nameless}
	r.sum, r.in.sum = newHash(format), newHash(format)
	r.chunk = make([]byte, 16<<10)
	r.in.run(func() {
		r.err = r.parse()
		r.ended = true
	})
	return r
}

func newHash(f wire.Format) hash.Hash {
	if f == wire.SHA256 {
		return sha256.New()
	}
	return sha1.New()
}

// Write reads a part of the pack. An error is final: this is no pack that may pass. Without one, all bytes may be passed on, but for the last 20 (SHA-1) or
// 32 (SHA-256) that were written, which may be the checksum.
func (r *Reader) Write(p []byte) (int, error) {
	if r.closed {
		return 0, cmp.Or(r.err, errAbandoned)
	}
	if !r.ended && len(p) > 0 {
		r.in.feed(p)
	}
	if r.err != nil {
		return 0, r.err
	}
	return len(p), nil
}

// Close ends the pack, and returns it if it is whole: all objects are there, the checksum is right, nothing follows.
func (r *Reader) Close() (*Pack, error) {
	if !r.closed {
		r.in.end()
		r.release()
	}
	if r.err != nil {
		return nil, r.err
	}
	return &Pack{format: r.format, scratch: r.scratch, limits: r.limits, objects: r.objects, kept: r.kept}, nil
}

// Stop ends the reading where it is. After Close it does nothing.
func (r *Reader) Stop() {
	if !r.closed {
		r.in.stop()
		r.release()
		r.err = cmp.Or(r.err, errAbandoned)
	}
}

// release gives up what only the parser needs.
func (r *Reader) release() {
	r.closed = true
	r.z, r.stream, r.waiting, r.entries, r.base, r.result, r.chunk = nil, nil, nil, entries{}, nil, nil, nil
}

// parse reads the whole pack.
func (r *Reader) parse() error {
	err := r.read()
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return ErrShort
	}
	return err
}

func (r *Reader) read() error {
	var header [12]byte
	if _, err := io.ReadFull(&r.in, header[:]); err != nil {
		return err
	}
	version, count := binary.BigEndian.Uint32(header[4:]), binary.BigEndian.Uint32(header[8:])
	if string(header[:4]) != "PACK" || version != 2 && version != 3 { // 3 is read by git as 2 is
		return malformed("it does not begin as one")
	}
	if int64(count) > int64(r.limits.Objects) {
		return tooLarge("%d objects in one pack, where %d are allowed", count, r.limits.Objects)
	}
	for r.objects = 0; r.objects < int(count); r.objects++ {
		if err := r.entry(); err != nil {
			return err
		}
	}
	if err := r.settle(); err != nil {
		return err
	}
	return r.trailer()
}

// trailer reads the checksum, and that nothing follows.
func (r *Reader) trailer() error {
	r.in.checksum()
	want := r.in.sum.Sum(nil)
	r.in.sum = nil
	got := make([]byte, len(want))
	if _, err := io.ReadFull(&r.in, got); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return malformed("its checksum is wrong")
	}
	switch _, err := r.in.ReadByte(); err {
	case io.EOF:
		return nil
	case nil:
		return malformed("something follows it")
	default:
		return err
	}
}

// entry reads one object.
func (r *Reader) entry() error {
	if taken := r.entries.bytes() + r.kept.bytes(); taken > r.limits.Memory {
		return tooLarge("%d objects and more in one pack, for which there is no more memory", r.objects)
	}
	offset := r.in.offset()
	if offset > maxOffset {
		return tooLarge("a pack of more than 2^40 bytes")
	}
	k, size, err := r.head()
	if err != nil {
		return err
	}
	switch k {
	case commitKind, treeKind, tagKind, blobKind:
		return r.whole(offset, k, size)
	case offsetBase:
		back, err := r.distance()
		if err != nil {
			return err
		}
		base, ok := r.entries.find(offset - back)
		if back <= 0 || back > offset || !ok {
			return malformed("a delta on what is no object before it")
		}
		if !r.blobs.sure {
			r.blobs.sure, r.blobs.off = true, true
		}
		return r.delta(offset, size, *r.entries.places.at(base), waiting{entry: base})
	case namedBase:
		var sum [32]byte
		id := sum[:r.format.Size()]
		if _, err := io.ReadFull(&r.in, id); err != nil {
			return err
		}
		r.blobs.sure = true
		base := placeOf(unknown, nameless)
		if slot, ok := r.kept.search(id); ok {
			base = placeOf(r.kept.kind(slot), slot)
		}
		name, _ := wire.NewID(id)
		return r.delta(offset, size, base, waiting{name: name})
	}
	return malformed("an object of type %d", k)
}

// head reads the type and the size of an object.
func (r *Reader) head() (kind, int64, error) {
	c, err := r.in.ReadByte()
	if err != nil {
		return 0, 0, err
	}
	k, size := kind(c>>4&7), int64(c&15)
	for shift := 4; c&0x80 != 0; shift += 7 {
		if c, err = r.in.ReadByte(); err != nil {
			return 0, 0, err
		}
		if shift > 53 { // git takes what overflows for another size
			return 0, 0, malformed("an object of more than 2^60 bytes")
		}
		size |= int64(c&0x7f) << shift
	}
	return k, size, nil
}

// distance reads how far before it a delta's base begins.
func (r *Reader) distance() (int64, error) {
	c, err := r.in.ReadByte()
	if err != nil {
		return 0, err
	}
	n := int64(c & 0x7f)
	for c&0x80 != 0 {
		if c, err = r.in.ReadByte(); err != nil {
			return 0, err
		}
		if n >= 1<<55 {
			return 0, malformed("a delta on what is no object before it")
		}
		n = (n+1)<<7 | int64(c&0x7f)
	}
	return n, nil
}

// most is the largest object of a kind that is kept.
func (r *Reader) most(k kind) int {
	if k == commitKind || k == tagKind {
		return r.limits.Message
	}
	return r.limits.Tree
}

// whole reads an object that is no delta.
func (r *Reader) whole(offset int64, k kind, size int64) error {
	if k == blobKind && !r.keepsBlob(size) {
		return r.blob(offset, size)
	}
	if size > int64(r.most(k)) {
		return tooLarge("a %s of %d bytes", k.name(), size)
	}
	if err := r.inflate(); err != nil {
		return err
	}
	var err error
	if r.result, err = r.collect(r.result[:0], int(size)); err != nil {
		return err
	}
	slot, err := r.keep(k, r.result)
	if err != nil {
		return err
	}
	r.entries.push(offset, placeOf(k, slot))
	return nil
}

// keepsBlob reports whether a blob of this size is to be kept.
func (r *Reader) keepsBlob(size int64) bool {
	if r.blobs.off {
		return false
	}
	if size > int64(r.limits.Tree) || r.blobs.bytes+size > r.limits.Kept/keptBlobs {
		r.blobs.lost = true
		return false
	}
	return true
}

// blob passes over a blob. Where the writer may name bases by id, its own is needed.
func (r *Reader) blob(offset, size int64) error {
	if err := r.inflate(); err != nil {
		return err
	}
	if !r.blobs.off {
		r.begin(blobKind, size)
	}
	for left := size; ; {
		n, err := r.z.Read(r.chunk)
		if left -= int64(n); left < 0 {
			return malformed("an object that is larger than it says")
		}
		if err := r.worked(n); err != nil {
			return err
		}
		if !r.blobs.off {
			r.sum.Write(r.chunk[:n])
		}
		switch {
		case err == io.EOF && left > 0:
			return malformed("an object that is smaller than it says")
		case err == io.EOF && r.blobs.off:
			r.entries.push(offset, placeOf(blobKind, nameless))
			return nil
		case err == io.EOF:
			slot, err := r.add(blobKind, nowhere, 0)
			r.entries.push(offset, placeOf(blobKind, slot))
			return err
		case err != nil:
			return r.deflated(err)
		}
	}
}

// inflate begins to read compressed bytes.
func (r *Reader) inflate() error {
	if r.z == nil {
		z, err := zlib.NewReader(&r.in)
		if err != nil {
			return r.deflated(err)
		}
		r.z, r.stream = z, bufio.NewReaderSize(nil, 4<<10)
		return nil
	}
	return r.deflated(r.z.(zlib.Resetter).Reset(&r.in, nil))
}

// deflated says what an error of decompression is.
func (r *Reader) deflated(err error) error {
	switch {
	case err == nil, err == errAbandoned, err == io.EOF, err == io.ErrUnexpectedEOF:
		return err
	}
	return malformed("an object whose compressed bytes are damaged")
}

// collect reads exactly size bytes, and that there are no more. The buffer grows as bytes come, not as they are announced.
func (r *Reader) collect(buf []byte, size int) ([]byte, error) {
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		room := buf[len(buf):cap(buf)]
		room = room[:min(len(room), size-len(buf)+1)]
		n, err := r.z.Read(room)
		if buf = buf[:len(buf)+n]; len(buf) > size {
			return buf, malformed("an object that is larger than it says")
		}
		if err := r.worked(n); err != nil {
			return buf, err
		}
		switch {
		case err == io.EOF && len(buf) < size:
			return buf, malformed("an object that is smaller than it says")
		case err == io.EOF:
			return buf, nil
		case err != nil:
			return buf, r.deflated(err)
		}
	}
}

// worked counts bytes that were worked through.
func (r *Reader) worked(n int) error {
	if r.work += int64(n); r.work > r.limits.Inflated {
		return tooLarge("more than %d bytes once it is decompressed", r.limits.Inflated)
	}
	return nil
}

// begin begins the name of an object.
func (r *Reader) begin(k kind, size int64) {
	r.sum.Reset()
	head := append(r.chunk[:0], k.name()...)
	head = append(strconv.AppendInt(append(head, ' '), size, 10), 0)
	r.sum.Write(head)
}

// add indexes the object whose name was computed.
func (r *Reader) add(k kind, at uint32, size int) (uint32, error) {
	sum := r.sum.Sum(r.name[:0])
	if _, twice := r.kept.search(sum); twice {
		return 0, malformed("an object that is there twice")
	}
	return r.kept.add(sum, k, at, size), nil
}

// keep checks an object, names it, and writes it to scratch.
func (r *Reader) keep(k kind, content []byte) (uint32, error) {
	if err := r.check(k, content); err != nil {
		return 0, err
	}
	at, err := r.store(content)
	if err != nil {
		return 0, err
	}
	if k == blobKind {
		r.blobs.bytes += int64(len(content))
	}
	r.begin(k, int64(len(content)))
	r.sum.Write(content)
	return r.add(k, at, len(content))
}

func (r *Reader) check(k kind, content []byte) (err error) {
	switch k {
	case commitKind:
		_, err = parseCommit(r.format, content)
	case treeKind:
		err = checkTree(r.format, content, r.strict)
	case tagKind:
		_, err = parseTag(r.format, content)
	}
	return err
}

// store appends bytes to scratch.
func (r *Reader) store(content []byte) (uint32, error) {
	at := r.top
	if at+int64(len(content)) > r.limits.Kept {
		return 0, tooLarge("more than %d bytes of commits and trees", r.limits.Kept)
	}
	if _, err := r.scratch.WriteAt(content, at); err != nil {
		return 0, fmt.Errorf("write scratch: %w", err)
	}
	r.top += int64(len(content))
	return uint32(at), nil
}
