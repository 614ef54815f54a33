package main

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/pflag"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// limitFlags are the limits of a run as typed, by name; those that were not typed are empty.
type limitFlags struct {
	texts   map[string]*string
	scratch string
}

// limitHelp says what each limit is, in the order of the help.
func limitHelp() [][2]string {
	return [][2]string{
		{"timeout", "end it after `DURATION`, such as 30m"},
		{"cpus", "use at most `N` processors, such as 1.5"},
		{"memory", "use at most `SIZE` of memory, such as 2g; scratch files are part of it unless they are encrypted"},
		{"pids", "at most `N` processes and threads"},
		{"open-files", "at most `N` open files in one process"},
		{"disk", "at most `SIZE` of scratch files"},
		{"files", "at most `N` scratch files"},
		{"connections", "at most `N` connections open at once"},
		{"bandwidth", "at most `SIZE` a second through the gateway, in both directions together, such as 10m"},
		{"output", "at most `SIZE` of output, such as 64m; what is more ends the sandbox"},
	}
}

func (l *limitFlags) register(flags *pflag.FlagSet) {
	l.texts = map[string]*string{}
	for _, one := range limitHelp() {
		l.texts[one[0]] = flags.String(one[0], "", one[1])
	}
	flags.StringVar(&l.scratch, "scratch", "", "where scratch files lie, a `KIND`: memory (default), or encrypted, on the disk under a key that is wiped at the end")
}

// given lists the flags that were typed.
func (l *limitFlags) given() []string {
	var names []string
	for _, one := range limitHelp() {
		if text := l.texts[one[0]]; text != nil && *text != "" {
			names = append(names, one[0])
		}
	}
	if l.scratch != "" {
		names = append(names, "scratch")
	}
	return names
}

// resources parses the limits.
func (f *runFlags) resources() (r policy.Resources, err error) {
	for name, text := range f.limits.texts {
		if *text == "" {
			continue
		}
		if err := r.ParseLimit(name, *text); err != nil {
			return r, flagError(name, err)
		}
	}
	if f.limits.scratch != "" {
		if r.Scratch, err = policy.ParseScratch(f.limits.scratch); err != nil {
			return r, flagError("scratch", err)
		}
	}
	for _, name := range f.bestEffort {
		if !slices.Contains(dispensable(), name) {
			return r, fault.New(fault.Invalid, "--best-effort %.20q: no such thing", name).WithHint("write one of: %s; all else holds or the run does not start", strings.Join(dispensable(), ", "))
		}
	}
	return r, nil
}

// limit puts the limits into the specification.
func (e *execution) limit(spec *call.Create) error {
	asked, r := e.settled.asked, e.settled.asked.OrDefaults()
	if asked.Memory == 0 { // our default, not the person's wish: go without it where it cannot be had, and say so
		spec.BestEffort = append(spec.BestEffort, "memory")
	}
	spec.Scratch = r.Scratch.String()
	if r.Scratch == policy.ScratchEncrypted {
		spec.ScratchDir = e.store.Dir(e.id)
	} else {
		if asked.Disk > 0 && asked.Memory > 0 && asked.Disk > asked.Memory {
			return fault.New(fault.Invalid, "--disk %s is more than --memory %s, and scratch files are memory", policy.FormatSize(asked.Disk), policy.FormatSize(asked.Memory)).
				WithHint("raise --memory, lower --disk, or have scratch on the disk: --scratch encrypted")
		}
		if asked.Disk == 0 && r.Memory > 0 { // beyond the limit it must say "no space", not have a process killed
			r.Disk = min(r.Disk, r.Memory-r.Memory/8)
		}
	}
	if err := e.keepsake.fit(asked, &r); err != nil {
		return err
	}
	e.bounds = call.Limits{MilliCPUs: r.MilliCPUs, Memory: r.Memory, PIDs: r.PIDs, OpenFiles: r.OpenFiles, Disk: r.Disk, Files: r.ScratchFiles()}
	spec.Limits = e.bounds
	e.output.most, e.output.end = r.Output, func() { e.kill(outputOver) }
	return nil
}

// outputMeter counts the command's output, and ends the sandbox when there is too much.
type outputMeter struct {
	most int64 // bytes; 0 for no bound
	used atomic.Int64
	end  func()
}

// take says how many of n more bytes may be passed on.
func (m *outputMeter) take(n int) int {
	if m.most == 0 {
		return n
	}
	after := m.used.Add(int64(n))
	if after <= m.most {
		return n
	}
	if after-int64(n) <= m.most { // the first that does not fit
		m.end()
	}
	return max(0, n-int(min(int64(n), after-m.most)))
}

// outputOver is why a sandbox ended that said too much.
const outputOver = "output limit reached"

// metLimit is a limit that a run met.
type metLimit struct {
	flag string // by which it is raised
	what string // happened, in words
}

func (m metLimit) sentence() string { return m.what + "; to raise it: --" + m.flag }

// flagsOf names limits for the record.
func flagsOf(met []metLimit) string {
	var flags []string
	for _, m := range met {
		flags = append(flags, m.flag)
	}
	if len(flags) == 0 {
		return ""
	}
	return "; limits met: " + strings.Join(flags, ", ")
}

// met says which limits the run met, as far as that can be seen from outside.
func (e *execution) met() []metLimit {
	r, hits := e.settled.asked.OrDefaults(), e.ended.Hits
	var said []metLimit
	tell := func(flag, format string, args ...any) {
		said = append(said, metLimit{flag, fmt.Sprintf(format, args...)})
	}
	if hits.CPU >= worthTelling {
		tell("cpus", "the sandbox was kept from running for %s by its limit of %s", seconds(hits.CPU), plural1(r.FormatLimit("cpus"), "processor", "processors"))
	}
	if n := e.ended.OutOfMemory; n > 0 {
		tell("memory", "the memory limit of %s was reached, and %s killed", r.FormatLimit("memory"), plural(n, "process was", "processes were"))
	}
	if hits.PIDs > 0 {
		tell("pids", "the limit of %s processes and threads was reached, and more could not be started", r.FormatLimit("pids"))
	}
	if hits.Disk {
		tell("disk", "scratch was full at the end: it holds %s", policy.FormatSize(e.bounds.Disk))
	}
	if hits.Files {
		tell("files", "scratch had no room for another file at the end: it holds %d", e.bounds.Files)
	}
	if e.gateway != nil {
		stats := e.gateway.Stats()
		if stats.Refused > 0 {
			tell("connections", "%s refused, because %s were open at once", plural(int(stats.Refused), "connection was", "connections were"), r.FormatLimit("connections"))
		}
		if stats.Held >= worthTelling {
			tell("bandwidth", "traffic was held back for %s by the limit of %s a second", seconds(stats.Held), r.FormatLimit("bandwidth"))
		}
	}
	if e.why() == outputOver {
		tell("output", "the output was more than %s, so the sandbox was ended", r.FormatLimit("output"))
	}
	if r.Timeout > 0 && strings.HasPrefix(e.why(), "timeout") {
		tell("timeout", "the time of %s was over, so the sandbox was ended", r.FormatLimit("timeout"))
	}
	return said
}

// worthTelling is from when on it is told that a sandbox was slowed down.
const worthTelling = 100 * time.Millisecond

func seconds(d time.Duration) string { return d.Round(100 * time.Millisecond).String() }

// plural1 is plural for a number that is written already.
func plural1(n, one, many string) string {
	if n == "1" {
		return n + " " + one
	}
	return n + " " + many
}
