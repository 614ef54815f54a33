package runner

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/frame"
)

// maxBoot bounds the boot line.
const maxBoot = 4 << 10

// boot is frame.Boot with its token where it can be overwritten; a Go string cannot.
type boot struct {
	Control string  `json:"control"`
	Token   erasure `json:"token"`
}

// erasure is a JSON string of plain characters, decoded without copies that outlive it.
type erasure []byte

// UnmarshalJSON takes a string without escapes, as tokens are.
func (e *erasure) UnmarshalJSON(p []byte) error {
	if len(p) < 2 || p[0] != '"' || bytes.IndexByte(p, '\\') >= 0 {
		return errors.New("want a string without escapes")
	}
	*e = bytes.Clone(p[1 : len(p)-1])
	return nil
}

// waits says whether something waits to be read, be it the end.
func waits(f *os.File) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}, 0)
	return n != 0 || err != nil
}

// rehearse does once what a boot line asks for, all but the call. A runner in a sandbox that is nobody's yet has time for it, and is sooner there when the line comes: above all in an
// imitated machine, where whatever is done for the first time has to be translated.
func rehearse() error {
	b, err := readBoot(strings.NewReader(`{"control":"192.0.2.1:1","token":"none"}` + "\n"))
	if err == nil {
		_, err = netip.ParseAddrPort(b.Control) // nobody is called
	}
	if err != nil {
		return err
	}
	return frame.WriteHello(io.Discard, frame.Hello{Token: b.Token, Facts: facts()}) // nobody hears it
}

// readBoot reads one JSON line. What is behind it is nobody's. The line is overwritten before it returns.
func readBoot(r io.Reader) (boot, error) {
	text := make([]byte, 0, maxBoot)
	defer func() { clear(text[:cap(text)]) }()
	for bytes.IndexByte(text, '\n') < 0 {
		if len(text) == cap(text) {
			return boot{}, fmt.Errorf("boot line longer than %d bytes", maxBoot)
		}
		n, err := r.Read(text[len(text):cap(text)])
		text = text[:len(text)+n]
		if errors.Is(err, io.EOF) && len(text) > 0 {
			break
		}
		if err != nil {
			return boot{}, fmt.Errorf("read boot line: %w", err)
		}
	}
	line, _, _ := bytes.Cut(text, []byte("\n"))
	var b boot
	if err := json.Unmarshal(line, &b); err != nil {
		return boot{}, errors.New("boot line is not the expected JSON object") // the decoder's text may quote the line
	}
	if b.Control == "" || len(b.Token) == 0 {
		return boot{}, errors.New("boot line lacks the control address or the token")
	}
	return b, nil
}
