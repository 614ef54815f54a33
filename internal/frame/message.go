package frame

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxStart bounds the whole of a Start in its wire form. Linux gives a command 2 MiB for arguments and environment by default,
// and a byte takes at most six in JSON's worst case; beyond this bound nothing reasonable lies.
const maxStart = 8 << 20

// maxSignal is the highest signal number of Linux.
const maxSignal = 64

// Hello is how a runner introduces itself.
type Hello struct {
	// Token proves that this is the runner of that sandbox. It is worthless after its one use.
	Token []byte
	Facts Facts
}

// Facts is what a runner says about where it woke up. It comes from inside: a help for people, no evidence.
type Facts struct {
	Kernel  string `json:"kernel,omitempty"`  // release
	Machine string `json:"machine,omitempty"` // architecture
	PID     int    `json:"pid,omitempty"`     // 1 in a proper sandbox
}

// WriteHello writes the first frame of a runner and overwrites its copies of the token. The caller overwrites h.Token.
func WriteHello(w io.Writer, h Hello) error {
	if len(h.Token) > maxToken {
		return fmt.Errorf("token longer than %d bytes", maxToken)
	}
	facts, err := json.Marshal(h.Facts)
	if err != nil {
		return err
	}
	p := make([]byte, 0, 3+len(h.Token)+len(facts))
	p = binary.BigEndian.AppendUint16(p, Version)
	p = append(p, byte(len(h.Token)))
	p = append(p, h.Token...)
	p = append(p, facts...)
	wire := Append(make([]byte, 0, headerLen+len(p)), Frame{Type: TypeHello, Payload: p})
	_, err = w.Write(wire)
	clear(p)
	clear(wire)
	return err
}

// parseHello copies everything out of p. A wrong version is an error that says so.
func parseHello(p []byte) (Hello, error) {
	if v := binary.BigEndian.Uint16(p); v != Version {
		return Hello{}, fmt.Errorf("the runner speaks protocol version %d and this program version %d: their releases differ", v, Version)
	}
	n := int(p[2])
	if len(p) < 3+n {
		return Hello{}, violation("hello shorter than its token")
	}
	h := Hello{Token: bytes.Clone(p[3 : 3+n])}
	if err := unmarshal(TypeHello, p[3+n:], &h.Facts); err != nil {
		return Hello{}, err
	}
	h.Facts.Kernel, h.Facts.Machine = Inert(h.Facts.Kernel, 64), Inert(h.Facts.Machine, 64)
	return h, nil
}

// unmarshal decodes one message strictly: no unknown member, nothing after the value.
func unmarshal(t Type, p []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(p))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return violation("%s: %v", t, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return violation("%s: bytes after the message", t)
	}
	return nil
}

// byteText is a string of arbitrary bytes in JSON, which knows only Unicode: each byte becomes the code point of the same number.
// Arguments and environment are bytes on Linux and must arrive unchanged.
type byteText string

func (t byteText) MarshalJSON() ([]byte, error) {
	var b strings.Builder
	for i := range len(t) {
		b.WriteRune(rune(t[i]))
	}
	return json.Marshal(b.String())
}

func (t *byteText) UnmarshalJSON(p []byte) error {
	var s string
	if err := json.Unmarshal(p, &s); err != nil {
		return err
	}
	b := make([]byte, 0, len(s))
	for _, r := range s {
		if r > 0xff {
			return fmt.Errorf("code point %U in a byte text", r)
		}
		b = append(b, byte(r))
	}
	*t = byteText(b)
	return nil
}

// wireStart is Start with its texts as bytes.
type wireStart struct {
	Hold     bool       `json:"hold,omitempty"`
	Self     bool       `json:"self,omitempty"`
	Args     []byteText `json:"args"`
	Env      []byteText `json:"env"`
	Dir      byteText   `json:"dir"`
	TTY      bool       `json:"tty"`
	Rows     uint16     `json:"rows,omitempty"`
	Cols     uint16     `json:"cols,omitempty"`
	NoStdin  bool       `json:"no_stdin,omitempty"`
	OpenFile uint64     `json:"open_files,omitempty"`
}

