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
	"sync"
	"sync/atomic"
	"syscall"
)

// EnvKillAt names the boundary to die at: "<room>/<effect>:before" or ":after", optionally followed by "#N" for the
// N-th crossing (1 is the first, and the default). Several with commas between them: at the one that is crossed first.
const EnvKillAt = "BERTH_KILL_AT"

// EnvRecord names a file to which the name of each boundary is appended when it is crossed for the first time. It tells
// the kill test which boundaries a life of volumes crosses, without a death.
const EnvRecord = "BERTH_KILL_RECORD"

var (
	armed    bool                     // false in production
	killAt   map[string]*atomic.Int64 // "<name>:<side>" → crossings left
	record   string                   // the file of EnvRecord
	recorded sync.Map                 // name → true
)

func init() {
	record = os.Getenv(EnvRecord)
	armed = record != "" || os.Getenv(EnvKillAt) != ""
	killAt = map[string]*atomic.Int64{}
	for at := range strings.SplitSeq(os.Getenv(EnvKillAt), ",") {
		name, count, _ := strings.Cut(at, "#")
		n := int64(1)
		if v, err := strconv.ParseInt(count, 10, 64); err == nil && v > 0 {
			n = v
		}
		left := new(atomic.Int64)
		left.Store(n)
		killAt[name] = left
	}
}

// Do runs effect as the boundary called name, which must be a string literal "<room>/<effect>".
func Do(name string, effect func() error) error {
	if !armed {
		return effect()
	}
	note(name)
	cross(name + ":before")
	err := effect()
	cross(name + ":after")
	return err
}

// cross kills the process when point is one asked for: no deferred call runs, no buffer is flushed.
func cross(point string) {
	left, asked := killAt[point]
	if !asked || left.Add(-1) != 0 {
		return
	}
	fmt.Fprintf(os.Stderr, "boundary: killed at %s\n", point)
	if os.Getpid() == 1 { // of a process namespace of its own, where no signal of its own reaches it
		syscall.Exit(128 + int(syscall.SIGKILL))
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // the signal is on its way; nothing after this point may run
}

// note appends name to the record; one write each, so that a death in between leaves no half of a line.
func note(name string) {
	if record == "" {
		return
	}
	if _, twice := recorded.LoadOrStore(name, true); twice {
		return
	}
	f, err := os.OpenFile(record, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		fmt.Fprintln(os.Stderr, "boundary:", err)
		return
	}
	defer f.Close()
	fmt.Fprintln(f, name)
}
