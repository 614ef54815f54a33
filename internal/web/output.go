package web

import (
	"encoding/json"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/cofferdam/cofferdam/internal/fault"
)

var errHours = fault.New(fault.Invalid, "hours: a number above 0 and at most 720")

// outputChunk is a part of what a sandbox's main command said, as text that a page can show.
type outputChunk struct {
	Text    string `json:"text"`
	Next    int64  `json:"next"`
	Skipped int64  `json:"skipped"`
	Live    bool   `json:"live"`
}

// output answers with what follows an offset, for the script that shows it as it comes.
func (p *Pages) output(v *visit) error {
	offset, err := strconv.ParseInt(v.r.URL.Query().Get("after"), 10, 64)
	if err != nil || offset < 0 {
		return fault.New(fault.Invalid, "after: a number of bytes")
	}
	chunk, err := v.readOutput(v.r.PathValue("id"), offset, 256<<10)
	if err != nil {
		return err
	}
	v.w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(v.w).Encode(chunk)
}

func (v *visit) readOutput(id string, offset int64, most int) (outputChunk, error) {
	data, next, skipped, live, err := v.ops.Output(v.r.Context(), v.actor, id, offset, most)
	if err != nil {
		return outputChunk{}, err
	}
	held := 0
	if live || len(data) >= most {
		held = unfinished(data)
	}
	return outputChunk{Text: plainOutput(data[:len(data)-held]), Next: next - int64(held), Skipped: skipped, Live: live}, nil
}

// mostSequence bounds how long an escape sequence is waited for: a longer one is shown as it is.
const mostSequence = 4096

// unfinished counts the bytes at the end that belong together with bytes to come: half a character, half an escape sequence, and a carriage return
// before, which means one thing before a line feed and another before the rest.
func unfinished(data []byte) int {
	n := halfway(data)
	for n < len(data) && data[len(data)-n-1] == '\r' {
		n++
	}
	return n
}

func halfway(data []byte) int {
	start := max(0, len(data)-mostSequence)
	tail := data[start:]
	for i := 0; i < len(tail); {
		if tail[i] == 0x1b {
			n := sequence(tail[i:])
			if n == 0 {
				return len(tail) - i
			}
			i += n
			continue
		}
		i++
	}
	for n := 1; n < utf8.UTFMax && n <= len(data); n++ {
		b := data[len(data)-n]
		if utf8.RuneStart(b) {
			if b >= utf8.RuneSelf && !utf8.FullRune(data[len(data)-n:]) {
				return n
			}
			break
		}
	}
	return 0
}

// sequence is the length of the escape sequence that data begins with; 0 if it has not ended, 1 if it is none: the escape stands alone.
func sequence(data []byte) int {
	if len(data) < 2 {
		return 0
	}
	switch data[1] {
	case '[': // CSI: parameters, then one byte from @ to ~
		for i := 2; i < len(data); i++ {
			if data[i] >= 0x40 && data[i] <= 0x7e {
				return i + 1
			}
			if data[i] < 0x20 || data[i] > 0x7e {
				return 1
			}
		}
		return 0
	case ']', 'P', 'X', '^', '_': // a string, until BEL or ESC \
		for i := 2; i < len(data); i++ {
			if data[i] == 0x07 {
				return i + 1
			}
			if data[i] == 0x1b {
				if i+1 == len(data) {
					return 0
				}
				if data[i+1] == '\\' {
					return i + 2
				}
				return 1
			}
		}
		return 0
	}
	for i := 1; ; i++ { // intermediate bytes, then one more
		switch {
		case i == len(data):
			return 0
		case data[i] < 0x20 || data[i] > 0x7e:
			return 1
		case data[i] > 0x2f:
			return i + 1
		}
	}
}

// plainOutput makes terminal output a text: without colours, titles, links and whatever else escape sequences ask for, with other control characters
// and those that change direction made visible.
func plainOutput(data []byte) string {
	var b strings.Builder
	for i := 0; i < len(data); {
		if data[i] == 0x1b {
			n := sequence(data[i:])
			if n <= 1 {
				n = 1
				b.WriteString("\u241b")
			}
			i += n
			continue
		}
		r, size := utf8.DecodeRune(data[i:])
		i += size
		switch {
		case r == '\n' || r == '\t':
			b.WriteRune(r)
		case r == '\r': // a line that is written over begins anew; each state of it is kept
			if i < len(data) && data[i] != '\n' && data[i] != '\r' {
				b.WriteByte('\n')
			}
		case r < 0x20: // the picture of the control character
			b.WriteRune(0x2400 + r)
		case hidden(r):
			b.WriteString("<U+" + strings.ToUpper(strconv.FormatInt(int64(r), 16)) + ">")
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
