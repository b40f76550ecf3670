package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	api "berth.io/berth/api/v1alpha1"
	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/block/objects"
)

// Backend is the storage of this node. It may be a backend.Snapshotter, a backend.Modifier and a backend.StorageHealth as well.
type Backend interface {
	backend.Controller
	OnCapacityChange(f func())
}

// Options of an agent. Node, Backend and Objects are needed.
type Options struct {
	// Node by the name of its Node object.
	Node    string
	Backend Backend
	Objects *objects.Client
	// Owner of the BlockPool: the Node object, so that the one goes with the other. Nil: it stays.
	Owner *metav1.OwnerReference
	// Foreign says of a volume without an object that it is no orphan: somebody else of this node keeps it (the driver's inline
	// volumes). Nil: nobody does.
	Foreign func(backend.Volume) bool
	// Workers at once; 16 when 0.
	Workers int
	// LookEvery is how often the health of volumes and pool is looked at without being asked; a minute when 0.
	LookEvery time.Duration
	Log       *slog.Logger
	Metrics   prometheus.Registerer
}

// Agent of one node.
type Agent struct {
	o         Options
	snapshots backend.Snapshotter // nil: the backend takes none
	modifier  backend.Modifier
	metrics   *metrics

	volumes, snaps, pools cache.SharedIndexInformer
	queue                 workqueue.TypedRateLimitingInterface[string]
	poolChanged           chan struct{}

	written   statuses
	announced atomic.Bool // the BlockPool has been written
}

// byGroup is the index of snapshots by their group.
const byGroup = "group"

// New prepares an agent. It does nothing before Run.
func New(o Options) (*Agent, error) {
	if o.Node == "" || o.Backend == nil || o.Objects == nil {
		return nil, errors.New("block agent: Node, Backend and Objects are needed")
	}
	if o.Workers == 0 {
		o.Workers = 16
	}
	if o.LookEvery == 0 {
		o.LookEvery = time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Foreign == nil {
		o.Foreign = func(backend.Volume) bool { return false }
	}
	a := &Agent{o: o, poolChanged: make(chan struct{}, 1), queue: workqueue.NewTypedRateLimitingQueueWithConfig(
		workqueue.NewTypedItemExponentialFailureRateLimiter[string](100*time.Millisecond, 15*time.Second),
		workqueue.TypedRateLimitingQueueConfig[string]{Name: "block-agent"})}
	a.snapshots, _ = o.Backend.(backend.Snapshotter)
	a.modifier, _ = o.Backend.(backend.Modifier)
	var err error
	if a.metrics, err = newMetrics(o.Metrics); err != nil {
		return nil, fmt.Errorf("block agent: %w", err)
	}
	mine := objects.Select{Label: api.LabelNode + "=" + api.NodeLabel(o.Node)}
	if a.volumes, err = objects.Informer(o.Objects.Volumes, &api.BlockVolume{}, mine, nil); err != nil {
		return nil, err
	}
	if a.snaps, err = objects.Informer(o.Objects.Snapshots, &api.BlockSnapshot{}, mine, cache.Indexers{byGroup: func(o any) ([]string, error) {
		if s, ok := o.(*api.BlockSnapshot); ok && s.Spec.Group != nil {
			return []string{s.Spec.Group.ID}, nil
		}
		return nil, nil
	}}); err != nil {
		return nil, err
	}
	if a.pools, err = objects.Informer(o.Objects.Pools, &api.BlockPool{}, objects.Select{Name: o.Node}, nil); err != nil {
		return nil, err
	}
	if err := a.watch(); err != nil {
		return nil, err
	}
	o.Backend.OnCapacityChange(a.kickPool)
	return a, nil
}

// Keys of the queue.
const (
	volumeKey   = "volume/"
	snapshotKey = "snapshot/"
	groupKey    = "group/"
)

// keyOf is the key under which an object is worked; empty when it is none of this node's.
func (a *Agent) keyOf(o any) string {
	switch o := objects.Last(o).(type) {
	case *api.BlockVolume:
		if o.Spec.Node == a.o.Node {
			return volumeKey + o.Name
		}
	case *api.BlockSnapshot:
		switch {
		case o.Spec.Node != a.o.Node:
		case o.Spec.Group != nil:
			return groupKey + o.Spec.Group.ID
		default:
			return snapshotKey + o.Name
		}
	}
	return ""
}

func (a *Agent) watch() error {
	add := func(o any) {
		if key := a.keyOf(o); key != "" {
			a.queue.Add(key)
		}
	}
	handler := cache.ResourceEventHandlerFuncs{
		AddFunc: add,
		UpdateFunc: func(was, is any) {
			// Our own write of the status comes back here.
			m, okWas := was.(metav1.Object)
			n, okIs := is.(metav1.Object)
			if okWas && okIs && m.GetUID() == n.GetUID() && m.GetGeneration() == n.GetGeneration() && (m.GetDeletionTimestamp() == nil) == (n.GetDeletionTimestamp() == nil) && objects.Marked(m) == objects.Marked(n) {
				return
			}
			add(is)
		},
		DeleteFunc: func(o any) { add(o); a.kickPool() },
	}
	for _, informer := range []cache.SharedIndexInformer{a.volumes, a.snaps} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return err
		}
	}
	_, err := a.pools.AddEventHandler(cache.ResourceEventHandlerFuncs{DeleteFunc: func(any) { a.kickPool() }})
	return err
}

