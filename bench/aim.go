package main

import "fmt"

// aim judges. text is what is wanted; measure and met say what came of it.
type aim struct {
	text  string
	judge func(ours, other series) (measure string, met bool)
}

func ratio(ours, other series) float64 { return ours.median() / other.median() }

// atMost wants the median of ours to be at most so many times the other's.
func atMost(factor float64) aim {
	return aim{fmt.Sprintf("≤ %g ×", factor), func(ours, other series) (string, bool) {
		r := ratio(ours, other)
		return fmt.Sprintf("%.2f ×", r), r <= factor
	}}
}

// atLeast wants the median of ours to be at least so many times the other's.
func atLeast(factor float64) aim {
	return aim{fmt.Sprintf("≥ %g ×", factor), func(ours, other series) (string, bool) {
		r := ratio(ours, other)
		return fmt.Sprintf("%.2f ×", r), r >= factor
	}}
}

// atMostMore wants the median of ours to be at most so much above the other's.
func atMostMore(more float64) aim {
	return aim{fmt.Sprintf("≤ %g more", more), func(ours, other series) (string, bool) {
		d := ours.median() - other.median()
		return fmt.Sprintf("%+.1f", d), d <= more
	}}
}

// belowBoth wants median and 99th percentile of ours below the other's.
func belowBoth() aim {
	return aim{"p50 and p99 below", func(ours, other series) (string, bool) {
		slow := ours.quantile(0.99) / other.quantile(0.99)
		return fmt.Sprintf("%.2f × and %.2f ×", ratio(ours, other), slow), ours.median() < other.median() && slow < 1
	}}
}

// atMostBoth wants median and 99th percentile of ours to be at most so many times the other's.
func atMostBoth(factor float64) aim {
	return aim{fmt.Sprintf("p50 and p99 ≤ %g ×", factor), func(ours, other series) (string, bool) {
		middle, slow := ratio(ours, other), ours.quantile(0.99)/other.quantile(0.99)
		return fmt.Sprintf("%.2f × and %.2f ×", middle, slow), middle <= factor && slow <= factor
	}}
}

// atMostAlone wants the median of ours to be at most limit, whatever the other's.
func atMostAlone(limit float64) aim {
	return aim{"p50 ≤ " + figure(limit), func(ours, other series) (string, bool) {
		return fmt.Sprintf("%.2f ×", ratio(ours, other)), ours.median() <= limit
	}}
}

// noAim only tells.
func noAim() aim {
	return aim{"", func(ours, other series) (string, bool) { return fmt.Sprintf("%.2f ×", ratio(ours, other)), true }}
}

// aimAdded wants the median of ours to be at most limit by itself.
func aimAdded(limit float64) aim {
	return aim{"≤ " + figure(limit) + " added at p50", func(ours, _ series) (string, bool) { return "+" + figure(ours.median()), ours.median() <= limit }}
}

// onlyAdded only tells how much the median of ours is above the other's.
func onlyAdded() aim {
	return aim{"", func(ours, other series) (string, bool) {
		return fmt.Sprintf("%+.1f", ours.median()-other.median()), true
	}}
}
