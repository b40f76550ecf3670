//go:build component

package cluster_test

import (
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/block/objects"
)

// Many at once: what a volume costs in writes to the API, and how many are made and deleted in a second.
func TestManyAtOnce(t *testing.T) {
	w := startWorld(t)
	count := &counted{all: map[string]int{}}
	config := rest.CopyConfig(w.config)
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { count.next = next; return count })
	var err error
	if w.objects, err = objects.NewClient(config); err != nil {
		t.Fatal(err)
	}
	s := w.serve(t, nodeA, newDir(t), 20<<30)
	b := w.control(t)
	offers(t, b, nodeA)
	const volumes, workers = 500, 16
	each := func(what string, f func(i int) error) time.Duration {
		t.Helper()
		began := time.Now()
		todo := make(chan int)
		var running sync.WaitGroup
		for range workers {
			running.Go(func() {
				for i := range todo {
					if err := f(i); err != nil {
						t.Errorf("%s %d: %v", what, i, err)
					}
				}
			})
		}
		for i := range volumes {
			todo <- i
		}
		close(todo)
		running.Wait()
		took := time.Since(began)
		t.Logf("%d volumes, %s: %.1f/s", volumes, what, volumes/took.Seconds())
		return took
	}
	ctx := within(t, 5*time.Minute)
	before := count.snapshot()
	r := func(i int) backend.CreateRequest {
		return backend.CreateRequest{Name: fmt.Sprint("v", i), RequiredBytes: 16 * mib}
	}
	took := each("made", func(i int) error { _, err := b.Create(ctx, r(i)); return err })
	after := count.snapshot()
	if n := after[http.MethodPost] - before[http.MethodPost]; n != volumes {
		t.Errorf("%d objects written for %d volumes", n, volumes)
	}
	pools := int(took/time.Second) + 2 // the BlockPool, once a second
	if n := after[http.MethodPatch] - before[http.MethodPatch]; n > volumes+pools {
		t.Errorf("%d writes of status for %d volumes and a pool", n, volumes)
	}
	if n := after[http.MethodGet] - before[http.MethodGet]; n > 10 {
		t.Errorf("%d reads while %d volumes were made", n, volumes)
	}
	if have := len(s.pool.List()); have != volumes {
		t.Errorf("%d volumes in the pool", have)
	}
	each("attached", func(i int) error { return b.Attach(ctx, backend.VolumeID(fmt.Sprint("v", i)), nodeA, false) })
	each("detached", func(i int) error { return b.Detach(ctx, backend.VolumeID(fmt.Sprint("v", i)), nodeA) })
	each("deleted", func(i int) error { return b.Delete(ctx, backend.VolumeID(fmt.Sprint("v", i))) })
	if left := s.pool.List(); len(left) > 0 {
		t.Errorf("left: %d", len(left))
	}
}

func (c *counted) snapshot() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]int{}
	for k, v := range c.all {
		out[k] = v
	}
	return out
}
