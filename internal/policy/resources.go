package policy

import (
	"fmt"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Resources bounds one sandbox. A zero field means the default; DefaultResources says which.
type Resources struct {
	MilliCPUs   int64         // thousandths of a CPU; 0 by default means all of the host's
	Memory      int64         // bytes
	PIDs        int64         // processes and threads
	OpenFiles   int64         // descriptors of one process; 0 by default means this machine's own bound
	Disk        int64         // bytes of scratch data and collected changes
	Files       int64         // on scratch; 0 by default follows from Disk
	Scratch     Scratch       // where scratch data lies
	Timeout     time.Duration // wall time; 0 by default means none
	Connections int64         // open at once
	Bandwidth   int64         // bytes a second through the gateway, in both directions together; 0 by default means none
	Output      int64         // bytes of standard output and error together; 0 by default means none
}

// Scratch says where what is written in a sandbox lies until it is thrown away. The zero value is none that was asked for.
type Scratch uint8

// The kinds of scratch.
const (
	ScratchMemory    Scratch = iota + 1 // in memory, of which it is part
	ScratchEncrypted                    // on the disk, under a key that is wiped at the end
)

func scratchNames() []string { return []string{"memory", "encrypted"} }

// String names the kind as policy files do.
func (s Scratch) String() string { return name(append([]string{"none"}, scratchNames()...), uint8(s)) }

// ParseScratch reads a kind's name.
func ParseScratch(s string) (Scratch, error) {
	k, err := parseName[Scratch]("kind of scratch", scratchNames(), s)
	if err != nil {
		return 0, err
	}
	return k + ScratchMemory, nil
}

// limit is one field of Resources that is a number.
type limit struct {
	name  string // in policy files, and as a flag
	of    func(*Resources) *int64
	bound bound
	parse func(string) (int64, error)
	show  func(int64) string
	form  form
}

// form is how a limit is written in a policy file.
type form uint8

const (
	asNumber form = iota
	asSize
	asDuration
)

// limits lists every limit, in the order of the documents.
func limits() []limit {
	return []limit{
		{"cpus", func(r *Resources) *int64 { return &r.MilliCPUs }, bound{10, 4096_000}, parseMilli, FormatCPUs, asNumber},
		{"memory", func(r *Resources) *int64 { return &r.Memory }, bound{16 * MiB, 64 * TiB}, ParseSize, FormatSize, asSize},
		{"pids", func(r *Resources) *int64 { return &r.PIDs }, bound{4, 4194304}, parseCount, formatCount, asNumber}, // Linux: PID_MAX_LIMIT on 64 bits
		// Process 1 has to live with it too. Above is what Linux allows without further settings (fs.nr_open).
		{"open-files", func(r *Resources) *int64 { return &r.OpenFiles }, bound{64, 1 << 20}, parseCount, formatCount, asNumber},
		{"disk", func(r *Resources) *int64 { return &r.Disk }, bound{MiB, 1024 * TiB}, ParseSize, FormatSize, asSize},
		{"files", func(r *Resources) *int64 { return &r.Files }, bound{1024, 1 << 32}, parseCount, formatCount, asNumber}, // below that the view itself may not fit
		{"timeout", func(r *Resources) *int64 { return (*int64)(&r.Timeout) }, bound{int64(time.Second), int64(30 * 24 * time.Hour)}, parseDuration, formatTimeout, asDuration},
		{"connections", func(r *Resources) *int64 { return &r.Connections }, bound{1, 65536}, parseCount, formatCount, asNumber},
		// The least is where a handshake of 100 KiB, with certificates, still ends before the gateway gives it up after 10 seconds.
		{"bandwidth", func(r *Resources) *int64 { return &r.Bandwidth }, bound{16 * KiB, TiB}, ParseSize, FormatSize, asSize},
		{"output", func(r *Resources) *int64 { return &r.Output }, bound{KiB, TiB}, ParseSize, FormatSize, asSize},
	}
}

// LimitNames lists the limits by the names that policy files and flags have for them.
func LimitNames() []string {
	var names []string
	for _, l := range limits() {
		names = append(names, l.name)
	}
	return names
}

// ParseLimit reads a limit by its name, within what makes sense, into r.
func (r *Resources) ParseLimit(name, text string) error {
	for _, l := range limits() {
		if l.name == name {
			n, err := l.read(text)
			if err == nil {
				*l.of(r) = n
			}
			return err
		}
	}
	return fault.New(fault.Internal, "there is no limit %.40q", name)
}

// FormatLimit prints a limit as ParseLimit reads it; empty if it is zero.
func (r Resources) FormatLimit(name string) string {
	for _, l := range limits() {
		if n := *l.of(&r); l.name == name && n != 0 {
			return l.show(n)
		}
	}
	return ""
}

func (l limit) read(text string) (int64, error) {
	n, err := l.parse(text)
	if err != nil {
		return 0, err
	}
	return within(n, l.bound, l.show)
}

// DefaultResources returns what a zero field stands for. What stays zero has no bound unless one is given.
func DefaultResources() Resources {
	return Resources{Memory: 4 * GiB, PIDs: 1024, Disk: 8 * GiB, Scratch: ScratchMemory, Connections: 256}
}

// OrDefaults fills the zero fields with the defaults.
func (r Resources) OrDefaults() Resources {
	return r.or(DefaultResources())
}

// or fills the zero fields from d.
func (r Resources) or(d Resources) Resources {
	for _, l := range limits() {
		if mine := l.of(&r); *mine == 0 {
			*mine = *l.of(&d)
		}
	}
	if r.Scratch == 0 {
		r.Scratch = d.Scratch
	}
	return r
}

// ScratchFiles is how many files scratch has room for: what is stated, or what follows from the size and kind of scratch. In memory a file costs nothing before it
// is made; on a disk its place is there from the start, so that there are fewer (mke2fs(8): one for each 16 KiB).
func (r Resources) ScratchFiles() int64 {
	r = r.OrDefaults()
	each := 4 * KiB
	if r.Scratch == ScratchEncrypted {
		each = 16 * KiB
	}
	if r.Files == 0 {
		r.Files = max(r.Disk/each, 1024)
	}
	return r.Files
}

// Smaller says whether any limit is smaller than the other's, or scratch lies elsewhere. A limit that is not set where there is no default is none.
func (r Resources) Smaller(than Resources) bool {
	r, than = r.OrDefaults(), than.OrDefaults()
	for _, l := range limits() {
		if mine, other := *l.of(&r), *l.of(&than); mine != 0 && (other == 0 || mine < other) {
			return true
		}
	}
	return r.Scratch != than.Scratch
}

// bound is the range that makes sense for one resource: below it nothing runs, above it the number is a slip.
type bound struct{ low, high int64 }

// within refuses n outside b; show prints a number as people write it.
func within(n int64, b bound, show func(int64) string) (int64, error) {
	switch {
	case n == 0:
		return 0, fault.New(fault.Invalid, "0 would let nothing run").WithHint("leave it out for the default, or write %s to %s", show(b.low), show(b.high))
	case n < b.low:
		return 0, fault.New(fault.Invalid, "%s is too little", show(n)).WithHint("write %s to %s", show(b.low), show(b.high))
	case n > b.high:
		return 0, fault.New(fault.Invalid, "%s is too much", show(n)).WithHint("write %s to %s", show(b.low), show(b.high))
	}
	return n, nil
}

// check refuses a field out of bounds. Zero fields are in order.
func (r Resources) check() error {
	for _, l := range limits() {
		n := *l.of(&r)
		if n == 0 {
			continue
		}
		if _, err := within(n, l.bound, l.show); err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
	}
	if r.Scratch > ScratchEncrypted {
		return fault.New(fault.Invalid, "there is no kind of scratch %d", r.Scratch)
	}
	return nil
}

func (r *reader) resources(n *yaml.Node, path string) {
	into := &r.policy.resources
	fields := []field{{"scratch", func(n *yaml.Node, path string) { into.Scratch, _ = choice(r, n, path, ParseScratch) }}}
	for _, l := range limits() {
		fields = append(fields, field{l.name, func(n *yaml.Node, path string) { r.limit(n, path, l, l.of(into)) }})
	}
	r.mapping(n, path, fields)
}

// limit reads a number; a size, with a unit or a number of bytes; or a duration.
func (r *reader) limit(n *yaml.Node, path string, l limit, into *int64) {
	text, ok := "", false
	number := n.Kind == yaml.ScalarNode && (n.Tag == "!!int" || n.Tag == "!!float")
	switch {
	case l.form == asDuration && number && n.Tag == "!!int":
		r.add(n, path, "write a unit: "+n.Value+"s, "+n.Value+"m or "+n.Value+"h", "a duration without a unit")
		return
	case l.form == asNumber:
		text, ok = r.number(n, path)
	case l.form == asSize && number:
		text, ok = n.Value, true
	default:
		text, ok = r.text(n, path)
	}
	if !ok {
		return
	}
	v, err := l.read(text)
	if err != nil {
		r.addError(n, path, err)
		return
	}
	*into = v
}
