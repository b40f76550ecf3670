package mount

import (
	"fmt"
	"maps"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"berth.io/berth/internal/plugin"
)

// watch adds the event handlers. Each finds what the event concerns and lets it decide again.
func (m *Manager) watch() error {
	core, storage := m.opts.Informers.Core().V1(), m.opts.Informers.Storage().V1()
	for _, w := range []struct {
		informer cache.SharedIndexInformer
		seen     func(obj any, deleted bool)
	}{
		{core.PersistentVolumeClaims().Informer(), m.claimSeen},
		{core.PersistentVolumes().Informer(), m.pvSeen},
		{core.Nodes().Informer(), m.nodeEvent},
		{storage.VolumeAttachments().Informer(), m.attachmentSeen},
		{storage.CSIDrivers().Informer(), m.driverSeen},
		{storage.CSINodes().Informer(), m.csiNodeSeen},
	} {
		handle := func(obj any, deleted bool) {
			if last, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = last.Obj
			}
			m.mu.Lock()
			defer m.mu.Unlock()
			w.seen(obj, deleted)
		}
		registration, err := w.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(obj any) { handle(obj, false) },
			UpdateFunc: func(_, obj any) { handle(obj, false) },
			DeleteFunc: func(obj any) { handle(obj, true) },
		})
		if err != nil {
			return fmt.Errorf("volume manager: watch: %w", err)
		}
		m.synced = append(m.synced, registration.HasSynced)
	}
	for _, p := range m.opts.Plugins.All() {
		if n, ok := p.(plugin.DriverNotifier); ok {
			n.NotifyDrivers(m.driverCame)
		}
	}
	return nil
}

func (m *Manager) claimSeen(obj any, _ bool) {
	if c, ok := obj.(*v1.PersistentVolumeClaim); ok {
		m.resolveClaim(types.NamespacedName{Namespace: c.Namespace, Name: c.Name})
	}
}

func (m *Manager) pvSeen(obj any, _ bool) {
	if pv, ok := obj.(*v1.PersistentVolume); ok && pv.Spec.ClaimRef != nil {
		m.resolveClaim(types.NamespacedName{Namespace: pv.Spec.ClaimRef.Namespace, Name: pv.Spec.ClaimRef.Name})
	}
}

func (m *Manager) resolveClaim(key types.NamespacedName) {
	if !m.ready {
		return
	}
	for _, e := range m.byClaim[key] {
		m.resolvePod(e)
	}
}

func (m *Manager) nodeEvent(obj any, deleted bool) {
	node, ok := obj.(*v1.Node)
	switch {
	case !ok || node.Name != m.opts.Node:
	case deleted:
		if m.node == nil || m.node.UID == node.UID {
			m.nodeGone()
		}
	default:
		m.nodeSeen(node)
	}
}

// attachmentSeen matters where the node attaches by itself, and after a stage that found the volume not attached.
func (m *Manager) attachmentSeen(obj any, _ bool) {
	va, ok := obj.(*storagev1.VolumeAttachment)
	if !ok || va.Spec.NodeName != m.opts.Node || va.Spec.Source.PersistentVolumeName == nil {
		return
	}
	for _, v := range m.volumes {
		if v.specName == *va.Spec.Source.PersistentVolumeName && v.unsettled() {
			v.attachPending = ""
			m.wake(v)
		}
	}
}

// driverSeen: whether an attach is needed, and how volumes are published, may have changed.
func (m *Manager) driverSeen(obj any, _ bool) {
	d, ok := obj.(*storagev1.CSIDriver)
	if !ok {
		return
	}
	m.resolveWaiting()
	for _, v := range m.volumes {
		if v.lane == d.Name && v.unsettled() {
			m.wake(v)
		}
	}
}

// csiNodeSeen: a driver has come or gone on this node.
func (m *Manager) csiNodeSeen(obj any, _ bool) {
	n, ok := obj.(*storagev1.CSINode)
	if !ok || n.Name != m.opts.Node {
		return
	}
	for _, v := range m.volumes {
		if v.unsettled() {
			m.wake(v)
		}
	}
}

// driverCame wakes the volumes of a driver that has registered on this node. The CSINode object may not change with it: after a
// restart it names the driver already.
func (m *Manager) driverCame(driver string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.resolveWaiting() // what it can do may not have been known
	for _, v := range m.volumes {
		if v.lane == driver && v.unsettled() {
			m.wake(v)
		}
	}
}

// resolveWaiting resolves the pods again that have an unresolved or an unmounted volume.
func (m *Manager) resolveWaiting() {
	if !m.ready {
		return
	}
	for _, e := range m.pods {
		if e.pod == nil || e.released {
			continue
		}
		for _, pv := range e.volumes {
			if pv.use == nil || pv.use.state != present {
				m.resolvePod(e)
				break
			}
		}
	}
}

// unsettled: something is still to be done, or has failed.
func (v *volume) unsettled() bool {
	if v.err != nil || v.attachPending != "" || v.stage == uncertain {
		return true
	}
	for _, u := range v.uses {
		if u.err != nil || u.desired != (u.state == present) {
			return true
		}
	}
	return !v.wanted()
}

func sameLabels(a, b *v1.Node) bool { return maps.Equal(a.Labels, b.Labels) }
