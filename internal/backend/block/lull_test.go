package block

import (
	"testing"
	"testing/synctest"
	"time"
)

// When the work ahead of its time may begin, by how the volumes came.
func TestRush(t *testing.T) {
	for _, c := range []struct {
		name   string
		pauses []time.Duration // before each volume
		waits  []time.Duration // of each, from its making
	}{
		{"one alone", []time.Duration{0}, []time.Duration{0}},
		{"one now and then", []time.Duration{0, lullAfter, lullAfter}, []time.Duration{0, 0, 0}},
		{"the first of a rush does not know of it", []time.Duration{0, lullAfter / 5}, []time.Duration{0, lullAfter}},
		{"all of a rush wait for its end", []time.Duration{0, lullAfter / 5, lullAfter / 5, lullAfter / 5}, []time.Duration{0, lullAfter * 7 / 5, lullAfter * 6 / 5, lullAfter}},
		{"after a rush", []time.Duration{0, lullAfter / 5, 2 * lullAfter}, []time.Duration{0, lullAfter, 0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var r rush
				waited := make([]time.Duration, len(c.pauses))
				for i, pause := range c.pauses {
					time.Sleep(pause)
					made, over := time.Now(), r.made()
					go func() { <-over; waited[i] = time.Since(made) }()
				}
				time.Sleep(4 * lullAfter)
				synctest.Wait()
				for i, want := range c.waits {
					if waited[i] != want {
						t.Errorf("volume %d waited %s, want %s", i, waited[i], want)
					}
				}
			})
		})
	}
}
