package hold

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"berth.io/berth/internal/backend"
)

// The second comer waits for the first; one that waits too long is told who is in the way.
func TestHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var table Table
		first, err := table.Acquire(t.Context(), "v", "NodeStageVolume")
		if err != nil {
			t.Fatal(err)
		}
		first.Step("making ext4")
		began := time.Now()
		if other, err := table.Acquire(t.Context(), "w", "x"); err != nil {
			t.Error(err)
		} else {
			other.Release()
		}
		_, err = table.Acquire(t.Context(), "v", "DeleteVolume")
		var busy *backend.BusyError
		if !errors.As(err, &busy) || busy.Holder != "NodeStageVolume" || busy.Step != "making ext4" || time.Since(began) != patience {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := table.Acquire(short, "v", "DeleteVolume"); !errors.As(err, &busy) {
			t.Error(err)
		}
		go func() {
			time.Sleep(time.Second)
			first.Release()
		}()
		second, err := table.Acquire(t.Context(), "v", "DeleteVolume")
		if err != nil {
			t.Fatal(err)
		}
		if all := table.All(); len(all) != 1 || all[0].Holder != "DeleteVolume" {
			t.Errorf("%v", all)
		}
		second.Release()
	})
}
