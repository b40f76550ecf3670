package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"berth.io/berth/internal/apiclient"
	"berth.io/berth/internal/discovery/vanished"
	"berth.io/berth/internal/provision"
)

// ControllerOptions are the flags of `berth controller`.
type ControllerOptions struct {
	API         API
	Election    Election
	CSIAddress  []Address
	Controllers map[string]bool // nil: all
	Gates       map[string]bool
	Workers     int
	RPCTimeout  time.Duration
	HTTP        string // ADDR:PORT; empty: nothing is served

	ExtraCreateMetadata, ExtraModifyMetadata bool
	DefaultFSType                            string
	StrictTopology, NoImmediateTopology      bool
	ControllerPublishReadOnly                bool
	CapacityPoll                             time.Duration

	// Vanished says when local volumes of nodes that are gone are cleaned up; zero: the defaults.
	Vanished vanished.Delays

	Log     *slog.Logger
	Version string
}

// Defaults of the flags.
const (
	// DefaultWorkers are enough for 500 claims a few seconds apart, and cost some 10 MiB with four drivers.
	DefaultWorkers = 32
	// DefaultRPCTimeout as the attacher's.
	DefaultRPCTimeout = 15 * time.Second
)

// Validate looks at the flags alone; an error names the one that is wrong.
func (o *ControllerOptions) Validate() error {
	if o.Workers < 1 || o.Workers > 1000 {
		return fmt.Errorf("--worker-threads %d: want 1 to 1000", o.Workers)
	}
	if o.RPCTimeout < time.Second {
		return fmt.Errorf("--timeout %s: want a second at least", o.RPCTimeout)
	}
	if o.CapacityPoll < 0 {
		return fmt.Errorf("--capacity-poll-interval %s: want a time above zero", o.CapacityPoll)
	}
	if o.Controllers == nil {
		o.Controllers, _ = ChooseRoles(nil)
	}
	if len(o.CSIAddress) == 0 && !o.Controllers[RoleBlock] && !o.Controllers[RoleRetention] && !o.Controllers[string(provision.SnapshotController)] {
		return errors.New("--controllers without block, and no --csi-address: there is no driver to work for")
	}
	if o.Vanished.Interval == 0 {
		o.Vanished = vanished.DefaultDelays()
	}
	return errors.Join(o.Vanished.Validate(), o.API.validate(), o.Election.validate(), validEndpoint("--http-endpoint", o.HTTP))
}

// controller is the process: what it has before it holds the lease.
type controller struct {
	ControllerOptions
	log       *slog.Logger
	config    *rest.Config // fenced
	namespace string
	fence     *fence
	metrics   *prometheus.Registry
	client    kubernetes.Interface // fenced

	leads atomic.Pointer[leading] // nil: standing by
}

// RunController works until ctx ends. It returns ErrNoLease when the lease was lost: the process must end then, and whoever started it
// starts it anew.
func RunController(ctx context.Context, o ControllerOptions) error {
	if err := o.Validate(); err != nil {
		return err
	}
	if err := applyGates(o.Gates); err != nil {
		return err
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	c := &controller{ControllerOptions: o, log: o.Log, metrics: prometheus.NewRegistry()}
	var err error
	if c.namespace, err = podNamespace(); err != nil {
		return err
	}
	if c.Election.Namespace == "" {
		c.Election.Namespace = c.namespace
	}
	base, err := c.API.config(c.Workers, "berth-controller/"+o.Version, c.log)
	if err != nil {
		return err
	}
	c.fence = newFence(c.Election.fencedFor())
	c.config = wrapped(base, c.fence.Wrap)
	if c.client, err = kubernetes.NewForConfig(apiclient.Protobuf(c.config)); err != nil {
		return err
	}
	c.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "berth_controller_leader", Help: "1 while this process holds the lease and works."}, func() float64 {
			if c.leads.Load() != nil {
				return 1
			}
			return 0
		}))

	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var serving sync.WaitGroup
	e := newEndpoint(c.metrics, c.healthy, c.ready)
	e.check("/healthz/leader-election", c.healthy) // the sidecars' path
	e.json("/debug/status", func() any { return c.status() })
	e.json("/debug/lanes", func() any { return c.lanes() })
	// It answers until the work has ended.
	answering, hush := context.WithCancel(context.WithoutCancel(ctx))
	if err := e.serve(answering, c.HTTP, &serving, fail); err != nil {
		hush()
		return err
	}
	defer serving.Wait()
	defer hush()
	defer settle(c.log)() // of one that stands by; the lease brings another start
	// The lease has a client of its own: it must not wait behind the volumes' requests.
	err = lead(ctx, aside(base, 20, c.Election.RenewDeadline/2), c.Election, c.fence, c.log, c.work)
	if cause := context.Cause(ctx); err == nil && cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	return err
}

// healthy: a process that has lost its lease, and still runs, is not.
func (c *controller) healthy(context.Context) error {
	if c.leads.Load() != nil {
		return c.fence.Check()
	}
	return nil
}

// ready says whether this replica could work: it works, or stands by for the lease.
func (c *controller) ready(ctx context.Context) error {
	if l := c.leads.Load(); l != nil {
		return l.ready()
	}
	return c.healthy(ctx)
}

// ControllerStatus is what /debug/status answers.
type ControllerStatus struct {
	Leader  bool
	Drivers []provision.DriverStatus
	Running []provision.Holder
}

// lanes of all drivers; none while another process leads.
func (c *controller) lanes() []provision.Load {
	if l := c.leads.Load(); l != nil {
		return l.provision.Load()
	}
	return []provision.Load{}
}

func (c *controller) status() ControllerStatus {
	l := c.leads.Load()
	if l == nil {
		return ControllerStatus{}
	}
	return ControllerStatus{Leader: true, Drivers: l.provision.Status(), Running: l.provision.Holders()}
}
