package mount

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"berth.io/berth/internal/plugin"
)

// refreshPeriod is how often volumes with changing sources are published again in any case: drivers with
// requiresRepublish count on it (the kubelet does it with each sync of the pod, every 60 to 90 s).
const refreshPeriod = 90 * time.Second

// lanesWidth is how many operations of one driver may be under way at once.
const lanesWidth = 32

// Manager is the node's volume manager. All state is under one lock, which is never held during an operation.
type Manager struct {
	opts    Options
	log     *slog.Logger
	metrics *metrics
	claims  corelisters.PersistentVolumeClaimLister
	pvs     corelisters.PersistentVolumeLister
	synced  []cache.InformerSynced
	journal *nodeJournal

	// reportDue and journalDue hold at most one signal each.
	reportDue  chan struct{}
	journalDue chan struct{}

	mu      sync.Mutex
	ctx     context.Context // Run's
	running sync.WaitGroup
	// ready: the caches are filled and the disk is read; before, pods are only noted.
	ready    bool
	complete bool
	// draining: a teardown is under way. wanted are the pods that it takes the volumes from and that live on; with it
	// cancelled they get them back. known is what complete was.
	draining bool
	wanted   map[types.UID]*v1.Pod
	known    bool
	pods     map[types.UID]*podEntry
	order    int
	volumes  map[v1.UniqueVolumeName]*volume
	byClaim  map[types.NamespacedName]map[types.UID]*podEntry
	lanes    map[string]chan struct{}
	// inspecting are the lanes whose drivers are being asked how their volumes are.
	inspecting map[string]bool

	// node is the newest version of this node's object that was seen, from the watch or in answer to a patch.
	node     *v1.Node
	attached map[v1.UniqueVolumeName]string // node.status.volumesAttached: name → device path
	reported map[v1.UniqueVolumeName]bool   // what the API's volumesInUse is known to contain
	// reporting: a patch has left and not succeeded yet; until then the API may name more than reported does.
	reporting bool
	settled   chan struct{} // closed and replaced whenever a report or a forget has happened
}

// New makes a Manager and adds its event handlers to the informers; nothing runs before Run.
func New(o Options) (*Manager, error) {
	switch {
	case o.Client == nil || o.Informers == nil || o.Plugins == nil:
		return nil, errors.New("volume manager: client, informers and plugins are needed")
	case o.DataDir == "" || o.Node == "":
		return nil, errors.New("volume manager: data directory and node name are needed")
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Events == nil {
		o.Events = &record.FakeRecorder{} // without a channel it drops them
	}
	if o.OnChange == nil {
		o.OnChange = func(types.UID) {}
	}
	core := o.Informers.Core().V1()
	m := &Manager{
		opts:       o,
		log:        o.Log,
		claims:     core.PersistentVolumeClaims().Lister(),
		pvs:        core.PersistentVolumes().Lister(),
		journal:    newNodeJournal(o.DataDir),
		reportDue:  make(chan struct{}, 1),
		journalDue: make(chan struct{}, 1),
		pods:       map[types.UID]*podEntry{},
		volumes:    map[v1.UniqueVolumeName]*volume{},
		byClaim:    map[types.NamespacedName]map[types.UID]*podEntry{},
		lanes:      map[string]chan struct{}{},
		inspecting: map[string]bool{},
		attached:   map[v1.UniqueVolumeName]string{},
		reported:   map[v1.UniqueVolumeName]bool{},
		settled:    make(chan struct{}),
	}
	m.metrics = newMetrics(m, o.Metrics)
	if err := m.watch(); err != nil {
		return nil, err
	}
	return m, nil
}

// Run rebuilds the actual state from the disk, then mounts and unmounts until ctx ends and all operations have returned.
func (m *Manager) Run(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), m.synced...) {
		return nil // ctx has ended
	}
	found := m.scan()
	m.mu.Lock()
	m.ctx = ctx
	m.adopt(found)
	m.adoptAttached(ctx)
	m.ready = true
	for _, e := range m.pods {
		if e.pod != nil && !e.released {
			m.resolvePod(e)
		}
	}
	if m.complete {
		m.releaseUnknown()
	}
	m.kickAll()
	m.mu.Unlock()

	m.start(m.reportLoop)
	m.start(m.journalLoop)
	m.start(m.refreshLoop)
	m.start(m.inspectLoop)
	<-ctx.Done()
	m.mu.Lock()
	m.ready = false // no goroutine starts any more
	for _, v := range m.volumes {
		if v.timer != nil {
			v.timer.Stop()
		}
	}
	m.mu.Unlock()
	m.running.Wait()
	return nil
}

