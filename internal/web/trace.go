package web

import (
	"strconv"
	"time"

	"github.com/cofferdam/cofferdam/api"
)

// traceData is a sandbox's crossings with where their bars are drawn.
type traceData struct {
	api.Trace
	Length time.Duration
	Bars   []bar
	Marks  []mark
	Shown  int
}

// bar is one crossing, drawn from X, W wide, in thousandths of the whole.
type bar struct {
	api.TraceSpan
	X, W string
	Tone string
	At   time.Duration
}

type mark struct{ X, Text string }

// mostBars bounds one page; the audit search has the rest.
const mostBars = 500

func (p *Pages) trace(v *visit) error {
	d, err := v.load("trace")
	if err != nil {
		return err
	}
	t, err := v.ops.Trace(v.r.Context(), v.actor, d.Sandbox.ID)
	if err != nil {
		return err
	}
	d.Trace = drawTrace(t)
	return v.showSandbox(d)
}

func drawTrace(t api.Trace) *traceData {
	d := &traceData{Trace: t}
	for _, s := range t.Spans { // a crossing that has not ended reaches to the end
		if end := s.Start.Add(time.Duration(s.Millis) * time.Millisecond); end.After(d.End) {
			d.End = end
		}
		if d.Start.IsZero() || s.Start.Before(d.Start) {
			d.Start = s.Start
		}
	}
	d.Length = max(d.End.Sub(d.Start), time.Millisecond)
	for i, s := range t.Spans {
		if i == mostBars {
			break
		}
		b := bar{TraceSpan: s, At: s.Start.Sub(d.Start)}
		length := time.Duration(s.Millis) * time.Millisecond
		if s.Open {
			length, b.Tone = d.End.Sub(s.Start), "open"
		}
		if s.Verdict != "allow" {
			b.Tone = "deny"
		}
		x := 1000 * float64(b.At) / float64(d.Length)
		w := max(1000*float64(length)/float64(d.Length), 4)
		x = min(x, 1000-w)
		b.X, b.W = thousandths(x), thousandths(w)
		d.Bars = append(d.Bars, b)
	}
	d.Shown = len(d.Bars)
	for i := range 5 {
		d.Marks = append(d.Marks, mark{thousandths(float64(i) * 250), span(d.Length * time.Duration(i) / 4)})
	}
	return d
}

func thousandths(f float64) string { return strconv.FormatFloat(max(f, 0), 'f', 1, 64) }
