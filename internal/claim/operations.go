package claim

import (
	"context"
	"sync"
	"time"
)

// operations are the slow things done beside the workers: provision, delete, recycle. At most one runs per key, and
// one that failed runs again after a pause that doubles, whatever else happens to its object meanwhile (its own
// Failed phase comes back as an event at once).
type operations struct {
	mu    sync.Mutex
	ctx   context.Context
	wg    sync.WaitGroup
	byKey map[string]*operation
	now   func() time.Time
}

type operation struct {
	running   bool
	since     time.Time
	failures  int
	notBefore time.Time
	// missed: it was asked for while it ran, so what it read may be old.
	missed bool
}

const (
	operationFirst = 100 * time.Millisecond
	operationLast  = time.Minute
)

func newOperations(now func() time.Time) *operations {
	return &operations{byKey: map[string]*operation{}, now: now}
}

// begin sets the context under which operations run; before it none starts.
func (o *operations) begin(ctx context.Context) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ctx = ctx
}

// wait returns when the last operation has ended; none starts any more.
func (o *operations) wait() {
	o.mu.Lock()
	o.ctx = nil
	o.mu.Unlock()
	o.wg.Wait()
}

// start runs run in the background unless it runs or pauses. again is called, with the pause, when the object should
// be looked at again.
func (o *operations) start(key string, again func(after time.Duration), run func(context.Context) error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	op := o.byKey[key]
	if op == nil {
		op = &operation{}
		o.byKey[key] = op
	}
	if op.running {
		op.missed = true
		return
	}
	if o.ctx == nil || o.now().Before(op.notBefore) {
		return
	}
	op.running, op.missed, op.since = true, false, o.now()
	ctx := o.ctx
	o.wg.Go(func() {
		err := run(ctx)
		if pause, more := o.ended(key, op, err); more && ctx.Err() == nil {
			again(pause)
		}
	})
}

func (o *operations) ended(key string, op *operation, err error) (pause time.Duration, more bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	op.running = false
	if err == nil {
		if o.byKey[key] == op {
			delete(o.byKey, key)
		}
		return 0, op.missed
	}
	pause = operationLast
	if op.failures < 10 {
		pause = min(operationLast, operationFirst<<op.failures)
	}
	op.failures++
	op.notBefore = o.now().Add(pause)
	// The queue's timer and this clock may differ by a little; being woken too early would lose the retry.
	return pause + time.Millisecond, true
}

// forget drops the pause of an object that is gone; a running operation ends by itself.
func (o *operations) forget(key string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if op := o.byKey[key]; op != nil && !op.running {
		delete(o.byKey, key)
	}
}
