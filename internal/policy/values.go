package policy

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Resources bounds one sandbox. A zero field means the default; DefaultResources says which.
type Resources struct {
	MilliCPUs   int64         // thousandths of a CPU; 0 by default means all of the host's
	Memory      int64         // bytes
	PIDs        int64         // processes and threads
	Disk        int64         // bytes of scratch data and collected changes
	Timeout     time.Duration // wall time; 0 by default means none
	Connections int64         // open at once
}

// The units of sizes.
const (
	KiB int64 = 1 << 10
	MiB       = KiB << 10
	GiB       = MiB << 10
	TiB       = GiB << 10
)

// DefaultResources returns what a zero field stands for. CPUs and wall time stay zero: they have no bound unless one is given.
func DefaultResources() Resources {
	return Resources{Memory: 4 * GiB, PIDs: 1024, Disk: 8 * GiB, Connections: 256}
}

// OrDefaults fills the zero fields with the defaults.
func (r Resources) OrDefaults() Resources {
	return r.or(DefaultResources())
}

// or fills the zero fields from d.
func (r Resources) or(d Resources) Resources {
	pick := func(a, b int64) int64 {
		if a != 0 {
			return a
		}
		return b
	}
	return Resources{
		MilliCPUs: pick(r.MilliCPUs, d.MilliCPUs), Memory: pick(r.Memory, d.Memory), PIDs: pick(r.PIDs, d.PIDs), Disk: pick(r.Disk, d.Disk),
		Timeout: time.Duration(pick(int64(r.Timeout), int64(d.Timeout))), Connections: pick(r.Connections, d.Connections),
	}
}

// bound is the range that makes sense for one resource: below it nothing runs, above it the number is a slip.
type bound struct{ low, high int64 }

func cpuBound() bound     { return bound{10, 4096_000} }
func memoryBound() bound  { return bound{16 * MiB, 64 * TiB} }
func pidBound() bound     { return bound{4, 4194304} } // Linux: PID_MAX_LIMIT on 64 bits
func diskBound() bound    { return bound{MiB, 1024 * TiB} }
func timeoutBound() bound { return bound{int64(time.Second), int64(30 * 24 * time.Hour)} }
func connBound() bound    { return bound{1, 65536} }

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
	for _, f := range []struct {
		name string
		n    int64
		b    bound
		show func(int64) string
	}{
		{"cpus", r.MilliCPUs, cpuBound(), FormatCPUs},
		{"memory", r.Memory, memoryBound(), FormatSize},
		{"pids", r.PIDs, pidBound(), formatCount},
		{"disk", r.Disk, diskBound(), FormatSize},
		{"timeout", int64(r.Timeout), timeoutBound(), formatTimeout},
		{"connections", r.Connections, connBound(), formatCount},
	} {
		if f.n == 0 {
			continue
		}
		if _, err := within(f.n, f.b, f.show); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return nil
}

// ParseSize reads a size of memory or disk: digits and a unit KiB, MiB, GiB, TiB, or k, m, g, t for the same. Digits alone are bytes.
func ParseSize(s string) (int64, error) {
	digits := s
	unit := int64(1)
	for _, u := range []struct {
		suffix string
		bytes  int64
	}{{"KiB", KiB}, {"MiB", MiB}, {"GiB", GiB}, {"TiB", TiB}, {"k", KiB}, {"m", MiB}, {"g", GiB}, {"t", TiB}} {
		if rest, ok := strings.CutSuffix(s, u.suffix); ok {
			digits, unit = rest, u.bytes
			break
		}
	}
	n, err := parseDigits(digits)
	if err != nil || n > math.MaxInt64/unit {
		return 0, fault.New(fault.Invalid, "%.40q is no size", s).WithHint("write digits and a unit KiB, MiB, GiB or TiB, as in 512MiB")
	}
	return n * unit, nil
}

