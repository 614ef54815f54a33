package policy

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// The units of sizes.
const (
	KiB int64 = 1 << 10
	MiB       = KiB << 10
	GiB       = MiB << 10
	TiB       = GiB << 10
)

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

// FormatCPUs prints thousandths of a CPU as policy files have them.
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
