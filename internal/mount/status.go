package mount

import (
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Status reports the pod's volumes.
func (m *Manager) Status(uid types.UID) PodStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.pods[uid]
	if e == nil {
		return PodStatus{AllUnmounted: true}
	}
	if e.pod == nil || e.released {
		return m.leaving(e)
	}
	s := PodStatus{AllMounted: m.ready}
	for _, pv := range e.volumes {
		vs := VolumeStatus{Name: pv.name, Mode: v1.PersistentVolumeFilesystem, Waiting: pv.wait, Err: pv.err, Since: pv.since}
		if u := pv.use; u != nil {
			vs = u.status(pv.name)
		}
		s.AllMounted = s.AllMounted && vs.Mounted
		s.Volumes = append(s.Volumes, vs)
	}
	if !m.ready {
		s.AllMounted = len(e.pod.Spec.Volumes) == 0
	}
	return s
}

// leaving is the status of a pod that goes.
func (m *Manager) leaving(e *podEntry) PodStatus {
	var s PodStatus
	for u := range e.uses {
		vs := u.status(u.specName)
		if !m.complete {
			vs.Waiting = "the node's list of pods, before anything is unmounted"
		}
		s.Volumes = append(s.Volumes, vs)
	}
	if e.cleanErr != nil {
		s.Volumes = append(s.Volumes, VolumeStatus{Name: "pod directory", Err: e.cleanErr})
	}
	slices.SortFunc(s.Volumes, func(a, b VolumeStatus) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return s
}

func (u *use) status(name string) VolumeStatus {
	vs := VolumeStatus{
		Name:    name,
		Mode:    u.mode,
		Mounted: u.state == present && !u.settling,
		Path:    u.path,
		Waiting: u.wait,
		Err:     u.err,
		Since:   u.since,
	}
	if u.resolved != nil && u.resolved.PV != nil {
		vs.PV = u.resolved.PV.Name
	}
	if vs.Err == nil && !vs.Mounted {
		vs.Err = u.volume.err
	}
	return vs
}

// Holders lists the operations under way, the oldest first.
func (m *Manager) Holders() []Holder {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Holder
	for _, v := range m.volumes {
		if v.op != nil {
			out = append(out, *v.op)
		}
	}
	slices.SortFunc(out, func(a, b Holder) int { return a.Since.Compare(b.Since) })
	return out
}

// KnownPods lists the pods that have, or may have, something mounted here, including those found on the disk only.
func (m *Manager) KnownPods() []types.UID {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []types.UID
	for uid := range m.pods {
		out = append(out, uid)
	}
	slices.Sort(out)
	return out
}
