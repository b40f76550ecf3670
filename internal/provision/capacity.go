package provision

import (
	"context"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/external-provisioner/v6/pkg/capacity"
	"github.com/kubernetes-csi/external-provisioner/v6/pkg/capacity/topology"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

const (
	// capacityManager is the label value that external-provisioner writes; objects of an earlier run are found by it.
	capacityManager = "external-provisioner"
	// capacityEvery bounds how often a driver's capacity objects are refreshed.
	capacityEvery = time.Second
	// capacityAfter keeps a refresh out of the way of the volume that causes it: its writes would stand in etcd's queue
	// between those that the volume's pod waits for.
	capacityAfter = 150 * time.Millisecond
	// capacityWanted bounds it while a pod waits for room.
	capacityWanted = 100 * time.Millisecond
)

// capacities keeps a driver's CSIStorageCapacity objects true. external-provisioner polls; here a change is pushed: by
// the driver (Manager.CapacityChanged), and by every volume made or deleted. A nil *capacities does nothing.
type capacities struct {
	r          *role
	controller *capacity.Controller
	topology   topology.Informer
	nodes      *firstDone
	refresh    func() // asks GetCapacity again for all classes of the driver

	mu      sync.Mutex
	last    time.Time // the objects were refreshed
	wanted  bool      // a pod waits for room: the next change is told at once
	pending bool
	stopped bool
	timer   *time.Timer
}

func (r *role) newCapacities() *capacities {
	c := &capacities{r: r, nodes: &firstDone{TypedRateLimitingInterface: newQueue("provision-topology"), done: make(chan struct{})}}
	m, f := r.m, r.m.opts.Informers
	var classHandler cache.ResourceEventHandler
	c.topology = topology.NewNodeTopology(r.driver.Name, m.opts.Client,
		through(r.scope, f.Core().V1().Nodes(), nil), through(r.scope, f.Storage().V1().CSINodes(), nil), c.nodes)
	queue := workqueue.NewTypedRateLimitingQueueWithConfig(
		workqueue.NewTypedItemExponentialFailureRateLimiter[capacity.QueueKey](100*time.Millisecond, time.Minute),
		workqueue.TypedRateLimitingQueueConfig[capacity.QueueKey]{Name: "provision-capacity"})
	own := func(o any) bool {
		csc, ok := o.(*storagev1.CSIStorageCapacity)
		return ok && csc.Labels[capacity.DriverNameLabel] == r.driver.Name
	}
	c.controller = capacity.NewCentralCapacityController(csi.NewControllerClient(r.conn), r.driver.Name,
		capacity.NewV1ClientFactory(m.opts.Client), queue, nil, capacityManager, m.opts.Namespace, c.topology,
		capturing(r.scope, f.Storage().V1().StorageClasses(), r.scope.ownClass, func(h cache.ResourceEventHandler) { classHandler = h }),
		through(r.scope, m.opts.CapacityInformers.Storage().V1().CSIStorageCapacities(), own),
		m.opts.CapacityPoll, true, m.opts.RPCTimeout)
	c.refresh = func() {
		classes, _ := m.classes.List(labels.Everything())
		for _, class := range classes {
			if class.Provisioner == r.driver.Name {
				classHandler.OnUpdate(class, class)
			}
		}
	}
	return c
}

func (c *capacities) run(ctx context.Context, wg *sync.WaitGroup) {
	if c == nil {
		return
	}
	wg.Go(func() { c.topology.RunWorker(ctx) })
	wg.Go(func() {
		select {
		case <-c.nodes.done:
		case <-ctx.Done():
		}
		c.controller.Run(ctx, 1, wg)
	})
	wg.Go(func() {
		<-ctx.Done()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.stopped = true
		if c.timer != nil {
			c.timer.Stop()
		}
	})
}

// changed refreshes the objects soon: once for all changes of the next moments, and not more often than capacityEvery.
func (c *capacities) changed() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending || c.stopped {
		return
	}
	c.pending = true
	c.timer = time.AfterFunc(c.pause(), c.tell)
}

// awaited says that a pod waits for room: what has changed is told now, or the next change as soon as it comes. It holds for one refresh: a
// pod that is still without room after it asks again.
func (c *capacities) awaited() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.wanted || c.stopped {
		return
	}
	c.wanted = true
	if c.pending {
		c.timer.Reset(c.pause())
	}
}

// pause is how long a change waits until it is told. c.mu is held.
func (c *capacities) pause() time.Duration {
	if c.wanted {
		return max(0, time.Until(c.last.Add(capacityWanted)))
	}
	return max(capacityAfter, time.Until(c.last.Add(capacityEvery)))
}

func (c *capacities) tell() {
	c.mu.Lock()
	due := c.pending && !c.stopped // a timer that was put forward when it had just run out comes twice
	if due {
		c.pending, c.wanted, c.last = false, false, time.Now()
	}
	c.mu.Unlock()
	if due {
		c.refresh()
	}
}

// firstDone is a queue that tells when its first item has been worked: the topology of the nodes is known then, which
// the library would find out by asking every 100 ms.
type firstDone struct {
	workqueue.TypedRateLimitingInterface[string]
	once sync.Once
	done chan struct{}
}

func (q *firstDone) Done(item string) {
	q.TypedRateLimitingInterface.Done(item)
	q.once.Do(func() { close(q.done) })
}

// className is the claim's class; the legacy annotation wins, as in sig-storage-lib.
func className(c *v1.PersistentVolumeClaim) string {
	if name, ok := c.Annotations[v1.BetaStorageClassAnnotation]; ok {
		return name
	}
	if c.Spec.StorageClassName != nil {
		return *c.Spec.StorageClassName
	}
	return ""
}
