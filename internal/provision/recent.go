package provision

import (
	"sync"
	"time"
)

// lagsBy is longer than an informer ever lags behind a write of this process on a healthy API.
const lagsBy = 2 * time.Second

// recent remembers what was done a moment ago. Each write of a library wakes its own queue, and the informer does not
// show the next write's outcome yet: without this, a third of all CreateVolume, DeleteVolume and
// ControllerPublishVolume were asked twice. An entry ends by itself, so nothing can be held back for good.
type recent struct {
	mu   sync.Mutex
	done map[string]time.Time
}

// mark notes that key was done, and calls again once it counts as recent no longer.
func (r *recent) mark(key string, again func()) {
	now := time.Now()
	r.mu.Lock()
	if r.done == nil {
		r.done = map[string]time.Time{}
	}
	r.done[key] = now
	r.mu.Unlock()
	time.AfterFunc(lagsBy, func() {
		r.mu.Lock()
		ours := r.done[key].Equal(now)
		if ours {
			delete(r.done, key)
		}
		r.mu.Unlock()
		if ours {
			again()
		}
	})
}

func (r *recent) is(key string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.done[key]
	return ok
}