// FormatSize prints bytes as ParseSize reads them, in the largest unit that is exact.
func FormatSize(n int64) string {
	for _, u := range []struct {
		bytes  int64
		suffix string
	}{{TiB, "TiB"}, {GiB, "GiB"}, {MiB, "MiB"}, {KiB, "KiB"}} {
		if n != 0 && n%u.bytes == 0 {
			return strconv.FormatInt(n/u.bytes, 10) + u.suffix
		}
	}
	return strconv.FormatInt(n, 10)
}

// ParseMemory reads a memory bound within what makes sense.
func ParseMemory(s string) (int64, error) {
	return parseBounded(s, ParseSize, memoryBound(), FormatSize)
}

// ParseDisk reads a disk bound within what makes sense.
func ParseDisk(s string) (int64, error) { return parseBounded(s, ParseSize, diskBound(), FormatSize) }

// ParsePIDs reads a bound on processes and threads.
func ParsePIDs(s string) (int64, error) { return parseBounded(s, parseCount, pidBound(), formatCount) }

// ParseConnections reads a bound on open connections.
func ParseConnections(s string) (int64, error) {
	return parseBounded(s, parseCount, connBound(), formatCount)
}

// ParseCPUs reads a number of CPUs with up to three decimals, such as 2 or 0.5, as thousandths.
func ParseCPUs(s string) (int64, error) { return parseBounded(s, parseMilli, cpuBound(), FormatCPUs) }

// ParseTimeout reads a duration such as 90s, 30m or 2h30m.
func ParseTimeout(s string) (time.Duration, error) {
	n, err := parseBounded(s, parseDuration, timeoutBound(), formatTimeout)
	return time.Duration(n), err
}

func parseBounded(s string, parse func(string) (int64, error), b bound, show func(int64) string) (int64, error) {
	n, err := parse(s)
	if err != nil {
		return 0, err
	}
	return within(n, b, show)
}

// parseDigits reads plain decimal: no sign, no leading zero, no underscore, no exponent.
func parseDigits(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || strconv.FormatInt(n, 10) != s {
		return 0, fmt.Errorf("number %.40q", s)
	}
	return n, nil
}

func parseCount(s string) (int64, error) {
	n, err := parseDigits(s)
	if err != nil {
		return 0, fault.New(fault.Invalid, "%.40q is no count", s).WithHint("write plain digits, as in 512")
	}
	return n, nil
}

func formatCount(n int64) string { return strconv.FormatInt(n, 10) }

func parseMilli(s string) (int64, error) {
	whole, fraction, dot := strings.Cut(s, ".")
	n, err := parseDigits(whole)
	bad := err != nil || n > math.MaxInt32 || len(fraction) > 3 || dot && fraction == "" || strings.Trim(fraction, "0123456789") != ""
	if bad {
		return 0, fault.New(fault.Invalid, "%.40q is no number of CPUs", s).WithHint("write a number with up to three decimals, as in 2 or 0.5")
	}
	part, _ := strconv.ParseInt((fraction + "000")[:3], 10, 64) // three digits: cannot fail
	return n*1000 + part, nil
}

// FormatCPUs prints thousandths of a CPU as ParseCPUs reads them.
func FormatCPUs(milli int64) string {
	if milli%1000 == 0 {
		return strconv.FormatInt(milli/1000, 10)
	}
	return strings.TrimRight(fmt.Sprintf("%d.%03d", milli/1000, milli%1000), "0")
}

func parseDuration(s string) (int64, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fault.New(fault.Invalid, "%.40q is no duration", s).WithHint("write a number and a unit s, m or h, as in 90s or 30m")
	}
	return int64(d), nil
}

func formatTimeout(n int64) string {
	s := time.Duration(n).String()
	s = strings.TrimSuffix(s, "m0s")
	if s != time.Duration(n).String() {
		s += "m"
	}
	if rest, ok := strings.CutSuffix(s, "h0m"); ok {
		s = rest + "h"
	}
	return s
}
