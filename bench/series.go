package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"
)

// series is what was measured of one subject.
type series struct {
	name   string
	values []float64
	err    error // why there is none
}

// quantile returns the value below which the share p of all lies.
func (s series) quantile(p float64) float64 {
	if len(s.values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(s.values))
	return sorted[min(len(sorted)-1, int(p*float64(len(sorted))))]
}

// median is the middle value.
func (s series) median() float64 { return s.quantile(0.5) }

// minus takes a constant off every value.
func (s series) minus(v float64) series {
	out := series{name: s.name, err: s.err}
	for _, x := range s.values {
		out.values = append(out.values, x-v)
	}
	return out
}

// subject is one thing that is compared. sample measures it once and returns one value or more.
type subject struct {
	name   string
	sample func(context.Context) ([]float64, error)
}

// takeTurns lets the subjects take turns and throws the first turn away: it fills caches. A subject that fails is out from then on.
func takeTurns(ctx context.Context, rounds int, subjects []subject) ([]series, error) {
	return turns(ctx, 1, rounds, subjects)
}

// turns is takeTurns with so many turns thrown away.
func turns(ctx context.Context, thrown, rounds int, subjects []subject) ([]series, error) {
	all := make([]series, len(subjects))
	for round := range thrown + rounds {
		for i, s := range subjects {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			all[i].name = s.name
			if all[i].err != nil {
				continue
			}
			values, err := s.sample(ctx)
			if err != nil {
				all[i] = series{name: s.name, err: err}
				continue
			}
			if round >= thrown {
				all[i].values = append(all[i].values, values...)
			}
		}
	}
	return all, nil
}

// settle drops the subjects that failed, with a line for each; ours must not.
func (b *bench) settle(all []series, err error) (ours series, others []series, _ error) {
	if err != nil {
		return series{}, nil, err
	}
	for i, s := range all {
		switch {
		case s.err != nil && i == 0:
			return series{}, nil, fmt.Errorf("%s: %w", s.name, s.err)
		case s.err != nil:
			b.skip(s.name, s.err.Error())
		case i > 0:
			others = append(others, s)
		}
	}
	return all[0], others, nil
}

// find returns the series of a name.
func find(all []series, name string) (series, bool) {
	i := slices.IndexFunc(all, func(s series) bool { return s.name == name })
	if i < 0 {
		return series{}, false
	}
	return all[i], true
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
