package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"berth.io/berth/internal/boundary"
)

// readiness follows this node's CSINode, and takes the start-up taint away when it shows all drivers: from then on no pod meets "driver
// name not found". It never puts the taint back: pods that run here would stay, and a registration comes and goes with an update.
type readiness struct {
	client  kubernetes.Interface
	node    string
	log     *slog.Logger
	factory informers.SharedInformerFactory
	nodes   corelisters.NodeLister
	csi     storagelisters.CSINodeLister
	synced  []cache.InformerSynced
	queue   workqueue.TypedRateLimitingInterface[string]

	mu      sync.Mutex
	wanted  map[string]bool // driver names
	unnamed int             // drivers that have not said their names
}

// newReadiness watches one Node and one CSINode.
func newReadiness(client kubernetes.Interface, node string, log *slog.Logger) (*readiness, error) {
	r := &readiness{client: client, node: node, log: log, wanted: map[string]bool{},
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](100*time.Millisecond, 30*time.Second))}
	r.factory = informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(lean), informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, node).String()
	}))
	nodes, csi := r.factory.Core().V1().Nodes(), r.factory.Storage().V1().CSINodes()
	r.nodes, r.csi = nodes.Lister(), csi.Lister()
	look := func(any) { r.look() }
	for _, i := range []cache.SharedIndexInformer{nodes.Informer(), csi.Informer()} {
		r.synced = append(r.synced, i.HasSynced)
		if _, err := i.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: look, UpdateFunc: func(_, o any) { look(o) }, DeleteFunc: look}); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// look at the node again.
func (r *readiness) look() { r.queue.Add(r.node) }

// expect a driver that has not said its name yet.
func (r *readiness) expect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unnamed++
}

// named: an expected driver has a name.
func (r *readiness) named(name string) {
	r.mu.Lock()
	r.unnamed--
	r.wanted[name] = true
	r.mu.Unlock()
	r.look()
}

// want a driver in CSINode.
func (r *readiness) want(name string) {
	r.expect()
	r.named(name)
}

// run until ctx ends.
func (r *readiness) run(ctx context.Context) error {
	r.factory.Start(ctx.Done())
	defer r.factory.Shutdown()
	if !cache.WaitForCacheSync(ctx.Done(), r.synced...) {
		return ctx.Err()
	}
	stop := context.AfterFunc(ctx, r.queue.ShutDown)
	defer stop()
	for {
		key, over := r.queue.Get()
		if over {
			return nil
		}
		if err := r.settle(ctx); err != nil && ctx.Err() == nil {
			r.log.Warn("the start-up taint stays for now", "taint", Taint, "err", err)
			r.queue.AddRateLimited(key)
		} else {
			r.queue.Forget(key)
		}
		r.queue.Done(key)
	}
}

// missing is the first driver that CSINode does not show; nil when it shows all.
func (r *readiness) missing() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.unnamed > 0 {
		return fmt.Errorf("%d drivers have not said their names", r.unnamed)
	}
	n, err := r.csi.Get(r.node)
	if err != nil {
		return fmt.Errorf("CSINode %s: %w", r.node, err)
	}
	for name := range r.wanted {
		if !shows(n, name) {
			return fmt.Errorf("the kubelet has not registered driver %s", name)
		}
	}
	return nil
}

func shows(n *storagev1.CSINode, driver string) bool {
	for _, d := range n.Spec.Drivers {
		if d.Name == driver {
			return true
		}
	}
	return false
}

// settle takes the taint away where it is time.
func (r *readiness) settle(ctx context.Context) error {
	n, err := r.nodes.Get(r.node)
	if apierrors.IsNotFound(err) {
		return nil // its coming wakes us
	}
	if err != nil {
		return err
	}
	left := make([]corev1.Taint, 0, len(n.Spec.Taints))
	for _, t := range n.Spec.Taints {
		if t.Key != Taint {
			left = append(left, t)
		}
	}
	if len(left) == len(n.Spec.Taints) || r.missing() != nil {
		return nil
	}
	// Taints are one field for all who set them: the write is refused when somebody else was there meanwhile.
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": n.ResourceVersion}, "spec": map[string]any{"taints": left}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	err = boundary.Do("cluster/remove-taint", func() error {
		_, err := r.client.CoreV1().Nodes().Patch(ctx, r.node, types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	})
	if err == nil {
		r.log.Info("the drivers are registered: the node takes pods", "taint", Taint)
	}
	return err
}

// callWithin bounds one call of the API.
const callWithin = 10 * time.Second
