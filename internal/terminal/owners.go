package terminal

import (
	"context"
	"sync"

	"github.com/cofferdam/cofferdam/internal/frame"
)

// maxQueries bounds the questions to the runner that wait for an answer.
const maxQueries = 64

// owners are the questions to a runner, which process inside owns a socket. Its zero value is ready. It is safe for concurrent use.
type owners struct {
	mu      sync.Mutex
	last    uint32
	queries map[uint32]chan frame.Owner
}

// ask returns the zero Owner when ctx ends first, the link is over, or too many questions wait.
func (o *owners) ask(ctx context.Context, link *frame.Link, over <-chan struct{}, q frame.Query) frame.Owner {
	answer := make(chan frame.Owner, 1)
	o.mu.Lock()
	if len(o.queries) >= maxQueries {
		o.mu.Unlock()
		return frame.Owner{}
	}
	if o.queries == nil {
		o.queries = make(map[uint32]chan frame.Owner)
	}
	o.last++
	id := o.last
	o.queries[id] = answer
	o.mu.Unlock()
	defer func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.queries, id)
	}()
	asked := q.ID
	q.ID = id
	if link.SendQuery(q) != nil {
		return frame.Owner{}
	}
	select {
	case found := <-answer:
		found.ID = asked
		return found
	case <-over:
	case <-ctx.Done():
	}
	return frame.Owner{}
}

// answered hands an answer to who waits for it; one that comes too late or was never asked for is dropped.
func (o *owners) answered(found frame.Owner) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if answer := o.queries[found.ID]; answer != nil {
		delete(o.queries, found.ID)
		answer <- found
	}
	return nil
}
