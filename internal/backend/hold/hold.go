// Package hold excludes operations on the same volume from each other, and can say who is in the way: the holder, the
// step that it is at, and since when.
package hold

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"berth.io/berth/internal/backend"
)

// patience is how long an operation waits for another on the same volume. Longer than any step takes that goes well, so
// that calls which meet by chance simply follow one another; short, so that a hung one is soon named.
const patience = 3 * time.Second

// Table of what is held. Its zero value is ready.
type Table struct {
	mu   sync.Mutex
	held map[string]*Hold
}

// Hold on one volume.
type Hold struct {
	table          *Table
	volume, holder string
	step           string
	since          time.Time
	released       chan struct{}
}

// Acquire waits until nobody else has volume, at most until the context ends or patience does: then it returns
// *backend.BusyError.
func (t *Table) Acquire(ctx context.Context, volume, holder string) (*Hold, error) {
	var timeout <-chan time.Time
	for {
		h, other := t.try(volume, holder)
		if h != nil {
			return h, nil
		}
		if timeout == nil {
			timer := time.NewTimer(patience)
			defer timer.Stop()
			timeout = timer.C
		}
		select {
		case <-other.released:
		case <-ctx.Done():
			return nil, t.busy(other)
		case <-timeout:
			return nil, t.busy(other)
		}
	}
}

func (t *Table) try(volume, holder string) (mine, other *Hold) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if other, ok := t.held[volume]; ok {
		return nil, other
	}
	if t.held == nil {
		t.held = map[string]*Hold{}
	}
	h := &Hold{table: t, volume: volume, holder: holder, step: "starting", since: time.Now(), released: make(chan struct{})}
	t.held[volume] = h
	return h, nil
}

func (t *Table) busy(h *Hold) *backend.BusyError {
	t.mu.Lock()
	defer t.mu.Unlock()
	return &backend.BusyError{Volume: h.volume, Holder: h.holder, Step: h.step, Since: h.since}
}

// Step says what the holder does now, and when it began.
func (h *Hold) Step(step string) {
	h.table.mu.Lock()
	h.step, h.since = step, time.Now()
	h.table.mu.Unlock()
}

// Release lets the next one have the volume.
func (h *Hold) Release() {
	h.table.mu.Lock()
	delete(h.table.held, h.volume)
	h.table.mu.Unlock()
	close(h.released)
}

// Held says whether somebody has volume at this moment.
func (t *Table) Held(volume string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.held[volume] != nil
}

// All that is held at this moment, ordered by volume.
func (t *Table) All() []backend.BusyError {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]backend.BusyError, 0, len(t.held))
	for _, h := range t.held {
		out = append(out, backend.BusyError{Volume: h.volume, Holder: h.holder, Step: h.step, Since: h.since})
	}
	slices.SortFunc(out, func(a, b backend.BusyError) int { return strings.Compare(a.Volume, b.Volume) })
	return out
}
