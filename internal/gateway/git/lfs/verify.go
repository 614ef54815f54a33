package lfs

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
)

// Errors of a VerifyingReader. Content that is too short is io.ErrUnexpectedEOF.
var (
	ErrTooLong = errors.New("the content is longer than the LFS object")
	ErrContent = errors.New("the content is not that of the LFS object")
)

// VerifyingReader passes the content of one object on as it arrives. It is not safe for concurrent use.
//
// The last byte is held back until the content has turned out to be exactly as long as it should be and to have the hash that names it. So who
// reads from it and knows the size, as HTTP's Content-Length tells, never takes wrong content for whole.
type VerifyingReader struct {
	src  io.Reader
	oid  string
	left int64 // bytes not read yet
	sum  hash.Hash
	last []byte // the byte held back
	err  error  // how it ended
}

// NewVerifyingReader returns a reader for content that should be an object of this id and size.
func NewVerifyingReader(src io.Reader, oid string, size int64) *VerifyingReader {
	v := &VerifyingReader{src: src, oid: oid, left: size, sum: sha256.New()}
	if size < 0 {
		v.err = ErrContent
	}
	return v
}

// Read returns the next bytes of the content.
func (v *VerifyingReader) Read(p []byte) (int, error) {
	if len(p) == 0 || v.err != nil {
		return 0, v.err
	}
	if v.left > 0 {
		if n := v.some(p); n > 0 || v.err != nil {
			return n, v.err
		}
	}
	if err := v.end(); err != nil {
		v.err = err
		return 0, err
	}
	v.err = io.EOF
	return copy(p, v.last), io.EOF
}

// some reads a part of what is left. It returns nothing and no error if that was the last byte alone.
func (v *VerifyingReader) some(p []byte) int {
	n, err := v.src.Read(p[:min(int64(len(p)), v.left)])
	v.sum.Write(p[:n])
	v.left -= int64(n)
	if v.left == 0 && n > 0 {
		n--
		v.last = []byte{p[n]}
		return n // an error that came along comes again when the end is looked for
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err == nil && n == 0 {
		err = io.ErrNoProgress
	}
	v.err = err
	return n
}

// end finds out whether nothing follows, and whether the content was the right one.
func (v *VerifyingReader) end() error {
	var more [1]byte
	switch n, err := io.ReadFull(v.src, more[:]); {
	case n > 0:
		return ErrTooLong
	case err != io.EOF:
		return err
	case hex.EncodeToString(v.sum.Sum(nil)) != v.oid:
		return ErrContent
	}
	return nil
}
