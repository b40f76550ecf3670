package attach

import (
	"context"
	"errors"
	"log/slog"
	"sort"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"

	"berth.io/berth/internal/plugin"
	"berth.io/berth/internal/trace"
)

// Options of a Controller.
type Options struct {
	Client    kubernetes.Interface
	Informers informers.SharedInformerFactory
	Plugins   *plugin.Registry
	Events    record.EventRecorder
	Trace     *trace.Journal
	Log       *slog.Logger
	Metrics   prometheus.Registerer

	// Workers of volumes; 16 when 0.
	Workers int
	// Timeout of one call of an attacher; 2 minutes when 0. One that blocks (plugin.Blocking) has its own.
	Timeout time.Duration
	// ForceDetachAfter is how long a node that is not Ready is waited for before its volumes are taken away although
	// they may be mounted; 6 minutes when 0, never when negative.
	ForceDetachAfter time.Duration
	// Resync is the period of the safety net that looks at every entry again; 15 minutes when 0.
	Resync time.Duration
	// Evidence says why a node certainly does not use its volumes any more (its boot or its agent is another one
	// than the one that mounted them), or "". May be nil.
	Evidence func(*v1.Node) string
}

// Controller attaches and detaches.
type Controller struct {
	opts     Options
	metrics  *metrics
	pods     corelisters.PodLister
	claims   corelisters.PersistentVolumeClaimLister
	volumes  corelisters.PersistentVolumeLister
	nodeList corelisters.NodeLister
	synced   []cache.InformerSynced

	podQueue  workqueue.TypedRateLimitingInterface[string]
	keyQueue  workqueue.TypedRateLimitingInterface[key]
	nodeQueue workqueue.TypedRateLimitingInterface[types.NodeName]

	// apart counts the calls of attachers that block, which no worker waits for.
	apart sync.WaitGroup

	mu   sync.Mutex
	runs context.Context // Run's, once the state is rebuilt
	worldState
}

// New prepares the controller and adds its handlers to the informers.
func New(o Options) (*Controller, error) {
	if o.Client == nil || o.Informers == nil || o.Plugins == nil {
		return nil, errors.New("attach: Client, Informers and Plugins are needed")
	}
	if o.Workers == 0 {
		o.Workers = 16
	}
	if o.Timeout == 0 {
		o.Timeout = 2 * time.Minute
	}
	if o.ForceDetachAfter == 0 {
		o.ForceDetachAfter = 6 * time.Minute
	}
	if o.Resync == 0 {
		o.Resync = 15 * time.Minute
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	c := &Controller{opts: o, worldState: newWorldState(),
		podQueue:  newQueue[string]("attach-pods"),
		keyQueue:  newQueue[key]("attach-volumes"),
		nodeQueue: newQueue[types.NodeName]("attach-nodes"),
	}
	core, storage := o.Informers.Core().V1(), o.Informers.Storage().V1()
	c.pods, c.claims = core.Pods().Lister(), core.PersistentVolumeClaims().Lister()
	c.volumes, c.nodeList = core.PersistentVolumes().Lister(), core.Nodes().Lister()
	var err error
	if c.metrics, err = newMetrics(o.Metrics, c); err != nil {
		return nil, err
	}
	for _, h := range []struct {
		informer cache.SharedIndexInformer
		handler  cache.ResourceEventHandler
	}{
		{core.Pods().Informer(), on(c.podChanged)},
		{core.PersistentVolumeClaims().Informer(), on(c.claimChanged)},
		{core.PersistentVolumes().Informer(), on(c.volumeChanged)},
		{core.Nodes().Informer(), on(c.nodeChanged)},
		{storage.VolumeAttachments().Informer(), on(c.attachmentChanged)},
		{storage.CSIDrivers().Informer(), on(c.driverChanged)},
		{storage.CSINodes().Informer(), on(c.csiNodeChanged)},
	} {
		if _, err := h.informer.AddEventHandler(h.handler); err != nil {
			return nil, err
		}
		c.synced = append(c.synced, h.informer.HasSynced)
	}
	for _, p := range o.Plugins.All() {
		if n, ok := p.(plugin.DriverNotifier); ok && isFamily(p) {
			n.NotifyDrivers(c.driverCame)
		}
	}
	return c, nil
}

func newQueue[T comparable](name string) workqueue.TypedRateLimitingInterface[T] {
	return workqueue.NewTypedRateLimitingQueueWithConfig(
		workqueue.NewTypedItemExponentialFailureRateLimiter[T](10*time.Millisecond, time.Minute),
		workqueue.TypedRateLimitingQueueConfig[T]{Name: name})
}

// on calls f with the object as it is now, or as it was last.
func on[T any](f func(obj T, gone bool)) cache.ResourceEventHandler {
	call := func(o any, gone bool) {
		if missed, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = missed.Obj
		}
		if t, ok := o.(T); ok {
			f(t, gone)
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { call(o, false) },
		UpdateFunc: func(_, o any) { call(o, false) },
		DeleteFunc: func(o any) { call(o, true) },
	}
}

// Run rebuilds the state and works until ctx ends; it returns when its workers have.
func (c *Controller) Run(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), c.synced...) {
		return ctx.Err()
	}
	c.rebuild(ctx)
	c.mu.Lock()
	c.runs = ctx
	c.mu.Unlock()
	c.verify(ctx, "") // drivers that come later are asked when they do
	var wg sync.WaitGroup
	work(ctx, &wg, c.podQueue, 2, func(_ context.Context, k string) error { c.syncPod(k); return nil })
	work(ctx, &wg, c.keyQueue, c.opts.Workers, c.sync)
	work(ctx, &wg, c.nodeQueue, 4, c.writeNode)
	wg.Go(func() { c.resync(ctx) })
	<-ctx.Done()
	c.podQueue.ShutDown()
	c.keyQueue.ShutDown()
	c.nodeQueue.ShutDown()
	wg.Wait()
	c.apart.Wait()
	return nil
}

