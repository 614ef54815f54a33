package terminal

import (
	"slices"
	"strconv"
	"strings"
)

// tracker follows a program's output as a terminal would, as far as it must be known whether a line may be put in between: is the terminal
// showing the alternate screen, and does the output pause inside a character or an escape sequence? Its zero value is a fresh terminal.
type tracker struct {
	state   trackState
	private bool   // the sequence began with CSI ?
	param   uint16 // being read; saturates
	params  []uint16
	utf8    int // bytes missing of a character
	alt     bool
	inLine  bool     // something was shown since the last line feed, or the cursor has moved elsewhere
	changed []uint16 // private modes that are not as in a fresh terminal, other than the alternate screen
}

type trackState uint8

const (
	ground   trackState = iota
	escape              // after ESC
	escapeIn            // after ESC and an intermediate byte, such as a character set's
	csi                 // in CSI
	text                // in OSC, DCS, SOS, PM or APC
	textEsc             // in one of these, after ESC
)

// maxParams bounds what is kept of one sequence; terminals ignore more as well.
const maxParams = 16

// undone says which private modes would trouble the user's shell if they stayed, and whether a fresh terminal has them set.
func undone(mode uint16) (fresh, known bool) {
	switch mode {
	case 25: // cursor visible
		return true, true
	case 1, 9, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1015, 1016, 2004, 2026: // cursor keys, mouse, focus, paste, synchronised output
		return false, true
	}
	return false, false
}

// feed follows p.
func (t *tracker) feed(p []byte) {
	for _, b := range p {
		t.step(b)
	}
}

// quiet says whether the output is between two sequences and two characters.
func (t *tracker) quiet() bool { return t.state == ground && t.utf8 == 0 }

func (t *tracker) step(b byte) {
	if t.state == ground && b != 0x1b {
		t.character(b)
		return
	}
	t.utf8 = 0
	switch {
	case t.state == text:
		t.inText(b)
	case t.state == textEsc && b == '\\', b == 0x18, b == 0x1a: // end of text; CAN and SUB end anything
		t.state = ground
	case b == 0x1b:
		t.state = escape
	case t.state == textEsc, t.state == escape: // ESC ends a text even if no ST follows
		t.afterEscape(b)
	case t.state == escapeIn:
		if b >= 0x30 {
			t.state = ground
		}
	case t.state == csi:
		t.inCSI(b)
	}
}

// character follows what is shown, and counts the bytes of a UTF-8 character.
func (t *tracker) character(b byte) {
	switch {
	case b == '\n':
		t.inLine = false
	case b >= 0x20 && b != 0x7f || b == '\t': // other control characters show nothing: a carriage return alone leaves what it returns over
		t.inLine = true
	}
	switch {
	case b&0xc0 == 0x80 && t.utf8 > 0:
		t.utf8--
	case b&0xe0 == 0xc0:
		t.utf8 = 1
	case b&0xf0 == 0xe0:
		t.utf8 = 2
	case b&0xf8 == 0xf0:
		t.utf8 = 3
	default:
		t.utf8 = 0
	}
}

func (t *tracker) inText(b byte) {
	switch b {
	case 0x07, 0x18, 0x1a:
		t.state = ground
	case 0x1b:
		t.state = textEsc
	}
}

func (t *tracker) afterEscape(b byte) {
	switch {
	case b == '[':
		t.state, t.private, t.param, t.params = csi, false, 0, t.params[:0]
	case b == ']' || b == 'P' || b == 'X' || b == '^' || b == '_':
		t.state = text
	case b == 'c': // full reset
		*t = tracker{params: t.params[:0], changed: t.changed[:0]}
	case b >= 0x20 && b < 0x30:
		t.state = escapeIn
	case b >= 0x30:
		t.state = ground
	} // control characters act at once and leave the sequence open
}

func (t *tracker) inCSI(b byte) {
	switch {
	case b == '?' && len(t.params) == 0 && t.param == 0:
		t.private = true
	case b >= '0' && b <= '9':
		if t.param < 6000 {
			t.param = t.param*10 + uint16(b-'0')
		}
	case b == ';' || b == ':':
		t.push()
	case b >= 0x40 && b != 0x7f:
		t.push()
		t.state = ground
		if !strings.ContainsRune("hlmJK", rune(b)) { // all others may move the cursor
			t.inLine = true
		}
		if t.private && (b == 'h' || b == 'l') {
			for _, mode := range t.params {
				t.set(mode, b == 'h')
			}
		}
	}
}

func (t *tracker) push() {
	if len(t.params) < maxParams {
		t.params = append(t.params, t.param)
	}
	t.param = 0
}

func (t *tracker) set(mode uint16, on bool) {
	switch fresh, known := undone(mode); {
	case mode == 47 || mode == 1047 || mode == 1049:
		t.alt = on
	case known && on == fresh:
		t.changed = slices.DeleteFunc(t.changed, func(m uint16) bool { return m == mode })
	case known && !slices.Contains(t.changed, mode):
		t.changed = append(t.changed, mode)
	}
}

// undo returns what brings the terminal back to where the user's shell left it, nothing if it is there.
func (t *tracker) undo() []byte {
	var b []byte
	if !t.quiet() {
		b = append(b, breakOff...)
	}
	for _, mode := range t.changed {
		fresh, _ := undone(mode)
		b = appendMode(b, mode, fresh)
	}
	if t.alt {
		b = appendMode(b, 1049, false)
	}
	if len(b) > 0 {
		b = append(b, plainText...)
	}
	return b
}

func appendMode(b []byte, mode uint16, on bool) []byte {
	b = strconv.AppendUint(append(b, "\x1b[?"...), uint64(mode), 10)
	if on {
		return append(b, 'h')
	}
	return append(b, 'l')
}

const (
	// breakOff ends whatever sequence the program has left open: CAN, and ST for a text.
	breakOff = "\x18\x1b\\"
	// plainText selects visible ASCII in the default colours: the program may have left invisible ones.
	plainText = "\x1b[0m\x0f\x1b(B"
)
