package server

import (
	"bytes"
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/api"
)

// The bounds of output.
const (
	outputPiece = 64 << 10 // bytes of one event
	outputMost  = 1 << 20  // bytes of one plain answer
	outputLook  = 200 * time.Millisecond
)

// output answers with what a sandbox's main command said. Nothing of it is trusted: it is data to download, never a page of ours.
func (s *Server) output(w http.ResponseWriter, r *http.Request, c *call) error {
	if err := only(r, "offset", "limit", "follow"); err != nil {
		return err
	}
	offset, err := from(r, "offset", 0)
	if err != nil {
		return err
	}
	follow := strings.HasPrefix(r.Header.Get("Accept"), "text/event-stream")
	if text := r.URL.Query().Get("follow"); text != "" {
		if follow, err = strconv.ParseBool(text); err != nil {
			return invalid("follow")
		}
	}
	if follow {
		return s.followOutput(w, r, c, offset)
	}
	limit := outputMost
	if text := r.URL.Query().Get("limit"); text != "" {
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > outputMost {
			return invalid("limit")
		}
	}
	return s.plainOutput(w, r, c, offset, limit)
}

func (s *Server) plainOutput(w http.ResponseWriter, r *http.Request, c *call, offset int64, limit int) error {
	var all bytes.Buffer
	var missed int64
	live := true
	next := offset
	for all.Len() < limit {
		data, then, skipped, lives, err := s.control.Output(r.Context(), c.actor, r.PathValue("id"), next, min(limit-all.Len(), outputPiece))
		if err != nil {
			return err
		}
		missed += skipped
		live, next = lives, then
		all.Write(data)
		if len(data) == 0 {
			break
		}
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Disposition", "attachment; filename=output")
	h.Set("Cofferdam-Next-Offset", strconv.FormatInt(next, 10))
	h.Set("Cofferdam-Skipped", strconv.FormatInt(missed, 10))
	h.Set("Cofferdam-Live", strconv.FormatBool(live))
	_, _ = newSteady(w).Write(all.Bytes()) // the client may have gone
	return nil
}

// followOutput sends output as it comes. The identifier of an event is the offset to go on from, so a browser that comes back misses nothing.
func (s *Server) followOutput(w http.ResponseWriter, r *http.Request, c *call, offset int64) error {
	data, next, skipped, live, err := s.control.Output(r.Context(), c.actor, r.PathValue("id"), offset, outputPiece)
	if err != nil {
		return err
	}
	stream, err := newEventStream(w)
	if err != nil {
		return err
	}
	beat, look := time.NewTicker(heartbeat), time.NewTicker(outputLook)
	defer beat.Stop()
	defer look.Stop()
	caller := s.lookout(c)
	for {
		if err := caller.look(); err != nil { // also while there is always more to send
			return stream.send(-1, "end", s.problem(r.Context(), err))
		}
		over := !live && len(data) == 0
		if len(data) > 0 || skipped > 0 || over {
			if err := stream.send(next, "output", api.Output{Offset: next - int64(len(data)), Skipped: skipped, Data: data, Ended: over}); err != nil || over {
				return err
			}
		}
		if len(data) == 0 {
			if done, err := s.pause(r.Context(), stream, c, beat, look); done || err != nil {
				return err
			}
		}
		if data, next, skipped, live, err = s.control.Output(r.Context(), c.actor, r.PathValue("id"), next, outputPiece); err != nil {
			return stream.send(-1, "end", s.problem(r.Context(), err))
		}
	}
}

// pause waits until it is time to look again.
func (s *Server) pause(ctx context.Context, stream *eventStream, c *call, beat, look *time.Ticker) (done bool, err error) {
	select {
	case <-ctx.Done():
		return true, nil
	case <-look.C:
		return false, nil
	case <-beat.C:
		if err := s.still(ctx, c); err != nil {
			return true, stream.send(-1, "end", s.problem(ctx, err))
		}
		return false, stream.comment("alive")
	}
}
