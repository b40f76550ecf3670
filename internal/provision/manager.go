package provision

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	attctl "github.com/kubernetes-csi/external-attacher/v4/pkg/controller"
	snapclient "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned"
	snapfactory "github.com/kubernetes-csi/external-snapshotter/client/v8/informers/externalversions"
	snaputils "github.com/kubernetes-csi/external-snapshotter/v8/pkg/utils"
	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"berth.io/berth/internal/trace"
)

// Options of a Manager.
type Options struct {
	// Client for the libraries too: no rate limit, and a transport wrapped by WrapTransport.
	Client    kubernetes.Interface
	Informers informers.SharedInformerFactory
	// Snap, SnapInformers and Definitions may be nil: then there are no snapshots. The factory is started by the manager, when the
	// API serves the kinds of snapshots; Definitions watches CustomResourceDefinitions for those that it does not serve yet.
	Snap          snapclient.Interface
	SnapInformers snapfactory.SharedInformerFactory
	Definitions   metadata.Interface

	Events  record.EventRecorder
	Trace   *trace.Journal
	Log     *slog.Logger
	Metrics prometheus.Registerer
	Node    string
	// Without are the roles that this process has not; another one may have them.
	Without []Role
	// WithoutGroups leaves group snapshots alone where the API has their kinds.
	WithoutGroups bool
	// Namespace of the CSIStorageCapacity objects; empty: none are kept.
	Namespace string
	// CapacityInformers show the CSIStorageCapacity objects of Namespace; Informers when nil. The manager starts them.
	CapacityInformers informers.SharedInformerFactory
	// Workers per driver and kind of work; 16 when 0. Work that is rare has a quarter of them.
	Workers int
	// MayAct is asked before every RPC that changes something: an error is the RPC's. Nil: always.
	MayAct func() error

	// What drivers are told with the requests, as the sidecars' flags of these names. Zero: as the sidecars' defaults.
	ExtraCreateMetadata       bool   // the names of claim, volume and snapshot as parameters
	ExtraModifyMetadata       bool   // the names of claim and volume with a change of attributes
	DefaultFSType             string // where the class names none
	StrictTopology            bool   // only the selected node's topology
	NoImmediateTopology       bool   // no topology for claims that are bound at once
	ControllerPublishReadOnly bool   // a volume of ReadOnlyMany claims alone is attached for reading
	// RPCTimeout bounds every RPC to a driver; 15 s when 0, as the sidecars'.
	RPCTimeout time.Duration
	// CapacityPoll is the safety net for drivers whose capacity changes without their saying so; 10 minutes when 0.
	CapacityPoll time.Duration
}

// DriverStatus is what the manager does for a driver.
type DriverStatus struct {
	Name, Endpoint string
	// Controller: the driver has a controller service. Without one there is nothing to provision.
	Controller bool
	Ready      bool
	Roles      []string
	Since      time.Time
	// Err is why the driver is not served yet.
	Err string
}

// Manager runs the provision roles of all drivers.
type Manager struct {
	opts      Options
	metrics   *metrics
	intents   *intents
	kinds     *snapshotKinds            // nil without snapshots
	snapshots atomic.Pointer[snapshots] // nil until the API serves them
	modify    *attributes               // nil without the role
	laneWaits *laneWaits                // nil without the attach role
	holders   holders

	claims      corelisters.PersistentVolumeClaimLister
	claimIndex  cache.Indexer
	volumes     corelisters.PersistentVolumeLister
	volumeIndex cache.Indexer
	nodes       corelisters.NodeLister
	classes     storagelisters.StorageClassLister
	csiNodes    storagelisters.CSINodeLister
	attachments storagelisters.VolumeAttachmentLister
	attachIndex cache.Indexer
	synced      []cache.InformerSynced

	ctx context.Context // Run's; set before running
	wg  sync.WaitGroup

	mu      sync.Mutex
	running bool
	roles   map[string]*role
	waiting map[string]Driver // added before Run
}

const byVolume = "berth.io/provision/volume"

// uidIndex is sig-storage-lib's index of claims; it is added here, before the informers start.
const uidIndex = "uid"

