package control

import (
	"context"

	"github.com/cofferdam/cofferdam/internal/sandbox"
)

// sweepMarks removes the marks by which sandboxes were known as alive that have ended: a keeper has no right to when it ends. One whose processes died without
// a word, which nobody has buried yet, is cleaned up after.
func (s *Service) sweepMarks(ctx context.Context) error {
	records, err := sandbox.OpenStore(s.State)
	if err != nil {
		return err
	}
	dead, err := records.Settle()
	for _, d := range dead {
		d.Release()
	}
	if err != nil || len(dead) == 0 {
		return err
	}
	return s.gc(ctx)
}
