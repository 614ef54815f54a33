package server

import (
	"context"
	"net/http"
	"time"

	"github.com/cofferdam/cofferdam/api"
)

// events tells what happens in the tenant until the client goes, or the caller is no longer who they were when they came.
func (s *Server) events(w http.ResponseWriter, r *http.Request, c *call) error {
	if err := only(r, "after"); err != nil {
		return err
	}
	after, err := from(r, "after", -1)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	news := make(chan api.Event)
	ended := make(chan error, 1)
	go func() {
		ended <- s.control.Events(ctx, c.actor, after, func(e api.Event) error {
			select {
			case news <- e:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	err = s.tell(ctx, w, c, news, ended)
	cancel()
	<-ended
	return err
}

// tell writes events as they come, and a sign of life when none do. A refusal before the first is an ordinary answer.
func (s *Server) tell(ctx context.Context, w http.ResponseWriter, c *call, news <-chan api.Event, ended chan error) error {
	select { // an operation that refuses does so at once
	case err := <-ended:
		ended <- err
		return err
	case <-time.After(20 * time.Millisecond):
	case <-ctx.Done():
		return nil
	}
	stream, err := newEventStream(w)
	if err != nil {
		return err
	}
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	looked := time.Now()
	for {
		select {
		case e := <-news:
			// Who was signed out hears no more. Not for each event: there may be many, and each look asks the store.
			if time.Since(looked) > time.Second {
				if err := s.still(ctx, c); err != nil {
					return stream.send(-1, "end", s.problem(ctx, err))
				}
				looked = time.Now()
			}
			if err := stream.send(e.ID, "", e); err != nil {
				return err
			}
		case <-beat.C:
			if err := s.still(ctx, c); err != nil {
				return stream.send(-1, "end", s.problem(ctx, err))
			}
			if err := stream.comment("alive"); err != nil {
				return err
			}
		case err := <-ended:
			ended <- err
			return err
		case <-ctx.Done():
			return nil
		}
	}
}
