package main

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// row is one thing that was measured, with everything it is compared to.
type row struct {
	what, unit string
	higher     bool // more is better
	ours       series
	others     []comparison
}

// comparison is one line of the table.
type comparison struct {
	other series
	aim   aim
}

func against(other series, a aim) comparison { return comparison{other, a} }

// addedRow compares the time above the direct way's median. Ours is to be at most limit there; aimOf says what is wanted against each of the rest.
// ok is false if the direct way has no values.
func addedRow(what string, mine series, others []series, limit float64, aimOf func(name string) aim) (r row, ok bool) {
	direct, ok := find(others, directName)
	if !ok {
		return row{}, false
	}
	base := direct.median()
	r = row{what: what, unit: "ms", ours: mine.minus(base), others: []comparison{against(direct.minus(base), aimAdded(limit))}}
	for _, o := range others {
		if o.name != directName {
			r.others = append(r.others, against(o.minus(base), aimOf(o.name)))
		}
	}
	return r, true
}

// table is what stands between two marks of a file.
type table struct {
	mark    string
	rows    []row
	skipped []string
}

// report renders the table as Markdown. load is the machine's load average when it began.
func (t *table) report(load string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Measured %s on %s, load average before %s.\n\n", time.Now().UTC().Format("2006-01-02"), machine(), load)
	b.WriteString("| what | cofferdam p50 (p99), n | against | p50 (p99), n | ratio | aim | |\n|---|---|---|---|---|---|---|\n")
	for _, r := range t.rows {
		for i, c := range r.others {
			what, ours := "", ""
			if i == 0 {
				what, ours = r.what+", "+r.unit, r.cell(r.ours)
			}
			measure, met := c.aim.judge(r.ours, c.other)
			verdict := map[bool]string{true: "met", false: "**missed**"}[met]
			if c.aim.text == "" {
				verdict = ""
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s |\n", what, ours, c.other.name, r.cell(c.other), measure, c.aim.text, verdict)
		}
		if len(r.others) == 0 {
			fmt.Fprintf(&b, "| %s | %s | | | | | |\n", r.what+", "+r.unit, r.cell(r.ours))
		}
	}
	for _, line := range t.skipped {
		b.WriteString("\n- " + line)
	}
	if len(t.skipped) > 0 {
		b.WriteString("\n")
	}
	return b.String()
}

// cell is a median with the bad end of the distribution.
func (r row) cell(s series) string {
	bad := 0.99
	if r.higher {
		bad = 0.01
	}
	return fmt.Sprintf("%s (%s), %d", figure(s.median()), figure(s.quantile(bad)), len(s.values))
}

// figure writes three digits that count.
func figure(v float64) string {
	switch {
	case math.Abs(v) >= 100:
		return fmt.Sprintf("%.0f", v)
	case math.Abs(v) >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// machine describes where it ran.
func machine() string {
	var u unix.Utsname
	_ = unix.Uname(&u) // an empty name is still a report
	return fmt.Sprintf("%d × %s, Linux %s, %s, user %d", runtime.NumCPU(), cmp.Or(processor(), runtime.GOARCH), unix.ByteSliceToString(u.Release[:]), runtime.Version(), os.Getuid())
}

func processor() string {
	data, _ := os.ReadFile("/proc/cpuinfo") // absent where it has another form
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.Trim(rest, " \t:\n")
		}
	}
	return ""
}

// loadAverage is how many programs wanted to run in the last minute, on average.
func loadAverage() string {
	data, err := os.ReadFile("/proc/loadavg")
	if fields := strings.Fields(string(data)); err == nil && len(fields) > 0 {
		return fields[0]
	}
	return "unknown"
}

// marks enclose a table.
func marks(name string) (begin, end string) {
	return "<!-- " + name + " -->\n", "<!-- /" + name + " -->\n"
}

// rewrite puts the text between the marks of a name in a file.
func rewrite(file, name, text string) error {
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	begin, end := marks(name)
	before, rest, ok := bytes.Cut(old, []byte(begin))
	_, after, ok2 := bytes.Cut(rest, []byte(end))
	if !ok || !ok2 {
		return fmt.Errorf("%s has no marks of %q to write between", file, name)
	}
	return os.WriteFile(file, bytes.Join([][]byte{before, []byte(begin), []byte(text), []byte(end), after}, nil), 0o644)
}