func work[T comparable](ctx context.Context, wg *sync.WaitGroup, q workqueue.TypedRateLimitingInterface[T], workers int, do func(context.Context, T) error) {
	for range workers {
		wg.Go(func() {
			for {
				k, stop := q.Get()
				if stop {
					return
				}
				if err := do(ctx, k); err != nil {
					q.AddRateLimited(k)
				} else {
					q.Forget(k)
				}
				q.Done(k)
			}
		})
	}
}

// resync is the safety net: every entry and every pod is looked at again, in case an event was missed.
func (c *Controller) resync(ctx context.Context) {
	t := time.NewTicker(c.opts.Resync)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		pods, _ := c.pods.List(labels.Everything())
		for _, p := range pods {
			c.podQueue.Add(cache.MetaObjectToName(p).String())
		}
		c.mu.Lock()
		for k := range c.entries {
			c.keyQueue.Add(k)
		}
		c.mu.Unlock()
		c.verify(ctx, "")
	}
}

// attachmentChanged wakes the volume that a VolumeAttachment is about.
func (c *Controller) attachmentChanged(va *storagev1.VolumeAttachment, gone bool) {
	if va.Spec.Source.PersistentVolumeName == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byPV[*va.Spec.Source.PersistentVolumeName][types.NodeName(va.Spec.NodeName)]
	if e == nil {
		return
	}
	if e.actual == attached && (gone || va.DeletionTimestamp != nil || !va.Status.Attached) {
		// Somebody else took it away. An event of before our own attach looks the same: asking again costs nothing.
		e.actual = uncertain
	}
	c.keyQueue.Add(e.key)
}

// Holder is a volume that is on its way to or from a node.
type Holder struct {
	Volume v1.UniqueVolumeName
	PV     string
	Node   types.NodeName
	Step   string // what is under way, or waited for
	Since  time.Time
}

// Holders lists the operations under way and those that wait, the oldest first.
func (c *Controller) Holders() []Holder {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []Holder
	for _, e := range c.entries {
		if e.step == "" {
			continue
		}
		h := Holder{Volume: e.key.volume, Node: e.node, Step: e.step, Since: e.since}
		if e.volume != nil && e.volume.PV != nil {
			h.PV = e.volume.PV.Name
		}
		out = append(out, h)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Since.Before(out[j].Since) })
	return out
}
