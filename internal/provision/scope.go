package provision

import (
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/informers/core"
	corev1informers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/informers/storage"
	"k8s.io/client-go/tools/cache"
)

// scope is one driver's view of the shared informers. It remembers the event handlers that the driver's controllers
// registered, so that close takes them off again: the libraries never do, and a driver that comes and goes would
// leave its dead queues on every informer.
type scope struct {
	driver string

	mu     sync.Mutex
	closed bool
	regs   []registration
}

type registration struct {
	informer cache.SharedIndexInformer
	handle   cache.ResourceEventHandlerRegistration
}

func newScope(driver string) *scope { return &scope{driver: driver} }

func (s *scope) close() {
	s.mu.Lock()
	regs := s.regs
	s.regs, s.closed = nil, true
	s.mu.Unlock()
	for _, r := range regs {
		_ = r.informer.RemoveEventHandler(r.handle)
	}
}

func (s *scope) register(i cache.SharedIndexInformer, h cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	handle, err := i.AddEventHandler(h)
	if err != nil {
		return handle, err
	}
	s.mu.Lock()
	late := s.closed
	if !late {
		s.regs = append(s.regs, registration{i, handle})
	}
	s.mu.Unlock()
	if late {
		_ = i.RemoveEventHandler(handle)
	}
	return handle, nil
}

// scoped is a shared informer as one controller sees it: only the objects that keep lets through, no resync (the
// libraries ask for one every few minutes, and it would wake every driver's queues), and no index twice (two
// provision controllers on one informer would exit the process with an "indexer conflict").
type scoped struct {
	cache.SharedIndexInformer
	scope *scope
	keep  func(obj any) bool
	// captured receives the handler that the library registers. Calling it is how this room wakes a library's
	// queue, which is private, for a reason that is no event of that informer.
	captured func(cache.ResourceEventHandler)
	// store is what a library that writes into the informer's store is given in its place; nil: the informer's.
	store cache.Store
}

func (i scoped) GetStore() cache.Store {
	if i.store != nil {
		return i.store
	}
	return i.SharedIndexInformer.GetStore()
}

func (i scoped) AddEventHandler(h cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	if i.captured != nil {
		i.captured(h)
	}
	if keep := i.keep; keep != nil {
		h = cache.FilteringResourceEventHandler{
			FilterFunc: func(obj any) bool { return keep(last(obj)) },
			Handler:    h,
		}
	}
	return i.scope.register(i.SharedIndexInformer, h)
}

func (i scoped) AddEventHandlerWithResyncPeriod(h cache.ResourceEventHandler, _ time.Duration) (cache.ResourceEventHandlerRegistration, error) {
	return i.AddEventHandler(h)
}

func (i scoped) AddEventHandlerWithOptions(h cache.ResourceEventHandler, _ cache.HandlerOptions) (cache.ResourceEventHandlerRegistration, error) {
	return i.AddEventHandler(h)
}

func (i scoped) AddIndexers(ix cache.Indexers) error {
	have := i.GetIndexer().GetIndexers()
	missing := cache.Indexers{}
	for name, f := range ix {
		if _, ok := have[name]; !ok {
			missing[name] = f
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return i.SharedIndexInformer.AddIndexers(missing)
}

// last is the object that a delete event is about, also when the informer missed the deletion itself.
func last(obj any) any {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		return gone.Obj
	}
	return obj
}

const (
	annProvisioner     = "volume.kubernetes.io/storage-provisioner"
	annProvisionerBeta = "volume.beta.kubernetes.io/storage-provisioner"
	annProvisionedBy   = "pv.kubernetes.io/provisioned-by"
	annSelectedNode    = "volume.kubernetes.io/selected-node"
)

// provisionerOf is the driver that the claim was handed to, or "".
func provisionerOf(c *v1.PersistentVolumeClaim) string {
	if p, ok := c.Annotations[annProvisioner]; ok {
		return p
	}
	return c.Annotations[annProvisionerBeta]
}

func (s *scope) ownClaim(obj any) bool {
	c, ok := obj.(*v1.PersistentVolumeClaim)
	return ok && provisionerOf(c) == s.driver
}

// maybeOwnClaim keeps also the claims of no provisioner: a static volume's driver stands in the volume only.
func (s *scope) maybeOwnClaim(obj any) bool {
	c, ok := obj.(*v1.PersistentVolumeClaim)
	if !ok {
		return false
	}
	p := provisionerOf(c)
	return p == "" || p == s.driver
}

func (s *scope) ownVolume(obj any) bool {
	pv, ok := obj.(*v1.PersistentVolume)
	return ok && (pv.Spec.CSI != nil && pv.Spec.CSI.Driver == s.driver || pv.Annotations[annProvisionedBy] == s.driver)
}

func (s *scope) ownClass(obj any) bool {
	c, ok := obj.(*storagev1.StorageClass)
	return ok && c.Provisioner == s.driver
}

// typed is any of client-go's informers: the shared informer and its lister.
type typed[L any] interface {
	Informer() cache.SharedIndexInformer
	Lister() L
}

// view is a typed informer as one driver's controllers see it. It is what client-go calls a PersistentVolumeInformer, a
// VolumeSnapshotContentInformer and so on, by the lister's type.
type view[L any] struct {
	typed[L]
	scoped scoped
}

func (v view[L]) Informer() cache.SharedIndexInformer { return v.scoped }

// through shows i through the scope; keep may be nil.
func through[L any](s *scope, i typed[L], keep func(any) bool) view[L] {
	return view[L]{i, scoped{SharedIndexInformer: i.Informer(), scope: s, keep: keep}}
}

// capturing is through, and gives the handler that the library registers to captured.
func capturing[L any](s *scope, i typed[L], keep func(any) bool, captured func(cache.ResourceEventHandler)) view[L] {
	v := through(s, i, keep)
	v.scoped.captured = captured
	return v
}

// noting is for a library that notes its own writes in the informer's store.
func noting[L any](v view[L]) view[L] {
	v.scoped.store = newAhead(v.scoped.SharedIndexInformer.GetStore())
	return v
}

// factory is the shared factory for the libraries that take a whole one (resizer, modifier).
type factory struct {
	informers.SharedInformerFactory
	scope *scope
	// claims is given the handler that the library registers for claims; may be nil.
	claims func(cache.ResourceEventHandler)
}

func (f factory) Core() core.Interface { return coreGroup{f.SharedInformerFactory.Core(), f} }

func (f factory) Storage() storage.Interface {
	return storageGroup{f.SharedInformerFactory.Storage(), f.scope.driver}
}

type coreGroup struct {
	core.Interface
	f factory
}

func (g coreGroup) V1() corev1informers.Interface { return coreV1{g.Interface.V1(), g.f} }

type coreV1 struct {
	corev1informers.Interface
	f factory
}

func (g coreV1) PersistentVolumeClaims() corev1informers.PersistentVolumeClaimInformer {
	return noting(capturing(g.f.scope, g.Interface.PersistentVolumeClaims(), g.f.scope.maybeOwnClaim, g.f.claims))
}

func (g coreV1) PersistentVolumes() corev1informers.PersistentVolumeInformer {
	return noting(through(g.f.scope, g.Interface.PersistentVolumes(), g.f.scope.ownVolume))
}

func (g coreV1) Pods() corev1informers.PodInformer {
	return through(g.f.scope, g.Interface.Pods(), nil)
}
