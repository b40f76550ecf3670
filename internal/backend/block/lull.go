package block

import (
	"sync"
	"time"
)

// lullAfter is how long no volume must have been made for a rush of them to be over.
const lullAfter = 250 * time.Millisecond

// rush tells when many volumes are made at once: work ahead of its time would take the disk and the processor from those that are
// waited for. A volume that comes alone is no rush.
type rush struct {
	mu   sync.Mutex
	last time.Time     // a volume was made
	over chan struct{} // closed when the rush is; nil while there is none
}

// made notes that a volume was made. What it returns is closed at once, or when the rush is over that this volume is part of.
func (r *rush) made() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	alone := now.Sub(r.last) >= lullAfter
	r.last = now
	if r.over != nil {
		return r.over
	}
	over := make(chan struct{})
	if alone {
		close(over)
		return over
	}
	r.over = over
	time.AfterFunc(lullAfter, r.look)
	return over
}

// look ends the rush when nothing came since, and looks again when that could be.
func (r *rush) look() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if left := lullAfter - time.Since(r.last); left > 0 {
		time.AfterFunc(left, r.look)
		return
	}
	close(r.over)
	r.over = nil
}
