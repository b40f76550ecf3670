package flexvolume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"

	"berth.io/berth/internal/plugin"
)

const (
	// probesAtOnce bounds the init call-outs under way.
	probesAtOnce = 8
	// settleTime is how long a directory's events are collected: an installation makes several.
	settleTime = 50 * time.Millisecond
	// A driver whose init failed is asked again after a while, although nothing has changed: what it needs may be there by now.
	firstRetry, lastRetry = time.Second, time.Minute
	// startWithin is how long the first look at all drivers may hold up those that ask for one.
	startWithin = 15 * time.Second
)

// table holds the drivers by the name of their directory. It is filled at once and off its lock; nobody waits for another's
// driver.
type table struct {
	root string
	host *host
	log  *slog.Logger
	// tell makes an event of the node.
	tell func(kind, reason, message string)

	slots chan struct{}

	mu      sync.Mutex
	ctx     context.Context // Run's; nil before
	stopped bool
	working sync.WaitGroup
	entries map[string]*entry
	// absent is since when drivers that were asked for are not there.
	absent map[string]time.Time
	// first is closed when every driver that was there at the start has been asked.
	first  chan struct{}
	notify []func(driver string)
}

// entry is one directory.
type entry struct {
	base string
	name string
	path string
	// driver is nil when it is not loaded.
	driver *driver
	reason string
	since  time.Time
	seen   found // at the last probe
	failed bool  // init failed

	probing bool
	again   bool          // an event came meanwhile
	done    chan struct{} // closed at the end of the probe
	timer   *time.Timer   // collects events

	retryTimer *time.Timer // of a driver whose init failed
	retryDue   bool
	retries    int
}

func newTable(root string, h *host, log *slog.Logger, tell func(kind, reason, message string)) *table {
	return &table{root: root, host: h, log: log, tell: tell, slots: make(chan struct{}, probesAtOnce),
		entries: map[string]*entry{}, absent: map[string]time.Time{}, first: make(chan struct{})}
}

// start lets probes run until ctx ends; stop waits for them.
func (t *table) start(ctx context.Context) {
	t.mu.Lock()
	t.ctx = ctx
	t.mu.Unlock()
	t.scan()
	go func() {
		wait, cancel := context.WithTimeout(ctx, startWithin)
		defer cancel()
		t.settled(wait)
		close(t.first)
	}()
}

func (t *table) stop() {
	t.mu.Lock()
	t.stopped = true
	for _, e := range t.entries {
		e.stopTimers()
	}
	t.mu.Unlock()
	t.working.Wait()
}

// settled waits until no probe is under way.
func (t *table) settled(ctx context.Context) {
	for {
		var done chan struct{}
		t.mu.Lock()
		for _, e := range t.entries {
			if e.probing {
				done = e.done
			}
		}
		t.mu.Unlock()
		if done == nil {
			return
		}
		select {
		case <-done:
		case <-ctx.Done():
			return
		}
	}
}

// scan probes every directory that is there, and those that are known and gone.
func (t *table) scan() {
	names := map[string]bool{}
	list, err := os.ReadDir(t.root)
	if err != nil {
		t.log.Warn("the FlexVolume drivers' directory can't be read", "dir", t.root, "err", err)
	}
	for _, d := range list {
		names[d.Name()] = true
	}
	t.mu.Lock()
	for base := range t.entries {
		names[base] = true
	}
	t.mu.Unlock()
	for base := range names {
		t.probe(base)
	}
}

// changed probes the directory soon: what comes meanwhile is looked at together.
func (t *table) changed(base string) { t.later(base, settleTime) }

