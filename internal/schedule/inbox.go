package schedule

import "sync"

// inbox carries work to the goroutine that owns the state. It is unbounded, so that an informer's handler never
// blocks: what fills it is bounded by the events of the watch and the writes under way.
type inbox struct {
	mu    sync.Mutex
	work  []func()
	ready chan struct{}
}

func newInbox() *inbox { return &inbox{ready: make(chan struct{}, 1)} }

func (i *inbox) put(f func()) {
	i.mu.Lock()
	i.work = append(i.work, f)
	i.mu.Unlock()
	select {
	case i.ready <- struct{}{}:
	default:
	}
}

// take returns all that has come in since the last call, in order.
func (i *inbox) take() []func() {
	i.mu.Lock()
	defer i.mu.Unlock()
	work := i.work
	i.work = nil
	return work
}
