package main

import (
	"context"
	"fmt"
)

// bulkRows moves one large body after the other through what inspects, and says how much larger that became than it was idle.
func bulkRows(ctx context.Context, b *bench) ([]row, error) {
	i, err := b.inspect(ctx, nil, nil)
	if err != nil {
		return nil, err
	}
	defer i.stop()
	for _, protocol := range []string{http1, http2} { // whatever is made once is there before anything is called idle
		if _, err := takeTurns(ctx, 1, i.subjects(task{Do: "ask", Protocol: protocol, Count: 1})); err != nil {
			return nil, err
		}
	}
	turns := max(1, min(int(2/b.volume), 3))
	var rates, growths []row
	for _, protocol := range []string{http1, http2} {
		w := newWatch()
		for _, way := range []struct {
			name string
			down bool
		}{{"down", true}, {"up", false}} {
			subjects := i.subjects(task{Do: "bulk", Protocol: protocol, Down: way.down, Count: int64(b.volume * (1 << 30))})
			for k, s := range subjects {
				if pid, ok := i.inspects(s.name); ok {
					subjects[k] = w.over(s, pid)
				}
			}
			mine, others, err := b.settle(takeTurns(ctx, turns, subjects))
			if err != nil {
				return nil, err
			}
			r := row{what: fmt.Sprintf("inspected body of %g GiB, %s, %s", b.volume, spoken(protocol), way.name), unit: "GB/s", higher: true, ours: mine}
			for _, o := range others {
				r.others = append(r.others, against(o, noAim()))
			}
			rates = append(rates, r)
		}
		growths = append(growths, w.row("memory above idle, peak during those in "+spoken(protocol), 16))
	}
	return append(rates, growths...), nil
}