// start runs f until ctx ends; Run waits for it.
func (m *Manager) start(f func(context.Context)) {
	m.running.Add(1)
	go func() {
		defer m.running.Done()
		f(m.ctx)
	}()
}

// SetPod makes the pod's volumes desired. It is idempotent; a new version of the pod refreshes what it changes.
func (m *Manager) SetPod(pod *v1.Pod) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.draining {
		m.wanted[pod.UID] = pod
		return
	}
	m.setPod(pod)
}

func (m *Manager) setPod(pod *v1.Pod) {
	e := m.entry(pod.UID)
	old := e.pod
	e.pod, e.released = pod, false
	if e.order == 0 {
		m.order++
		e.order = m.order
	}
	if !m.ready {
		return
	}
	m.resolvePod(e)
	if old != nil && metadataChanged(old, pod) { // downwardAPI volumes show it
		for u := range e.uses {
			m.refreshUse(u)
		}
	}
}

// ReleasePod makes the pod's volumes undesired, also those found on the disk only.
func (m *Manager) ReleasePod(uid types.UID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.wanted, uid)
	e, known := m.pods[uid]
	if !known {
		if m.ready {
			m.changed(uid)
			return
		}
		e = m.entry(uid) // it may be on the disk
	}
	for u := range e.uses {
		u.kept = false
	}
	m.release(e)
}

// PodsComplete says that SetPod was called for every pod of the node's first full list: unmounting may begin.
func (m *Manager) PodsComplete() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.known = true
	if m.complete {
		return
	}
	m.complete = true
	if m.ready {
		m.releaseUnknown()
		m.kickAll()
	}
}

// releaseUnknown releases the pods that are on the disk only.
func (m *Manager) releaseUnknown() {
	for _, e := range m.pods {
		if e.pod == nil || e.released {
			m.release(e)
		}
	}
	m.signal(m.reportDue)
}

// Refresh publishes a volume again because one of its sources has changed. volumeName is the pod's name for it.
func (m *Manager) Refresh(podUID types.UID, volumeName string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.pods[podUID]; e != nil {
		for _, pv := range e.volumes {
			if pv.name == volumeName && pv.use != nil {
				pv.use.refresh = true
				m.wake(pv.use.volume)
			}
		}
	}
}

// refreshUse marks u to be published again where that makes a difference.
func (m *Manager) refreshUse(u *use) {
	if u.desired && u.resolved != nil && u.volume.plugin.Refreshes(u.resolved) {
		u.refresh = true
		m.kick(u.volume)
	}
}

func (m *Manager) refreshLoop(ctx context.Context) {
	t := time.NewTicker(refreshPeriod)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		m.mu.Lock()
		for _, v := range m.volumes {
			for _, u := range v.uses {
				m.refreshUse(u)
			}
		}
		m.mu.Unlock()
	}
}

// lastError is the newest failure of the volume or one of its uses.
func (v *volume) lastError() error {
	if v.err != nil {
		return v.err
	}
	for _, u := range v.uses {
		if u.err != nil {
			return u.err
		}
	}
	return nil
}

// noteSettled wakes a Teardown that waits.
func (m *Manager) noteSettled() {
	close(m.settled)
	m.settled = make(chan struct{})
}

func (m *Manager) signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// changed tells the caller, without our lock.
func (m *Manager) changed(uid types.UID) { go m.opts.OnChange(uid) }

// driverOf names the lane of a volume: its driver, or its plugin.
func driverOf(p plugin.Mounter, v *plugin.Volume) string {
	if d, ok := p.(plugin.Driven); ok {
		if name := d.Driver(v); name != "" {
			return name
		}
	}
	return p.Name()
}
