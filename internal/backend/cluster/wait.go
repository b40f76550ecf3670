package cluster

import (
	"context"
	"fmt"
	"sync"
	"time"

	"berth.io/berth/internal/block/objects"
)

// signals wake those who wait for an object.
type signals struct {
	mu      sync.Mutex
	waiting map[string]map[chan struct{}]bool
}

// on returns a channel that gets something whenever key changes, until the returned function is called.
func (s *signals) on(key string) (<-chan struct{}, func()) {
	c := make(chan struct{}, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting == nil {
		s.waiting = map[string]map[chan struct{}]bool{}
	}
	if s.waiting[key] == nil {
		s.waiting[key] = map[chan struct{}]bool{}
	}
	s.waiting[key][c] = true
	return c, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if delete(s.waiting[key], c); len(s.waiting[key]) == 0 {
			delete(s.waiting, key)
		}
	}
}

func (s *signals) tell(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.waiting[key] {
		select {
		case c <- struct{}{}:
		default: // told already
		}
	}
}

// An answer leaves a moment before its caller stops listening: else the caller learns that its time is over, and not what for.
const (
	answerPart = 20 // of the time left
	answerMost = 500 * time.Millisecond
)

func before(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, deadline.Add(-min(time.Until(deadline)/answerPart, answerMost)))
}

// awayPatience is how long a caller waits for a node that is known to be away: it has many others to serve meanwhile, and asks
// again.
const awayPatience = time.Second

// await calls check now and whenever key changes, until it is done or fails. what is said of a caller whose time is over first.
func (b *Backend) await(ctx context.Context, key, node, what string, check func() (done bool, err error)) error {
	ctx, cancel := before(ctx)
	defer cancel()
	changed, stop := b.changed.on(key)
	defer stop()
	nodeChanged, stop := b.changed.on("node/" + node)
	defer stop()
	var away <-chan time.Time // while the node is away
	for {
		if done, err := check(); done || err != nil {
			return err
		}
		switch why := b.whyAway(node); {
		case why == "":
			away = nil
		case away == nil:
			away = time.After(awayPatience)
		}
		select {
		case <-changed:
		case <-nodeChanged:
		case <-away:
			if why := b.whyAway(node); why != "" {
				return &objects.AwayError{What: fmt.Sprintf("node %s to %s", node, what), Why: why}
			}
			away = nil
		case <-ctx.Done():
			return &objects.AwayError{What: fmt.Sprintf("node %s to %s", node, what), Why: b.whyAway(node), Cause: ctx.Err()}
		}
	}
}
