package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// watch sees how large processes become while they carry out tasks.
type watch struct {
	names []string // in the order in which they came
	idle  map[string]float64
	above map[string][]float64
}

func newWatch() *watch { return &watch{idle: map[string]float64{}, above: map[string][]float64{}} }

// over is the subject, with the process watched that does its work.
func (w *watch) over(s subject, pid int) subject {
	return subject{s.name, func(ctx context.Context) ([]float64, error) {
		// Forgets the peak so far (proc(5)). Where that is not permitted the peak is that since its start, which is no lower.
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
		if _, known := w.idle[s.name]; !known {
			mib, err := resident(pid, "VmRSS:")
			if err != nil {
				return nil, err
			}
			w.names = append(w.names, s.name)
			w.idle[s.name] = mib
		}
		values, err := s.sample(ctx)
		if err != nil {
			return nil, err
		}
		mib, err := resident(pid, "VmHWM:")
		w.above[s.name] = append(w.above[s.name], mib-w.idle[s.name])
		return values, err
	}}
}

// row compares what each grew by. Ours, the first, is to stay within limit, however much it carried.
func (w *watch) row(what string, limit float64) row {
	ours := w.names[0]
	r := row{what: what, unit: "MiB", ours: series{name: ours, values: w.above[ours]}}
	r.others = append(r.others, against(series{name: "itself, idle, whole", values: []float64{w.idle[ours]}}, atMostAlone(limit)))
	for _, name := range w.names[1:] {
		r.others = append(r.others, against(series{name: name, values: w.above[name]}, noAim()))
	}
	return r
}

// resident returns one of the sizes in a process's status, in MiB.
func resident(pid int, field string) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, field); ok {
			kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kib / 1024, err
		}
	}
	return 0, errors.New("the kernel tells no " + field)
}