func (t *table) later(base string, after time.Duration) {
	if base == "" || base[0] == '.' {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entry(base)
	if e.timer != nil || t.stopped {
		return
	}
	e.timer = time.AfterFunc(after, func() {
		t.mu.Lock()
		e.timer = nil
		t.mu.Unlock()
		t.probe(base)
	})
}

func (t *table) entry(base string) *entry {
	e := t.entries[base]
	if e == nil {
		e = &entry{base: base}
		t.entries[base] = e
	}
	return e
}

// probe looks at the directory in a goroutine of its own; one at a time for each.
func (t *table) probe(base string) {
	if base == "" || base[0] == '.' {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.probeLocked(t.entry(base))
}

func (t *table) probeLocked(e *entry) {
	if t.stopped || t.ctx == nil {
		return
	}
	if e.probing {
		e.again = true
		return
	}
	e.probing, e.again, e.done = true, false, make(chan struct{})
	t.working.Add(1)
	ctx := t.ctx
	go func() {
		defer t.working.Done()
		select {
		case t.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		f, d, err := t.examine(ctx, e)
		<-t.slots
		t.examined(e, f, d, err)
	}()
}

// examine looks at the directory and, where the program is another one than before, runs its init. A driver that is as it was
// is returned as it is.
func (t *table) examine(ctx context.Context, e *entry) (found, *driver, error) {
	f, err := look(t.root, e.base)
	if err != nil {
		return f, nil, err
	}
	t.mu.Lock()
	have, seen, failed, due := e.driver, e.seen, e.failed, e.retryDue
	e.retryDue = false
	t.mu.Unlock()
	if have != nil && have.identity == f.identity {
		return f, have, nil
	}
	if failed && !due && seen == f { // nothing that matters has changed; a log that init wrote must not make it run again
		return f, nil, errUnchanged
	}
	d, err := t.begin(ctx, f)
	return f, d, err
}

// errUnchanged says that what was said of a directory still holds.
var errUnchanged = errors.New("unchanged")

// examined takes the outcome over, tells it, and wakes who waits for the driver.
func (t *table) examined(e *entry, f found, d *driver, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	again := false
	defer func() {
		e.probing = false
		close(e.done)
		if e.again || again {
			t.probeLocked(t.entry(e.base)) // of a directory that was forgotten this is another entry
		}
	}()
	if t.ctx.Err() != nil || errors.Is(err, errUnchanged) {
		return
	}
	if f.nothing {
		again = t.vanished(e)
		return
	}
	before, reason := e.driver, ""
	if err != nil {
		reason = err.Error()
	}
	started := f.identity != (identity{}) // so it is init that has failed
	if e.seen != f {
		e.retries = 0
	}
	e.seen, e.failed = f, err != nil && started
	e.name, e.path = f.name, f.path
	if err == nil {
		e.retries = 0
	} else if started {
		t.retry(e, err)
	}
	if before == d && e.reason == reason && !e.since.IsZero() {
		return
	}
	e.driver, e.reason = d, reason
	if before == nil || d == nil {
		e.since = time.Now()
	}
	if d == nil {
		if before != nil {
			t.wakeAfterGrace(e.name)
		}
		t.log.Warn("FlexVolume driver is not loaded", "driver", e.label(), "reason", reason)
		t.tell(v1.EventTypeWarning, "FlexVolumeDriverNotLoaded", fmt.Sprintf("FlexVolume driver %s is not loaded: %s", e.label(), reason))
		return
	}
	delete(t.absent, e.name)
	t.log.Info("FlexVolume driver is loaded", "driver", e.name, "path", d.path, "capabilities", d.caps.String(), "again", before != nil)
	verb := "is loaded"
	if before != nil {
		verb = "was replaced, and is loaded again"
	}
	t.tell(v1.EventTypeNormal, "FlexVolumeDriverLoaded", fmt.Sprintf("FlexVolume driver %s %s: %s", e.name, verb, d.caps))
	for _, f := range t.notify {
		go f(e.name)
	}
}

// retry asks a driver again whose init has failed.
func (t *table) retry(e *entry, err error) {
	after := min(firstRetry<<min(e.retries, 10), lastRetry)
	if beingWritten(err) {
		after = settleTime
	} else {
		e.retries++
	}
	if t.stopped {
		return
	}
	if e.retryTimer != nil {
		e.retryTimer.Stop()
	}
	e.retryTimer = time.AfterFunc(after, func() {
		t.mu.Lock()
		e.retryDue = true
		t.mu.Unlock()
		t.probe(e.base)
	})
}

func (e *entry) stopTimers() {
	for _, timer := range []*time.Timer{e.timer, e.retryTimer} {
		if timer != nil {
			timer.Stop()
		}
	}
}

// vanished forgets a directory. again: an event of it has come since the look, so it may be there by now; the timer that would have
// looked belongs to the entry that is forgotten.
func (t *table) vanished(e *entry) (again bool) {
	delete(t.entries, e.base)
	again = e.timer != nil && e.timer.Stop()
	e.stopTimers()
	if e.name == "" {
		return again
	}
	t.absent[e.name] = time.Now()
	if e.driver == nil {
		return again
	}
	e.driver = nil
	t.wakeAfterGrace(e.name)
	t.log.Warn("FlexVolume driver was removed", "driver", e.name, "dir", t.root)
	t.tell(v1.EventTypeWarning, "FlexVolumeDriverRemoved", fmt.Sprintf("FlexVolume driver %s was removed from %s", e.name, t.root))
	return again
}

// wakeAfterGrace lets those look again who have volumes of a driver that is gone: then they may be unmounted without it.
func (t *table) wakeAfterGrace(name string) {
	time.AfterFunc(driverGrace+10*time.Millisecond, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.stopped {
			return
		}
		for _, f := range t.notify {
			go f(name)
		}
	})
}

// label is for messages about a directory that may be no driver.
func (e *entry) label() string {
	if e.name != "" {
		return e.name
	}
	return fmt.Sprintf("in directory %q", oneLine(e.base, 100))
}

// MissingError says that a driver is not there or not loaded. It is plugin.ErrDriverMissing, and plugin.ErrDriverStarting until
// every driver has been asked after the start.
type MissingError struct {
	Driver, Reason string
	// Since when it is missed.
	Since    time.Time
	Starting bool
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("FlexVolume driver %s %s", e.Driver, e.Reason)
}

// Is as the type says.
func (e *MissingError) Is(target error) bool {
	return target == plugin.ErrDriverMissing || target == plugin.ErrDriverStarting && e.Starting
}

// peek returns a loaded driver without waiting for anything.
func (t *table) peek(name string) (*driver, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entries[plugin.EscapeName(name)]
	if e != nil && e.driver != nil {
		return e.driver, nil
	}
	missing := &MissingError{Driver: name, Since: time.Now()}
	first := false
	select {
	case <-t.first:
	default:
		first = true
	}
	if first || e != nil && e.probing && e.since.IsZero() {
		missing.Starting, missing.Reason = true, "is being asked what it can do"
		return nil, missing
	}
	if e != nil && e.reason != "" {
		missing.Since, missing.Reason = e.since, "is not loaded: "+e.reason
		return nil, missing
	}
	if since, known := t.absent[name]; known {
		missing.Since = since
	} else {
		t.absent[name] = missing.Since
	}
	missing.Reason = fmt.Sprintf("is not installed: there is no %s in %s", plugin.EscapeName(name)+"/"+name[strings.LastIndexByte(name, '/')+1:], t.root)
	if have := t.loaded(); len(have) > 0 {
		missing.Reason += " (there are " + strings.Join(have, ", ") + ")"
	}
	return nil, missing
}

// loaded names some of the loaded drivers.
func (t *table) loaded() []string {
	var have []string
	for _, e := range t.entries {
		if e.driver != nil {
			have = append(have, e.name)
		}
	}
	slices.Sort(have)
	if len(have) > 5 {
		have = append(have[:5], fmt.Sprintf("%d more", len(have)-5))
	}
	return have
}

// get returns the driver as it is in its directory now. One that has changed is asked to init first, which the caller waits for.
//
// Between this look and the start of the program are microseconds in which it may be taken away or replaced. Neither matters: a program that
// is gone is not started, which changes nothing and is tried again (plugin.ErrUncertain is not it); of one that is replaced the new version
// does the call, whole, as a kubelet would have it, and its event has it asked to init before the next.
func (t *table) get(ctx context.Context, name string) (*driver, error) {
	if err := checkDriver(name); err != nil {
		return nil, err
	}
	base := plugin.EscapeName(name)
	if d, err := t.peek(name); err == nil {
		if now, err := identify(d.path); err == nil && now == d.identity {
			return d, nil
		}
		t.probe(base)
	} else if _, statErr := os.Lstat(t.root + "/" + base); statErr == nil && t.unknown(base) {
		t.probe(base) // its event is on its way
	}
	t.mu.Lock()
	var done chan struct{}
	if e := t.entries[base]; e != nil && e.probing {
		done = e.done
	}
	t.mu.Unlock()
	if done != nil {
		select {
		case <-done:
		case <-ctx.Done():
			return nil, fmt.Errorf("FlexVolume driver %s is asked to init: %w", name, ctx.Err())
		}
	}
	return t.peek(name)
}

func (t *table) unknown(base string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.entries[base] == nil
}

func (t *table) status() []DriverStatus {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []DriverStatus
	for _, e := range t.entries {
		if e.since.IsZero() {
			continue // not looked at yet
		}
		s := DriverStatus{Name: e.name, Path: e.path, Reason: e.reason, Since: e.since}
		if s.Name == "" {
			s.Name = oneLine(e.base, 100)
		}
		if d := e.driver; d != nil {
			s.Loaded, s.Capabilities, s.Unsupported = true, d.caps, d.unsupportedCalls()
		}
		out = append(out, s)
	}
	sortStatus(out)
	return out
}

// onLoaded has f called, in a goroutine of its own, after a driver was loaded, and when one that is gone is given up.
func (t *table) onLoaded(f func(driver string)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.notify = append(t.notify, f)
}
