package cluster

import (
	"log/slog"
	"time"

	"berth.io/berth/internal/host/resident"
)

// settled is when a start is over, first in a small cluster, then in one of ten thousand volumes.
var settled = []time.Duration{15 * time.Second, 2 * time.Minute}

// settle gives back to the kernel, when a start is over, what only the start needed: more than half of an idle process's memory. stop is
// for when the work ends before.
func settle(log *slog.Logger) (stop func()) {
	var timers []*time.Timer
	for _, after := range settled {
		timers = append(timers, time.AfterFunc(after, func() {
			if err := resident.Trim(); err != nil {
				log.Warn("the memory of the start is not given back", "err", err)
			}
		}))
	}
	return func() {
		for _, t := range timers {
			t.Stop()
		}
	}
}