// New prepares the manager and adds its handlers to the informers.
func New(o Options) (*Manager, error) {
	if o.Client == nil || o.Informers == nil {
		return nil, errors.New("provision: Client and Informers are needed")
	}
	if err := checkRoles(o.Without); err != nil {
		return nil, err
	}
	if o.Workers == 0 {
		o.Workers = 16
	}
	if o.CapacityInformers == nil {
		o.CapacityInformers = o.Informers
	}
	if o.RPCTimeout == 0 {
		o.RPCTimeout = 15 * time.Second
	}
	if o.CapacityPoll == 0 {
		o.CapacityPoll = 10 * time.Minute
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	m := &Manager{opts: o, roles: map[string]*role{}, waiting: map[string]Driver{}}
	var err error
	if o.Snap != nil {
		if o.SnapInformers == nil || o.Definitions == nil {
			return nil, errors.New("provision: with Snap, SnapInformers and Definitions are needed")
		}
		if m.kinds, err = newSnapshotKinds(m); err != nil {
			return nil, err
		}
	}
	if m.metrics, err = newMetrics(o.Metrics); err != nil {
		return nil, err
	}
	core, storage := o.Informers.Core().V1(), o.Informers.Storage().V1()
	m.claims, m.claimIndex = core.PersistentVolumeClaims().Lister(), core.PersistentVolumeClaims().Informer().GetIndexer()
	m.volumes, m.volumeIndex = core.PersistentVolumes().Lister(), core.PersistentVolumes().Informer().GetIndexer()
	m.nodes = core.Nodes().Lister()
	m.classes, m.csiNodes = storage.StorageClasses().Lister(), storage.CSINodes().Lister()
	m.attachments, m.attachIndex = storage.VolumeAttachments().Lister(), storage.VolumeAttachments().Informer().GetIndexer()
	m.synced = []cache.InformerSynced{
		core.PersistentVolumeClaims().Informer().HasSynced, core.PersistentVolumes().Informer().HasSynced, core.Nodes().Informer().HasSynced,
		storage.StorageClasses().Informer().HasSynced, storage.CSINodes().Informer().HasSynced, storage.VolumeAttachments().Informer().HasSynced,
	}
	if err := m.index(); err != nil {
		return nil, err
	}
	if m.has(Modify) {
		m.synced = append(m.synced, storage.VolumeAttributesClasses().Informer().HasSynced)
		if m.modify, err = newAttributes(m); err != nil {
			return nil, err
		}
	}
	if m.has(Attach) {
		if m.laneWaits, err = newLaneWaits(m); err != nil {
			return nil, err
		}
	}
	if o.Metrics != nil {
		if err := o.Metrics.Register(loads{m}); err != nil {
			return nil, err
		}
	}
	m.intents = newIntents(m)
	onClaim, onVolume := m.intents.handlers()
	if _, err := core.PersistentVolumeClaims().Informer().AddEventHandler(onClaim); err != nil {
		return nil, err
	}
	if _, err := core.PersistentVolumes().Informer().AddEventHandler(onVolume); err != nil {
		return nil, err
	}
	_, err = storage.VolumeAttachments().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{DeleteFunc: m.attachmentGone})
	return m, err
}

func (m *Manager) index() error {
	claims := scoped{SharedIndexInformer: m.opts.Informers.Core().V1().PersistentVolumeClaims().Informer()}
	err := claims.AddIndexers(cache.Indexers{bySource: indexBySource, byWantedAttributes: indexByWantedAttributes, uidIndex: func(o any) ([]string, error) {
		if c, ok := o.(interface{ GetUID() types.UID }); ok {
			return []string{string(c.GetUID())}, nil
		}
		return nil, nil
	}})
	if err != nil {
		return err
	}
	volumes := scoped{SharedIndexInformer: m.opts.Informers.Core().V1().PersistentVolumes().Informer()}
	err = volumes.AddIndexers(cache.Indexers{snaputils.CSIDriverHandleIndexName: func(o any) ([]string, error) {
		if pv, ok := o.(*v1.PersistentVolume); ok && pv.Spec.CSI != nil {
			return []string{snaputils.PersistentVolumeKeyFunc(pv)}, nil
		}
		return nil, nil
	}})
	if err != nil {
		return err
	}
	attachments := scoped{SharedIndexInformer: m.opts.Informers.Storage().V1().VolumeAttachments().Informer()}
	return attachments.AddIndexers(cache.Indexers{byVolume: func(o any) ([]string, error) {
		if va, ok := o.(*storagev1.VolumeAttachment); ok && va.Spec.Source.PersistentVolumeName != nil {
			return []string{*va.Spec.Source.PersistentVolumeName}, nil
		}
		return nil, nil
	}})
}

// Run serves the drivers until ctx ends, and returns when all their controllers have stopped.
func (m *Manager) Run(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), m.synced...) {
		return ctx.Err()
	}
	m.mu.Lock()
	m.ctx, m.running = ctx, true
	for _, d := range m.waiting {
		m.launch(d)
	}
	m.waiting = nil
	m.mu.Unlock()
	if m.has(Provision) {
		m.wg.Go(func() { m.intents.run(ctx, m.few()) })
	}
	if m.kinds != nil && (m.has(Provision) || m.has(Snapshot) || m.has(SnapshotController)) {
		m.wg.Go(func() { m.kinds.run(ctx) })
		if m.has(Provision) || m.has(SnapshotController) {
			m.wg.Go(func() { m.serveSnapshots(ctx) })
		}
	}
	if m.laneWaits != nil {
		m.wg.Go(func() { work(ctx, m.laneWaits.queue, 1, m.laneWaits.tell) })
	}
	if m.modify != nil {
		m.wg.Go(func() { work(ctx, m.modify.queue, 1, m.modify.settle) })
	}
	<-ctx.Done()
	m.mu.Lock()
	m.running = false
	roles := m.roles
	m.mu.Unlock()
	for _, r := range roles {
		<-r.done
	}
	m.wg.Wait()
	return nil
}