// Run works until ctx ends, and returns when what was begun has ended.
func (a *Agent) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	for _, informer := range []cache.SharedIndexInformer{a.volumes, a.snaps, a.pools} {
		running.Go(func() { informer.RunWithContext(ctx) })
	}
	if !cache.WaitForCacheSync(ctx.Done(), a.volumes.HasSynced, a.snaps.HasSynced, a.pools.HasSynced) {
		return nil
	}
	defer a.queue.ShutDown()
	for range a.o.Workers {
		running.Go(func() { a.work(ctx) })
	}
	running.Go(func() { a.keepPool(ctx) })
	<-ctx.Done()
	return nil
}

// Ready is nil once the BlockPool was written and the agent works; else it says what is missing.
func (a *Agent) Ready() error {
	switch {
	case !a.volumes.HasSynced() || !a.snaps.HasSynced() || !a.pools.HasSynced():
		return errors.New("block agent: the API server has not told of this node's volumes yet")
	case !a.announced.Load():
		return errors.New("block agent: the BlockPool of this node has not been written yet")
	}
	return nil
}

func (a *Agent) work(ctx context.Context) {
	for {
		key, shutdown := a.queue.Get()
		if shutdown {
			return
		}
		if ctx.Err() == nil {
			a.one(ctx, key)
		}
		a.queue.Done(key)
	}
}

// longest that one object is worked on: a format and a copy fit into it.
const longest = 5 * time.Minute

// errAgain asks for another try: the status says why.
var errAgain = errors.New("again later")

func (a *Agent) one(ctx context.Context, key string) {
	bounded, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	err := a.reconcile(bounded, key)
	if err == nil {
		a.queue.Forget(key)
		return
	}
	if ctx.Err() != nil {
		return // the end; the next start looks at every object
	}
	if !errors.Is(err, errAgain) {
		a.o.Log.Warn("an object of the block store could not be worked; it is tried again", slog.String("object", key), slog.Any("error", err))
	}
	a.queue.AddRateLimited(key)
}

func (a *Agent) reconcile(ctx context.Context, key string) error {
	if id, ok := strings.CutPrefix(key, volumeKey); ok {
		return a.volume(ctx, id)
	}
	if id, ok := strings.CutPrefix(key, snapshotKey); ok {
		return a.snapshot(ctx, id)
	}
	if id, ok := strings.CutPrefix(key, groupKey); ok {
		return a.group(ctx, id)
	}
	return fmt.Errorf("no object has the key %q", key)
}
