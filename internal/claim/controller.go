package claim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"

	"berth.io/berth/internal/plugin"
	"berth.io/berth/internal/trace"
)

// Options are what the room needs. Client and Informers are required.
type Options struct {
	Client    kubernetes.Interface
	Informers informers.SharedInformerFactory
	// Events is the recorder of component "persistentvolume-controller".
	Events record.EventRecorder
	Trace  *trace.Journal
	Log    *slog.Logger
	// Metrics may be nil: then none are registered.
	Metrics prometheus.Registerer
	// Plugins provision, delete, recycle and expand in tree; may be nil.
	Plugins *plugin.Registry
	// Workers per queue; 0 is 16. They wait for the API server most of the time.
	Workers int
	// Resync is the pause between two rounds over all claims and volumes, the safety net under the events; 0 is 5 min.
	Resync time.Duration
}

const (
	defaultWorkers = 16
	defaultResync  = 5 * time.Minute
	retryFirst     = 5 * time.Millisecond
	retryLast      = time.Minute
	// podWait is how long a pod may be unscheduled before its claims say so. A pod that has a node by then, nearly
	// every one, causes no event.
	podWait = 2 * time.Second
)

type queue = workqueue.TypedRateLimitingInterface[string]

// Controller binds claims to volumes; see the package comment.
type Controller struct {
	opts Options

	claims  *claims
	volumes *volumes
	waiting *waiting
	told    *said // events
	noted   *said // steps of the journey
	ops     *operations
	pods    *podIndex
	stats   *metrics

	pvcs  corelisters.PersistentVolumeClaimLister
	class storagelisters.StorageClassLister
	nodes corelisters.NodeLister

	claimQueue, volumeQueue queue
	// parts are the queues and what is done with their keys: the two workers, and the smaller controllers beside them.
	parts  []part
	synced []cache.DoneChecker
	// The parts' ears. One handler per kind hears the informer, updates claims and volumes, and tells them then: a
	// part that is woken must find the state that woke it.
	onClaim      []func(old, now *v1.PersistentVolumeClaim)
	onClaimGone  []func(last *v1.PersistentVolumeClaim)
	onVolume     []func(old, now *v1.PersistentVolume)
	onVolumeGone []func(last *v1.PersistentVolume)
}

// part is one queue with its workers.
type part struct {
	name    string
	queue   queue
	workers int
	sync    func(ctx context.Context, key string) error
}

// New registers with the informers; nothing happens before Run.
func New(opts Options) (*Controller, error) {
	if opts.Client == nil || opts.Informers == nil {
		return nil, errors.New("claim: a client and informers are required")
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Workers == 0 {
		opts.Workers = defaultWorkers
	}
	if opts.Resync == 0 {
		opts.Resync = defaultResync
	}
	c := &Controller{
		opts: opts, claims: newClaims(), volumes: newVolumes(), waiting: newWaiting(),
		told: newSaid(), noted: newSaid(), ops: newOperations(time.Now),
		claimQueue: newQueue(), volumeQueue: newQueue(),
	}
	c.volumes.freed = c.offer
	c.parts = append(c.parts,
		part{"claim", c.claimQueue, opts.Workers, c.syncClaim},
		part{"volume", c.volumeQueue, opts.Workers, c.syncVolume})

	var err error
	if c.stats, err = newMetrics(opts.Metrics, c); err != nil {
		return nil, fmt.Errorf("claim: register metrics: %w", err)
	}
	c.pvcs = opts.Informers.Core().V1().PersistentVolumeClaims().Lister()
	c.class = opts.Informers.Storage().V1().StorageClasses().Lister()
	c.nodes = opts.Informers.Core().V1().Nodes().Lister()
	c.synced = append(c.synced, opts.Informers.Core().V1().Nodes().Informer().HasSyncedChecker())

	if c.pods, err = indexPods(opts.Informers.Core().V1().Pods().Informer()); err != nil {
		return nil, fmt.Errorf("claim: index pods by claim: %w", err)
	}
	for _, add := range []func() error{
		c.addClaimProtection, c.addVolumeProtection, c.addAttributesClassProtection, c.addEphemeral, c.addExpansion,
		c.watchClaims, c.watchVolumes, c.watchClasses, c.watchPods,
	} {
		if err := add(); err != nil {
			return nil, fmt.Errorf("claim: %w", err)
		}
	}
	return c, nil
}

func newQueue() queue {
	return workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](retryFirst, retryLast))
}

// Run works until ctx ends and returns when its last goroutine has ended.
func (c *Controller) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() {
		for _, p := range c.parts {
			p.queue.ShutDown()
		}
		c.ops.wait()
	}()
	// The handlers have synced when every object of the first lists has been put into claims and volumes, which is
	// more than that the informers' own caches have it.
	if !cache.WaitFor(ctx, "", c.synced...) {
		return ctx.Err()
	}
	c.ops.begin(ctx)
	for _, p := range c.parts {
		for range p.workers {
			wg.Go(func() { c.work(ctx, p) })
		}
	}
	wg.Go(func() { c.resync(ctx) })
	<-ctx.Done()
	return nil
}

// work takes keys until the queue shuts down. A worker that finds a volume held by another ends without an error:
// it is woken by the holder.
func (c *Controller) work(ctx context.Context, p part) {
	for {
		key, quit := p.queue.Get()
		if quit {
			return
		}
		c.once(ctx, p, key)
	}
}

func (c *Controller) once(ctx context.Context, p part, key string) {
	defer p.queue.Done(key)
	err := p.sync(ctx, key)
	var b *busy
	switch {
	case err == nil:
		p.queue.Forget(key)
	case errors.As(err, &b):
		c.opts.Log.Debug("waits for a volume", "worker", p.name, "key", key, "holder", b.holder, "step", b.step)
	case ctx.Err() != nil:
	default:
		level := slog.LevelWarn
		if transient(err) {
			level = slog.LevelDebug
		}
		c.opts.Log.Log(ctx, level, "sync failed, will be tried again", "worker", p.name, "key", key, "error", err)
		p.queue.AddRateLimited(key)
	}
}

// resync goes over everything now and then, in case an event was lost.
func (c *Controller) resync(ctx context.Context) {
	t := time.NewTicker(c.opts.Resync)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		c.told.forgetAll()
		for _, claim := range c.claims.list() {
			if _, err := c.pvcs.PersistentVolumeClaims(claim.Namespace).Get(claim.Name); apierrors.IsNotFound(err) {
				c.claimGone(claim, false) // kept by an answer that came in after a relist had dropped it
			}
			c.claimQueue.Add(keyOf(claim))
		}
		for _, pv := range c.volumes.list() {
			c.volumeQueue.Add(pv.Name)
		}
	}
}

// offer gives a volume that has become free to the claim that waits for it.
func (c *Controller) offer(pv *v1.PersistentVolume) {
	if key := c.waiting.offer(pv); key != "" {
		c.claimQueue.Add(key)
	}
}
