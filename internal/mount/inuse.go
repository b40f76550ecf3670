package mount

import (
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/boundary"
)

// reportLoop keeps node.status.volumesInUse. One patch is in flight at a time and carries all that is known when it leaves, so volumes that
// come together share one.
//
// The report guards against a detach: whoever detaches reads the list live after taking the volume out of volumesAttached.
// So a mount may begin only when the report is in the API and volumesAttached, read not before that, still has the volume;
// the answer to the patch is exactly such a reading.
func (m *Manager) reportLoop(ctx context.Context) {
	var back backoff
	retry := time.NewTimer(time.Hour)
	retry.Stop()
	defer retry.Stop()
	for {
		if due := m.report(ctx, &back); !due.IsZero() {
			retry.Reset(time.Until(due))
		}
		select {
		case <-ctx.Done():
			return
		case <-m.reportDue:
		case <-retry.C:
		}
	}
}

// report patches the list when it differs, and returns when to try again after a failure.
func (m *Manager) report(ctx context.Context, back *backoff) time.Time {
	m.mu.Lock()
	if m.node == nil {
		m.mu.Unlock()
		return time.Time{} // the node's event wakes us
	}
	want := m.inUse()
	if sameNames(want, m.node.Status.VolumesInUse) {
		m.reportedNow(want)
		m.mu.Unlock()
		return time.Time{}
	}
	// From here until the answer, a name that the patch leaves out may be gone from the API.
	for name := range m.reported {
		if !slices.Contains(want, name) {
			delete(m.reported, name)
		}
	}
	m.reporting = true
	m.mu.Unlock()

	patch, err := json.Marshal(map[string]any{"status": map[string]any{"volumesInUse": want}})
	if err != nil {
		panic(err) // a list of strings
	}
	var node *v1.Node
	err = boundary.Do("mount/report-volumes-in-use", func() error {
		var err error
		node, err = m.opts.Client.CoreV1().Nodes().Patch(ctx, m.opts.Node, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
		return err
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		if ctx.Err() != nil {
			return time.Time{}
		}
		if apierrors.IsNotFound(err) {
			m.reporting = false
			m.node = nil // it is made again by the node's registration, whose event wakes us
			return time.Time{}
		}
		back.fail(time.Now())
		m.log.Warn("node.status.volumesInUse can't be written", "node", m.opts.Node, "err", err, "retry", back.until)
		return back.until
	}
	back.reset()
	m.reporting = false
	m.nodeSeen(node)
	m.reportedNow(want)
	m.noteSettled()
	return time.Time{}
}

// inUse lists what belongs into the report. Until every pod is known, what an earlier process reported stays.
func (m *Manager) inUse() []v1.UniqueVolumeName {
	want := []v1.UniqueVolumeName{}
	for name, v := range m.volumes {
		if v.inUse() {
			want = append(want, name)
		}
	}
	if !m.complete && m.node != nil {
		want = append(want, m.node.Status.VolumesInUse...)
	}
	slices.Sort(want)
	return slices.Compact(want)
}

// VolumesInUse is what node.status.volumesInUse must say now. Whoever makes the Node puts it in (as the kubelet does): a Node
// that is made again without it would let volumes be detached that are mounted here.
func (m *Manager) VolumesInUse() []v1.UniqueVolumeName {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.inUse()
}

func (m *Manager) reportedNow(names []v1.UniqueVolumeName) {
	news := map[v1.UniqueVolumeName]bool{}
	for _, name := range names {
		news[name] = true
	}
	old := m.reported
	m.reported = news
	for name := range news {
		if v := m.volumes[name]; v != nil && !old[name] {
			m.kick(v)
		}
	}
}

// nodeSeen takes a version of the node's object unless a newer one was seen: the watch may be behind our own patch.
func (m *Manager) nodeSeen(node *v1.Node) {
	if m.node != nil && m.node.UID == node.UID && newer(m.node.ResourceVersion, node.ResourceVersion) {
		return
	}
	old := m.node
	m.node = node
	attached := make(map[v1.UniqueVolumeName]string, len(node.Status.VolumesAttached))
	for _, a := range node.Status.VolumesAttached {
		attached[a.Name] = a.DevicePath
	}
	was := m.attached
	m.attached = attached
	for name := range attached {
		if _, had := was[name]; !had {
			if v := m.volumes[name]; v != nil {
				m.kick(v)
			}
		}
	}
	if old == nil || !sameLabels(old, node) {
		m.resolveWaiting()
	}
	if old == nil || !sameNames(old.Status.VolumesInUse, node.Status.VolumesInUse) {
		m.signal(m.reportDue)
	}
}

func (m *Manager) nodeGone() {
	m.node = nil
	m.attached = map[v1.UniqueVolumeName]string{}
	m.reported = map[v1.UniqueVolumeName]bool{}
}

// newer compares resource versions, which the API server promises to be ordered numbers.
func newer(a, b string) bool {
	x, errX := strconv.ParseUint(a, 10, 64)
	y, errY := strconv.ParseUint(b, 10, 64)
	return errX == nil && errY == nil && x > y
}

func sameNames(a, b []v1.UniqueVolumeName) bool {
	if len(a) != len(b) {
		return false
	}
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}
