package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"

	"berth.io/berth/internal/mount"
	"berth.io/berth/internal/trace"
)

// Options is what an Agent needs. Client, Informers, Mount, Drivers, DataDir and Node must be set.
type Options struct {
	Client    kubernetes.Interface
	Informers informers.SharedInformerFactory
	// Mount is the node's volume manager; its OnChange must call Agent.PodChanged.
	Mount Mounts
	// Drivers is the table of CSI drivers that registration fills.
	Drivers Drivers
	// Volumes follows the objects that pod volumes show; may be nil.
	Volumes Volumes
	// OnDriver is called when a driver has registered (up) or gone, from any goroutine; may be nil.
	OnDriver func(name, endpoint string, up bool)
	DataDir  string
	// Node is this node's name; it is lowercased.
	Node    string
	Events  record.EventRecorder
	Trace   *trace.Journal
	Log     *slog.Logger
	Metrics prometheus.Registerer
	// Version of this program, for node.status.nodeInfo.
	Version string
	// AttachOnNode: the node attaches by itself, so the attach room must leave it alone
	// (--enable-controller-attach-detach=false).
	AttachOnNode bool
}

// Mounts is the part of mount.Manager that the agent uses.
type Mounts interface {
	SetPod(pod *v1.Pod)
	ReleasePod(uid types.UID)
	PodsComplete()
	Status(uid types.UID) mount.PodStatus
	Refresh(podUID types.UID, volumeName string)
	VolumesInUse() []v1.UniqueVolumeName
}

// Drivers is the table of CSI drivers (csi.Drivers).
type Drivers interface {
	Register(name, endpoint string, versions ...string) error
	Unregister(name string)
}

// Volumes follows the config maps, secrets and tokens of pod volumes (intree.Volumes).
type Volumes interface {
	SetPod(pod *v1.Pod)
	ReleasePod(uid types.UID)
}

// Agent is the node agent.
type Agent struct {
	opts     Options
	node     *nodeObject
	pods     *pods
	registry *registry
}

// New makes an Agent and adds its handlers to the informers; nothing runs before Run.
func New(opts Options) (*Agent, error) {
	opts.Node = strings.ToLower(opts.Node)
	if errs := validation.IsDNS1123Subdomain(opts.Node); len(errs) > 0 {
		return nil, fmt.Errorf("node name %q: %s; choose another with --node", opts.Node, strings.Join(errs, "; "))
	}
	if opts.Client == nil || opts.Informers == nil || opts.Mount == nil || opts.Drivers == nil || opts.DataDir == "" {
		return nil, errors.New("node agent: client, informers, mounts, drivers and data directory must be set")
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Events == nil {
		opts.Events = &record.FakeRecorder{}
	}
	if opts.OnDriver == nil {
		opts.OnDriver = func(string, string, bool) {}
	}
	opts.Log = opts.Log.With("room", "node")
	a := &Agent{opts: opts}
	m := newMetrics(opts.Metrics)
	var err error
	if a.node, err = newNodeObject(&a.opts); err != nil {
		return nil, err
	}
	if a.pods, err = newPods(&a.opts, a.node, m); err != nil {
		return nil, err
	}
	a.registry = newRegistry(&a.opts, a.node, m)
	return a, nil
}

// PodChanged says that the status of a pod's volumes has changed. It does not block.
func (a *Agent) PodChanged(uid types.UID) { a.pods.changed(uid) }

// Name is the node's name as the API has it.
func (a *Agent) Name() string { return a.opts.Node }

// Run makes the node and serves it until ctx ends. Nothing is evicted, unmounted or unregistered at the end: the next
// start goes on where this one stopped.
func (a *Agent) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.node.run(ctx) })
	g.Go(func() error { return a.registry.run(ctx) })
	g.Go(func() error { return a.pods.run(ctx) })
	return g.Wait()
}

// Status is what the node does now, for `berth status`.
type Status struct {
	Node    string              `json:"node"`
	Plugins []PluginStatus      `json:"plugins"`
	Pods    map[v1.PodPhase]int `json:"pods"`
}

// Status reports the plugins and the pods by phase.
func (a *Agent) Status() Status {
	return Status{Node: a.opts.Node, Plugins: a.registry.status(), Pods: a.pods.phases()}
}
