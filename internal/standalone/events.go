package standalone

import (
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/record"
)

const (
	// eventsAfter gathers the events of a moment. A journey makes some five, and each on its own is a commit of etcd that
	// stands between the writes that a pod waits for; together they are one or two, afterwards.
	eventsAfter = 150 * time.Millisecond
	// eventsAtOnce are written beside each other, so that etcd commits them together.
	eventsAtOnce = 8
	// eventsKept bounds the memory while the API does not answer; the newest are dropped, as the recorder does.
	eventsKept = 4096
)

// eventBatches is an event sink that writes a little later. A process that is killed loses the events of that moment,
// which are for people and expire anyhow; the journal has the journey.
type eventBatches struct {
	record.EventSink
	log *slog.Logger

	mu      sync.Mutex
	order   []string                  // of pending
	pending map[string][]func() error // by event: what follows on one event stays in its order
	timer   *time.Timer
	closed  bool
	busy    sync.Mutex // held by the flush that runs
}

func newEventBatches(to record.EventSink, log *slog.Logger) *eventBatches {
	return &eventBatches{EventSink: to, log: log, pending: map[string][]func() error{}}
}

// Create and the others answer at once, as if the event were written.
func (b *eventBatches) Create(e *corev1.Event) (*corev1.Event, error) {
	b.later(e, func() error { _, err := b.EventSink.Create(e); return err })
	return e, nil
}

func (b *eventBatches) Update(e *corev1.Event) (*corev1.Event, error) {
	b.later(e, func() error { _, err := b.EventSink.Update(e); return err })
	return e, nil
}

// Patch counts an event up. One that has expired meanwhile is written anew, as the recorder would.
func (b *eventBatches) Patch(e *corev1.Event, data []byte) (*corev1.Event, error) {
	b.later(e, func() error {
		_, err := b.EventSink.Patch(e, data)
		if apierrors.IsNotFound(err) {
			again := e.DeepCopy()
			again.ResourceVersion = ""
			_, err = b.EventSink.Create(again)
		}
		return err
	})
	return e, nil
}

func (b *eventBatches) later(e *corev1.Event, write func() error) {
	key := e.Namespace + "/" + e.Name
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || len(b.order) >= eventsKept {
		return
	}
	if b.pending[key] == nil {
		b.order = append(b.order, key)
	}
	b.pending[key] = append(b.pending[key], write)
	if b.timer == nil {
		b.timer = time.AfterFunc(eventsAfter, b.flush)
	}
}

// flush writes what is pending.
func (b *eventBatches) flush() {
	b.busy.Lock()
	defer b.busy.Unlock()
	b.mu.Lock()
	order, pending := b.order, b.pending
	b.order, b.pending, b.timer = nil, map[string][]func() error{}, nil
	b.mu.Unlock()
	slots := make(chan struct{}, eventsAtOnce)
	var all sync.WaitGroup
	for _, key := range order {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			for _, write := range pending[key] {
				// Not tried again: an object's namespace may be going, and the API is this machine's own.
				if err := write(); err != nil {
					b.log.Debug("event not written", "event", key, "error", err)
				}
			}
		})
	}
	all.Wait()
}

// close writes what is still pending, as far as patience allows, and takes no more.
func (b *eventBatches) close(patience time.Duration) {
	b.mu.Lock()
	b.closed = true
	if b.timer != nil {
		b.timer.Stop()
	}
	b.mu.Unlock()
	done := make(chan struct{})
	go func() { b.flush(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
	}
}
