package try

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
)

// Everything is done, several at a time and never more, and what fails does not keep the rest from being done.
func TestEachDoesAllAndTellsEveryError(t *testing.T) {
	items := make([]int, 50)
	for i := range items {
		items[i] = i
	}
	bad := errors.New("bad")
	var done, now, most atomic.Int64
	together := make(chan struct{})
	err := each(items, func(i int) error {
		n := now.Add(1)
		defer now.Add(-1)
		for seen := most.Load(); n > seen && !most.CompareAndSwap(seen, n); seen = most.Load() {
		}
		if n == eachWorkers && done.Load() == 0 {
			close(together)
		}
		<-together
		done.Add(1)
		if i%25 == 3 {
			return fmt.Errorf("%d is %w", i, bad)
		}
		return nil
	})
	if done.Load() != 50 || most.Load() != eachWorkers {
		t.Errorf("%d of 50 were done, at most %d at a time, want %d", done.Load(), most.Load(), eachWorkers)
	}
	if !errors.Is(err, bad) || err.Error() != "3 is bad\n28 is bad" {
		t.Errorf("told: %v", err)
	}
	if err := each(nil, func(int) error { return bad }); err != nil {
		t.Errorf("of nothing: %v", err)
	}
}
