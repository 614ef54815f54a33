package vm

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/cofferdam/cofferdam/internal/frame"
)

// The bounds of what is kept of a machine's console and of its program's words, in bytes.
const (
	outputKept = 16 << 10
	outputText = 300
	// breath is how long this process pauses between two looks at what a machine says, so that one who talks without end costs it next to nothing.
	breath = 2 * time.Millisecond
)

// output takes in what a machine writes to its console and keeps the end of it. It may be safely used by several goroutines.
type output struct {
	mu   sync.Mutex
	kept []byte
}

// newOutput makes a pipe, of which the machine gets the end, and reads it until that is closed everywhere, which is when the machine is gone.
func newOutput() (o *output, end *os.File, err error) {
	r, end, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("make a pipe for the console: %w", err)
	}
	o = &output{}
	go func() {
		defer r.Close()
		b := make([]byte, 4096)
		for {
			n, err := r.Read(b)
			o.take(b[:n])
			if err != nil {
				return
			}
			time.Sleep(breath)
		}
	}()
	return o, end, nil
}

func (o *output) take(b []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.kept = append(o.kept, b...); len(o.kept) > outputKept {
		o.kept = append([]byte{}, o.kept[len(o.kept)-outputKept/2:]...)
	}
}

// last returns the last line that is not empty, for people.
func (o *output) last() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	last := ""
	for line := range strings.Lines(string(o.kept)) {
		if text := strings.TrimSpace(line); text != "" {
			last = text
		}
	}
	return frame.Inert(last, outputText)
}
