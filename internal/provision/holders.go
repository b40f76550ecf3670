package provision

import (
	"sort"
	"sync"
	"time"
)

// Holder is an RPC that runs now: who holds what, which step it is, since when.
type Holder struct {
	Driver string
	Step   string // the RPC, such as "CreateVolume"
	Volume string // the volume's name or handle
	Since  time.Time
}

type holders struct {
	mu   sync.Mutex
	next uint64
	now  map[uint64]Holder
}

func (h *holders) begin(driver, step, volume string) (done func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.now == nil {
		h.now = map[uint64]Holder{}
	}
	h.next++
	id := h.next
	h.now[id] = Holder{Driver: driver, Step: step, Volume: volume, Since: time.Now()}
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.now, id)
	}
}

// list returns the running RPCs, the oldest first.
func (h *holders) list() []Holder {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]Holder, 0, len(h.now))
	for _, v := range h.now {
		out = append(out, v)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Since.Before(out[j].Since) })
	return out
}