func convert[T, F ~string](from []F) []T {
	to := make([]T, len(from))
	for i, s := range from {
		to[i] = T(s)
	}
	return to
}

// Check says what is wrong with s, or nil if a runner takes it.
func (s Start) Check() error {
	if s.Hold {
		if s.Self || len(s.Args) > 0 || len(s.Env) > 0 || s.Dir != "" || s.TTY || s.Rows != 0 || s.Cols != 0 || s.NoStdin || s.OpenFile != 0 {
			return errors.New("a hold is no command and takes nothing of one")
		}
		return nil
	}
	if len(s.Args) == 0 || s.Args[0] == "" {
		return errors.New("no command")
	}
	for _, list := range [][]string{s.Args, s.Env, {s.Dir}} {
		for _, text := range list {
			if strings.IndexByte(text, 0) >= 0 {
				return fmt.Errorf("%.40q contains a NUL byte", text)
			}
		}
	}
	for _, e := range s.Env {
		if i := strings.IndexByte(e, '='); i < 1 {
			return fmt.Errorf("environment entry %.40q is not NAME=VALUE", e)
		}
	}
	if !strings.HasPrefix(s.Dir, "/") {
		return fmt.Errorf("directory %.40q is not absolute", s.Dir)
	}
	return nil
}

// marshalStart returns the wire form of s, which may be longer than one frame.
func marshalStart(s Start) ([]byte, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	p, err := json.Marshal(wireStart{
		Hold: s.Hold, Self: s.Self, Args: convert[byteText](s.Args), Env: convert[byteText](s.Env), Dir: byteText(s.Dir),
		TTY: s.TTY, Rows: s.Rows, Cols: s.Cols, NoStdin: s.NoStdin, OpenFile: s.OpenFile,
	})
	if err != nil {
		return nil, err
	}
	if len(p) > maxStart {
		return nil, fmt.Errorf("command and environment take %d bytes, more than %d", len(p), maxStart)
	}
	return p, nil
}

func parseStart(p []byte) (Start, error) {
	var w wireStart
	if err := unmarshal(TypeStart, p, &w); err != nil {
		return Start{}, err
	}
	s := Start{
		Hold: w.Hold, Self: w.Self, Args: convert[string](w.Args), Env: convert[string](w.Env), Dir: string(w.Dir),
		TTY: w.TTY, Rows: w.Rows, Cols: w.Cols, NoStdin: w.NoStdin, OpenFile: w.OpenFile,
	}
	if err := s.Check(); err != nil {
		return Start{}, violation("start: %v", err)
	}
	return s, nil
}

// parseExit returns an Exit whose numbers are possible and whose text is inert.
func parseExit(p []byte) (Exit, error) {
	var e Exit
	if err := unmarshal(TypeExit, p, &e); err != nil {
		return Exit{}, err
	}
	if e.Code < 0 || e.Code > 255 || e.Signal < 0 || e.Signal > maxSignal || e.Code != 0 && e.Signal != 0 {
		return Exit{}, violation("exit with code %d and signal %d", e.Code, e.Signal)
	}
	e.Error = Inert(e.Error, maxText)
	return e, nil
}

// maxName bounds the name of a process in an Owner.
const maxName = 64

// parseOwner returns an Owner with a possible process id and an inert name.
func parseOwner(p []byte) (Owner, error) {
	var o Owner
	if err := unmarshal(TypeOwner, p, &o); err != nil {
		return Owner{}, err
	}
	if o.PID < 0 {
		return Owner{}, violation("owner with process id %d", o.PID)
	}
	o.Name = Inert(o.Name, maxName)
	return o, nil
}

// Inert returns at most limit bytes of s as text that a terminal or a log only shows: valid UTF-8 and printable, everything else
// (control characters, escape sequences, direction overrides, broken UTF-8) as '?'. It never cuts a character in two.
func Inert(s string, limit int) string {
	var b strings.Builder
	for _, r := range s {
		if !strconv.IsPrint(r) || r == utf8.RuneError {
			r = '?'
		}
		if b.Len()+utf8.RuneLen(r) > limit {
			break
		}
		b.WriteRune(r)
	}
	return b.String()
}
