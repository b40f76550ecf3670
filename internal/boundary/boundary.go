// Package boundary marks the places where a crash leaves the world half-changed.
//
// Every effect that outlives the process (a write to the API, an RPC to a driver, a kernel object made or
// removed, a file that must survive) is wrapped in Do under a name "<room>/<effect>". In production Do only calls
// the function. The kill test sets BERTH_KILL_AT to a name and a side, and the process dies there with SIGKILL, as
// if the machine had pulled its memory away; the next start must complete the journey.
//
// The set of names is derived from the source (test/boundaries parses the calls), and the same test fails when an
// effect stands outside any boundary, so no step can be added that the kill test does not know.
package boundary

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// EnvKillAt names the boundary to die at: "<room>/<effect>:before" or ":after", optionally followed by "#N" for the
// N-th crossing (1 is the first, and the default).
const EnvKillAt = "BERTH_KILL_AT"

var (
	killAt    string // "<name>:<side>", empty in production
	remaining atomic.Int64
)

func init() {
	at := os.Getenv(EnvKillAt)
	if at == "" {
		return
	}
	name, count, found := strings.Cut(at, "#")
	n := int64(1)
	if found {
		if v, err := strconv.ParseInt(count, 10, 64); err == nil && v > 0 {
			n = v
		}
	}
	killAt = name
	remaining.Store(n)
}

// Do runs effect as the boundary called name, which must be a string literal "<room>/<effect>".
func Do(name string, effect func() error) error {
	if killAt == "" {
		return effect()
	}
	cross(name + ":before")
	err := effect()
	cross(name + ":after")
	return err
}

// cross kills the process when point is the one asked for: no deferred call runs, no buffer is flushed.
func cross(point string) {
	if point != killAt || remaining.Add(-1) != 0 {
		return
	}
	fmt.Fprintf(os.Stderr, "boundary: killed at %s\n", point)
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // the signal is on its way; nothing after this point may run
}
