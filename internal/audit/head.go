package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Names of the files in the log's directory.
const (
	logName  = "log.jsonl"
	headName = "head.json"
)

// headSize is the fixed size of head.json, padded with spaces: it is overwritten in place by one write inside one disk sector,
// which needs no free space and no right to the path.
const headSize = 192

// Checkpoint names the last record of a log at some moment. Kept elsewhere it proves later that nothing up to it was changed or cut off.
type Checkpoint struct {
	Seq  uint64
	Hash string
}

// String returns SEQ:HASH.
func (c Checkpoint) String() string { return strconv.FormatUint(c.Seq, 10) + ":" + c.Hash }

// MarshalText returns SEQ:HASH.
func (c Checkpoint) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText reads SEQ:HASH.
func (c *Checkpoint) UnmarshalText(text []byte) (err error) {
	*c, err = ParseCheckpoint(string(text))
	return err
}

// ParseCheckpoint reads SEQ:HASH as printed by String.
func ParseCheckpoint(s string) (Checkpoint, error) {
	number, hash, ok := strings.Cut(s, ":")
	seq, err := strconv.ParseUint(number, 10, 64)
	if !ok || err != nil || strconv.FormatUint(seq, 10) != number || !isHash(hash) || (seq == 0) != (hash == noHash) {
		return Checkpoint{}, fault.New(fault.Invalid, "%.90q is not a checkpoint: want SEQ:HASH", s).
			WithHint("take one with: cofferdam audit head")
	}
	return Checkpoint{Seq: seq, Hash: hash}, nil
}

// head is the content of head.json. It is written after the log, so it may lag behind it after a kill, never run ahead of it:
// a log shorter than its head has lost records.
type head struct {
	Seq  uint64 `json:"seq"`
	Hash string `json:"hash"`
	Size int64  `json:"size"`
	// Cut counts bytes that were cut off the log and whose log.repaired record could not be written yet.
	Cut int64 `json:"cut,omitempty"`
}

var errBadHead = errors.New("head.json is not a head")

// encode writes the members by hand, since it is done for every write to the log; decodeHead reads them as the JSON that they are.
func (h head) encode() ([]byte, error) {
	if !isHash(h.Hash) {
		return nil, fmt.Errorf("encode audit head: %q is no hash", h.Hash)
	}
	out := make([]byte, 0, headSize)
	out = strconv.AppendUint(append(out, `{"seq":`...), h.Seq, 10)
	out = append(append(append(out, `,"hash":"`...), h.Hash...), `","size":`...)
	out = strconv.AppendInt(out, h.Size, 10)
	if h.Cut != 0 {
		out = strconv.AppendInt(append(out, `,"cut":`...), h.Cut, 10)
	}
	out = append(out, '}')
	if len(out) >= headSize {
		return nil, fmt.Errorf("encode audit head: %d bytes", len(out))
	}
	for len(out) < headSize-1 {
		out = append(out, ' ')
	}
	return append(out, '\n'), nil
}

func decodeHead(data []byte) (head, error) {
	var h head
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&h); err != nil {
		return head{}, errBadHead
	}
	if rest := data[dec.InputOffset():]; len(bytes.TrimSpace(rest)) > 0 {
		return head{}, errBadHead
	}
	if !isHash(h.Hash) || (h.Seq == 0) != (h.Hash == noHash) || h.Size < 0 || h.Cut < 0 {
		return head{}, errBadHead
	}
	return h, nil
}

// readHead reads head.json from the start. errBadHead means that it is there and worthless.
func readHead(f *os.File) (head, error) {
	buf := make([]byte, headSize+1)
	n, err := f.ReadAt(buf, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return head{}, fmt.Errorf("read audit head: %w", err)
	}
	return decodeHead(buf[:n])
}

// knownHead is the head that this process wrote last. As long as no other process has written, the file holds its bytes and need not be decoded.
type knownHead struct {
	head head
	text []byte // empty: none
}

// readHead reads head.json as the function does, for the leader.
func (l *Log) readHead() (head, error) {
	var buf [headSize + 1]byte
	n, err := l.head.ReadAt(buf[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return head{}, fmt.Errorf("read audit head: %w", err)
	}
	if len(l.known.text) > 0 && bytes.Equal(buf[:n], l.known.text) {
		return l.known.head, nil
	}
	return decodeHead(buf[:n])
}

// writeHead writes head.json and remembers it, for the leader.
func (l *Log) writeHead(h head) error {
	l.known = knownHead{}
	data, err := h.encode()
	if err != nil {
		return err
	}
	if _, err := l.head.WriteAt(data, 0); err != nil {
		return fmt.Errorf("write audit head: %w", err)
	}
	l.known = knownHead{head: h, text: data}
	return nil
}
