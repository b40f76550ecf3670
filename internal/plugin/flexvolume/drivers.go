package flexvolume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"berth.io/berth/internal/plugin"
	"berth.io/berth/internal/trace"
)

// laneWidth is how many call-outs of one driver may be under way at once.
const laneWidth = 32

// driver is one loaded version of a driver; another version is another driver.
type driver struct {
	name     string
	path     string
	identity identity
	caps     Capabilities
	host     *host

	mu sync.Mutex
	// unsupported are the call-outs that it has answered "Not supported" to.
	unsupported map[callOut]bool
}

// host is what all call-outs share.
type host struct {
	limits  Limits
	journal *trace.Journal
	node    string
	seconds *prometheus.HistogramVec

	mu    sync.Mutex
	calls map[*Call]bool
	lanes map[string]chan struct{}
}

// Call is a call-out under way.
type Call struct {
	Driver, CallOut string
	// Volume is the PersistentVolume's name, or the pod's name of an inline volume.
	Volume string
	Since  time.Time
}

func newHost(o *Options) *host {
	h := &host{limits: o.Limits.withDefaults(), journal: o.Trace, node: o.Node, calls: map[*Call]bool{}, lanes: map[string]chan struct{}{},
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "flexvolume_operations_seconds",
			Help:    "Duration of call-outs to FlexVolume drivers, in seconds.",
			Buckets: []float64{.001, .005, .01, .05, .1, .25, .5, 1, 2.5, 5, 10, 15, 25, 50, 120, 300, 600},
		}, []string{"driver_name", "method_name", "status"}),
	}
	if o.Metrics != nil {
		o.Metrics.MustRegister(h.seconds)
	}
	return h
}

// underWay lists the call-outs, the oldest first.
func (h *host) underWay() []Call {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []Call
	for c := range h.calls {
		out = append(out, *c)
	}
	slices.SortFunc(out, func(a, b Call) int { return a.Since.Compare(b.Since) })
	return out
}

// enter waits for room beside the driver's other call-outs.
func (h *host) enter(ctx context.Context, driver string) (leave func(), err error) {
	h.mu.Lock()
	lane := h.lanes[driver]
	if lane == nil {
		lane = make(chan struct{}, laneWidth)
		h.lanes[driver] = lane
	}
	h.mu.Unlock()
	select {
	case lane <- struct{}{}:
		return func() { <-lane }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("FlexVolume driver %s has %d call-outs under way: %w", driver, laneWidth, ctx.Err())
	}
}

// stations are the steps of the journey that call-outs belong to.
var stations = map[callOut]trace.Step{
	callAttach: trace.Attached, callDetach: trace.Detached,
	callWaitForAttach: trace.Staged, callMountDevice: trace.Staged, callUnmountDevice: trace.Unstaged,
	callMount: trace.Published, callUnmount: trace.Unpublished, callExpandVolume: trace.Expanded, callExpandFS: trace.Expanded,
}

// supports is false once the driver has answered "Not supported".
func (d *driver) supports(c callOut) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.unsupported[c]
}

// call runs a call-out for the volume, under its deadline. boundary: held by the caller.
func (d *driver) call(ctx context.Context, of subject, call callOut, secrets redactor, args ...string) (answer, error) {
	if !d.supports(call) {
		return answer{}, errNotSupported
	}
	leave, err := d.host.enter(ctx, d.name)
	if err != nil {
		return answer{}, err
	}
	defer leave()
	c := &Call{Driver: d.name, CallOut: string(call), Volume: of.volume, Since: time.Now()}
	d.host.mu.Lock()
	d.host.calls[c] = true
	d.host.mu.Unlock()
	if station, known := stations[call]; known {
		d.host.journal.Record(trace.Entry{Step: station, State: trace.Waiting, Detail: fmt.Sprintf("%s of FlexVolume driver %s", call, d.name),
			Claim: of.claim, Pod: of.pod, Volume: of.pv, Node: d.host.node})
	}
	a, err := execute(ctx, d.name, d.path, call, d.host.limits.of(call), secrets, args)
	d.host.mu.Lock()
	delete(d.host.calls, c)
	d.host.mu.Unlock()
	d.host.seconds.WithLabelValues(d.name, string(call), statusOf(err)).Observe(time.Since(c.Since).Seconds())
	if errors.Is(err, errNotSupported) {
		d.mu.Lock()
		d.unsupported[call] = true
		d.mu.Unlock()
	}
	return a, err
}

func statusOf(err error) string {
	var failed *CallError
	var unstartedError *startError
	switch {
	case err == nil:
		return "Success"
	case errors.Is(err, errNotSupported):
		return "NotSupported"
	case errors.As(err, &unstartedError):
		return "NotStarted"
	case errors.As(err, &failed):
		return [...]string{refused: "Failure", unstarted: "NotStarted", timedOut: "DeadlineExceeded", cutOff: "Canceled", died: "Killed", rubbish: "BadAnswer", liar: "BadAnswer"}[failed.outcome]
	}
	return "Failure"
}

// subject is what a call-out is about, for the journey.
type subject struct {
	volume string // for Call
	pv     string
	claim  trace.ObjectRef
	pod    trace.ObjectRef
}

func subjectOf(v *plugin.Volume) subject {
	s := subject{volume: v.SpecName(), claim: trace.Claim(v.Claim), pod: trace.Pod(v.Pod)}
	if v.PV != nil {
		s.pv = v.PV.Name
		if s.claim.Name == "" {
			s.claim = trace.ClaimOf(v.PV)
		}
	}
	return s
}

// subjectNamed is for a volume of which only the names are left.
func subjectNamed(specName string, pod trace.ObjectRef, persistent bool) subject {
	s := subject{volume: specName, pod: pod}
	if persistent {
		s.pv = specName
	}
	return s
}

// DriverStatus is a directory of the drivers' directory.
type DriverStatus struct {
	// Name is VENDOR/DRIVER, or the directory's name where that is none.
	Name   string
	Path   string
	Loaded bool
	// Capabilities of a loaded driver, and the call-outs that it turned out not to support.
	Capabilities Capabilities
	Unsupported  []string
	// Reason why it is not loaded.
	Reason string
	Since  time.Time
}

// Drivers lists the directories, by name.
func (p *Plugin) Drivers() []DriverStatus { return p.table.status() }

// Calls lists the call-outs under way, the oldest first.
func (p *Plugin) Calls() []Call { return p.host.underWay() }

func (d *driver) unsupportedCalls() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []string
	for c := range d.unsupported {
		out = append(out, string(c))
	}
	slices.Sort(out)
	return out
}

func sortStatus(list []DriverStatus) {
	slices.SortFunc(list, func(a, b DriverStatus) int { return cmp.Compare(a.Name, b.Name) })
}
