package provision

import (
	"context"
	"sync"
	"time"

	"k8s.io/client-go/util/workqueue"
)

// backoff for retries of the libraries and of our own: the first attempt is never delayed, the second hardly.
func retries() workqueue.TypedRateLimiter[string] {
	return workqueue.NewTypedItemExponentialFailureRateLimiter[string](20*time.Millisecond, time.Minute)
}

func newQueue(name string) workqueue.TypedRateLimitingInterface[string] {
	return workqueue.NewTypedRateLimitingQueueWithConfig(retries(), workqueue.TypedRateLimitingQueueConfig[string]{Name: name})
}

// work runs workers on the queue until ctx ends, and returns when they have.
func work(ctx context.Context, q workqueue.TypedRateLimitingInterface[string], workers int, do func(context.Context, string) error) {
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for {
				key, stop := q.Get()
				if stop {
					return
				}
				if err := do(ctx, key); err != nil {
					q.AddRateLimited(key)
				} else {
					q.Forget(key)
				}
				q.Done(key)
			}
		})
	}
	<-ctx.Done()
	q.ShutDown()
	wg.Wait()
}
