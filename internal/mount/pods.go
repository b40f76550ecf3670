package mount

import (
	"errors"
	"maps"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/plugin"
	"berth.io/berth/internal/trace"
)

// podEntry is one pod with its volumes; pod is nil for one that was only found on the disk.
type podEntry struct {
	uid      types.UID
	pod      *v1.Pod
	order    int
	released bool
	volumes  []*podVolume
	uses     map[*use]bool
	claims   []types.NamespacedName
	// broken are the directories of volumes that could not be read back; they are cleaned when the pod has left.
	broken []brokenDir

	// cleaning: a goroutine removes the pod's directory, after which the entry goes too.
	cleaning bool
	cleanErr error
	clean    backoff
}

// podVolume is one entry of pod.spec.volumes that a container uses.
type podVolume struct {
	name string
	// use is nil until the volume could be resolved. Two entries with the same claim share one.
	use   *use
	wait  string
	err   error
	since time.Time
}

func (m *Manager) entry(uid types.UID) *podEntry {
	e := m.pods[uid]
	if e == nil {
		e = &podEntry{uid: uid, uses: map[*use]bool{}}
		m.pods[uid] = e
	}
	return e
}

// resolvePod brings the desired state up to what the pod and the caches say now.
func (m *Manager) resolvePod(e *podEntry) {
	mounts, devices := usedVolumes(e.pod)
	before := map[string]*podVolume{}
	for _, pv := range e.volumes {
		before[pv.name] = pv
	}
	m.indexClaims(e)
	e.volumes = e.volumes[:0:0]
	unresolved := false
	for i := range e.pod.Spec.Volumes {
		source := &e.pod.Spec.Volumes[i]
		if !mounts[source.Name] && !devices[source.Name] {
			continue
		}
		pv := before[source.Name]
		if pv == nil {
			pv = &podVolume{name: source.Name}
		}
		e.volumes = append(e.volumes, pv)
		m.resolveVolume(e, pv, source, mounts[source.Name], devices[source.Name])
		unresolved = unresolved || pv.use == nil
	}
	for u := range e.uses {
		if u.resolved == nil { // found on the disk, and claimed by none of the pod's volumes
			u.held = unresolved
		}
		m.kick(u.volume)
	}
}

func (m *Manager) resolveVolume(e *podEntry, pv *podVolume, source *v1.Volume, mounted, device bool) {
	v, err := m.resolve(e.pod, source)
	var p plugin.Mounter
	var name v1.UniqueVolumeName
	if err == nil {
		p, name, err = m.plugin(v)
	}
	if err == nil && (pv.use == nil || pv.use.state == absent) {
		err = m.admit(v, mounted, device)
	}
	if err != nil {
		m.unresolvable(e, pv, source, err)
		return
	}
	attachable := false
	if a, ok := p.(plugin.Attacher); ok {
		if attachable, err = a.Attachable(v); err != nil {
			m.unresolvable(e, pv, source, err)
			return
		}
	}
	stages, err := p.Staged(v)
	if err != nil {
		m.unresolvable(e, pv, source, err)
		return
	}
	vol := m.volumes[name]
	if vol == nil {
		vol = &volume{name: name, uses: map[types.UID]*use{}}
		m.volumes[name] = vol
	}
	vol.plugin, vol.latest, vol.specName, vol.claim, vol.mode = p, v, v.SpecName(), trace.Claim(v.Claim), v.Mode()
	vol.stages, vol.lane = stages, driverOf(p, v)
	if !vol.there() { // what is attached and mounted stays so until it is unmounted, whatever the CSIDriver object says now
		vol.attachable = attachable
	}
	if l, ok := p.(plugin.StagedLister); ok && stages {
		vol.globalPath = l.GlobalPath(v)
	}
	u := vol.uses[e.uid]
	if u == nil {
		u = &use{volume: vol, pod: e.uid}
		vol.uses[e.uid] = u
		m.signal(m.journalDue)
	}
	u.order, u.ref, u.resolved, u.specName, u.mode = e.order, trace.Pod(e.pod), v, v.SpecName(), v.Mode()
	u.desired, u.held = true, false
	e.uses[u] = true
	if pv.use != u {
		pv.use, pv.wait, pv.err, pv.since = u, "", nil, time.Now()
	}
	if vol.attachable && !m.reported[name] {
		m.signal(m.reportDue)
	}
}

// unresolvable notes why a volume can't be mounted now. One that is mounted stays: losing its claim is no reason to pull it away.
func (m *Manager) unresolvable(e *podEntry, pv *podVolume, source *v1.Volume, err error) {
	if pv.use != nil {
		return
	}
	wait, waits := &waitError{}, false
	if waits = errors.As(err, &wait); !waits && errors.Is(err, plugin.ErrDriverStarting) {
		wait, waits = &waitError{err.Error()}, true
	}
	if waits {
		if pv.wait != wait.reason {
			pv.wait, pv.err, pv.since = wait.reason, nil, time.Now()
			m.traceWaiting(trace.Published, e.pod, claimName(e.pod, source), "", wait.reason)
		}
		return
	}
	if pv.err == nil || pv.err.Error() != err.Error() {
		pv.wait, pv.err, pv.since = "", err, time.Now()
		m.refused(e.pod, source, err)
		m.changed(e.uid)
	}
}

// plugin finds the plugin that mounts v.
func (m *Manager) plugin(v *plugin.Volume) (plugin.Mounter, v1.UniqueVolumeName, error) {
	p, err := m.opts.Plugins.Find(v)
	if err != nil {
		return nil, "", err
	}
	mounter, ok := p.(plugin.Mounter)
	if !ok {
		return nil, "", &plugin.ErrNotServed{Volume: v.SpecName(), Type: plugin.SourceType(v)}
	}
	name, err := p.UniqueName(v)
	return mounter, name, err
}

// indexClaims lets the events of the pod's claims find the pod.
func (m *Manager) indexClaims(e *podEntry) {
	var claims []types.NamespacedName
	if e.pod != nil && !e.released {
		for i := range e.pod.Spec.Volumes {
			if name := claimName(e.pod, &e.pod.Spec.Volumes[i]); name != "" {
				claims = append(claims, types.NamespacedName{Namespace: e.pod.Namespace, Name: name})
			}
		}
	}
	for _, key := range e.claims {
		delete(m.byClaim[key], e.uid)
		if len(m.byClaim[key]) == 0 {
			delete(m.byClaim, key)
		}
	}
	for _, key := range claims {
		if m.byClaim[key] == nil {
			m.byClaim[key] = map[types.UID]*podEntry{}
		}
		m.byClaim[key][e.uid] = e
	}
	e.claims = claims
}

// release makes everything of the pod undesired.
func (m *Manager) release(e *podEntry) {
	e.released = true
	e.volumes = nil
	m.indexClaims(e)
	for u := range e.uses {
		if u.kept {
			continue
		}
		u.desired, u.held, u.refresh = false, false, false
		u.back.wake()
		m.wake(u.volume)
	}
	m.tidyPod(e)
}

// dropUse forgets a use of which nothing is there any more.
func (m *Manager) dropUse(u *use) {
	delete(u.volume.uses, u.pod)
	m.signal(m.journalDue)
	if e := m.pods[u.pod]; e != nil {
		delete(e.uses, u)
		m.tidyPod(e)
	}
}

func metadataChanged(a, b *v1.Pod) bool {
	return !maps.Equal(a.Labels, b.Labels) || !maps.Equal(a.Annotations, b.Annotations)
}