// Synced says whether the manager has seen all that it works from.
func (m *Manager) Synced() bool {
	for _, synced := range m.synced {
		if !synced() {
			return false
		}
	}
	return true
}

// AddDriver serves a driver that registered on the node. It returns at once: a driver that does not answer holds up
// nobody. Adding a driver again changes nothing, unless its socket is another one.
func (m *Manager) AddDriver(_ context.Context, d Driver) error {
	if d.Name == "" || d.Endpoint == "" {
		return errors.New("provision: a driver needs a name and an endpoint")
	}
	m.mu.Lock()
	r := m.roles[d.Name]
	m.mu.Unlock()
	if r != nil && r.driver.Endpoint == d.Endpoint {
		return nil
	}
	if r != nil {
		m.RemoveDriver(d.Name)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.running:
		m.launch(d)
	case m.waiting != nil:
		m.waiting[d.Name] = d
	}
	return nil
}

// launch is called with m.mu held.
func (m *Manager) launch(d Driver) {
	if m.roles[d.Name] != nil {
		return
	}
	ctx, cancel := context.WithCancel(m.ctx)
	r := &role{m: m, driver: d, scope: newScope(d.Name), cancel: cancel, done: make(chan struct{}),
		status: DriverStatus{Name: d.Name, Endpoint: d.Endpoint, Since: time.Now()}}
	m.roles[d.Name] = r
	go r.run(ctx)
}

// RemoveDriver stops what is done for a driver and waits until it has stopped.
func (m *Manager) RemoveDriver(name string) {
	m.mu.Lock()
	r := m.roles[name]
	delete(m.waiting, name)
	m.mu.Unlock()
	if r == nil {
		return
	}
	r.cancel()
	<-r.done
	m.mu.Lock()
	if m.roles[name] == r {
		delete(m.roles, name)
	}
	m.mu.Unlock()
}

// CapacityChanged says that a driver's free space is another one: its CSIStorageCapacity objects are brought up to
// date in a moment (at most once a second), and claims that it refused are asked for again at once.
func (m *Manager) CapacityChanged(driver string) {
	if r := m.role(driver); r != nil && r.ready() {
		r.capacity.changed()
		r.retryRefused()
	}
}

// CapacityAwaited says that a pod waits for room, of whichever driver: what drivers have told of their free space, and what they tell next,
// is in the CSIStorageCapacity objects at once, not within a second. It does not block.
func (m *Manager) CapacityAwaited() {
	m.mu.Lock()
	roles := slices.Collect(maps.Values(m.roles))
	m.mu.Unlock()
	for _, r := range roles {
		if r.ready() {
			r.capacity.awaited()
		}
	}
}

// Status lists the drivers by name.
func (m *Manager) Status() []DriverStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]DriverStatus, 0, len(m.roles))
	for _, r := range m.roles {
		r.mu.Lock()
		s := r.status
		s.Roles = slices.Clone(s.Roles)
		out = append(out, s)
		r.mu.Unlock()
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// Holders lists the RPCs that run now, the oldest first.
func (m *Manager) Holders() []Holder { return m.holders.list() }

// NewAttachment is what the attacher would write on a new VolumeAttachment before its first ControllerPublishVolume: its
// finalizer and the driver's id of the node. Whoever creates the object with them saves that write. Nothing, when the
// driver is not served here, does not publish, or the node's id is not known yet.
func (m *Manager) NewAttachment(driver, node string) (finalizers []string, annotations map[string]string) {
	r := m.role(driver)
	if r == nil || !r.ready() || !r.publishes || !m.has(Attach) {
		return nil, nil
	}
	n, err := m.csiNodes.Get(node)
	if err != nil {
		return nil, nil
	}
	for _, d := range n.Spec.Drivers {
		if d.Name == driver {
			return []string{attctl.GetFinalizerName(driver)}, map[string]string{annNodeID: d.NodeID}
		}
	}
	return nil, nil
}

// annNodeID is external-attacher's.
const annNodeID = "csi.alpha.kubernetes.io/node-id"

// few are the workers for what is rare.
func (m *Manager) few() int { return max(1, m.opts.Workers/4) }

func (m *Manager) role(driver string) *role {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.roles[driver]
}

func (r *role) ready() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status.Ready
}

// serves says whether volumes of the driver can be created and deleted now.
func (m *Manager) serves(driver string) bool {
	r := m.role(driver)
	return r != nil && r.ready() && r.claims != nil
}

// attachedTo is a node that the volume still has a VolumeAttachment for, or "".
func (m *Manager) attachedTo(volume string) string {
	found, _ := m.attachIndex.ByIndex(byVolume, volume)
	for _, o := range found {
		if va, ok := o.(*storagev1.VolumeAttachment); ok {
			return va.Spec.NodeName
		}
	}
	return ""
}

func (m *Manager) attachmentGone(o any) {
	va, ok := last(o).(*storagev1.VolumeAttachment)
	if !ok || va.Spec.Source.PersistentVolumeName == nil {
		return
	}
	if r := m.role(va.Spec.Attacher); r != nil && r.ready() {
		r.look(*va.Spec.Source.PersistentVolumeName)
	}
}
