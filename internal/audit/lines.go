package audit

import (
	"bufio"
	"errors"
	"io"
)

// line is one line of the log. Its data is valid until the next call of next.
type line struct {
	data   []byte // without the line break; cut at maxLine+1 bytes
	offset int64  // of its first byte
	number int    // from 1
	size   int64  // in the file, with the line break
	whole  bool   // it ends in a line break
}

// lineReader splits a stream into lines with bounded memory, however long a line is.
type lineReader struct {
	r      *bufio.Reader
	long   []byte
	offset int64
	number int
}

func newLineReader(r io.Reader, offset int64, number int) *lineReader {
	return &lineReader{r: bufio.NewReaderSize(r, 64<<10), offset: offset, number: number}
}

// next returns the next line, or io.EOF. The last line of a file may lack its break.
func (lr *lineReader) next() (line, error) {
	l := line{offset: lr.offset, number: lr.number + 1}
	lr.long = lr.long[:0]
	for {
		part, err := lr.r.ReadSlice('\n')
		l.size += int64(len(part))
		if err == nil {
			part = part[:len(part)-1]
			l.whole = true
		}
		if !errors.Is(err, bufio.ErrBufferFull) && len(lr.long) == 0 {
			l.data = part
		} else {
			lr.long = append(lr.long, part[:min(len(part), maxLine+1-len(lr.long))]...)
			l.data = lr.long
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF) && l.size == 0:
			return line{}, io.EOF
		case err != nil && !errors.Is(err, io.EOF):
			return line{}, err
		}
		lr.offset += l.size
		lr.number++
		return l, nil
	}
}
