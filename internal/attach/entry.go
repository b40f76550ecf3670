package attach

import (
	"sort"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/plugin"
)

// key is one volume on one node.
type key struct {
	volume v1.UniqueVolumeName
	node   types.NodeName
}

// entry is what is wanted and what is, for one key. All fields are guarded by world.mu.
type entry struct {
	key
	attacher plugin.Attacher
	volume   *plugin.Volume // nil after a start, when only the node's status names it
	pods     map[types.UID]*v1.Pod

	actual     attachment
	devicePath string
	reported   bool
	persists   bool // see situation
	asked      bool // the attacher was asked to detach, and it is under way
	unlisted   bool // volumesAttached was written without it by this process: what is known of the node was read since

	busy        bool   // a call of an attacher that blocks is under way
	step        string // what is under way or waited for, for Holders
	since       time.Time
	detachSince time.Time // zero while it is wanted
	began       bool      // the journey has this attach's beginning
	told        string    // the last reason told
	forced      string    // why the node is not waited for, already counted
}

// worldState holds all entries. Its methods are called with mu held by the caller where they end in Locked.
type worldState struct {
	entries  map[key]*entry
	byVolume map[v1.UniqueVolumeName]map[types.NodeName]*entry
	byNode   map[types.NodeName]map[v1.UniqueVolumeName]*entry
	byPV     map[string]map[types.NodeName]*entry // by PersistentVolume's name, for VolumeAttachments
	nodes    map[types.NodeName]*node
	pods     map[string]*podRecord      // by namespace/name
	waiting  map[string]map[string]bool // claim → pods that wait for it; both namespace/name
}

func newWorldState() worldState {
	return worldState{
		entries:  map[key]*entry{},
		byVolume: map[v1.UniqueVolumeName]map[types.NodeName]*entry{},
		byNode:   map[types.NodeName]map[v1.UniqueVolumeName]*entry{},
		byPV:     map[string]map[types.NodeName]*entry{},
		nodes:    map[types.NodeName]*node{},
		pods:     map[string]*podRecord{},
		waiting:  map[string]map[string]bool{},
	}
}

// podRecord is what a pod wants.
type podRecord struct {
	uid    types.UID
	keys   map[key]bool
	claims map[string]bool // those that it waits for
}

func (w *worldState) ensure(k key) *entry {
	e := w.entries[k]
	if e == nil {
		e = &entry{key: k, pods: map[types.UID]*v1.Pod{}}
		w.entries[k] = e
		put(w.byVolume, k.volume, k.node, e)
		put(w.byNode, k.node, k.volume, e)
	}
	return e
}

func (w *worldState) setVolume(e *entry, a plugin.Attacher, v *plugin.Volume) {
	e.attacher = a
	if v == nil {
		return
	}
	if e.volume != nil && e.volume.PV != nil && (v.PV == nil || v.PV.Name != e.volume.PV.Name) {
		drop(w.byPV, e.volume.PV.Name, e.node)
	}
	e.volume = v
	if v.PV != nil {
		put(w.byPV, v.PV.Name, e.node, e)
	}
}

// forget removes an entry that is neither wanted nor attached.
func (w *worldState) forget(e *entry) {
	delete(w.entries, e.key)
	drop(w.byVolume, e.key.volume, e.node)
	drop(w.byNode, e.node, e.key.volume)
	if e.volume != nil && e.volume.PV != nil {
		drop(w.byPV, e.volume.PV.Name, e.node)
	}
}

// elsewhere lists the other nodes where the volume is, or may be.
func (w *worldState) elsewhere(e *entry) (nodes []types.NodeName) {
	for n, other := range w.byVolume[e.key.volume] {
		if n != e.node && other.actual != detached {
			nodes = append(nodes, n)
		}
	}
	sort.Slice(nodes, func(i, j int) bool { return nodes[i] < nodes[j] })
	return nodes
}

func put[A, B comparable, V any](m map[A]map[B]V, a A, b B, v V) {
	if m[a] == nil {
		m[a] = map[B]V{}
	}
	m[a][b] = v
}

func drop[A, B comparable, V any](m map[A]map[B]V, a A, b B) {
	delete(m[a], b)
	if len(m[a]) == 0 {
		delete(m, a)
	}
}

// exclusive says whether a volume may be on one node only (upstream IsMultiAttachAllowed, reversed).
func exclusive(v *plugin.Volume) bool {
	if v == nil || v.PV == nil || len(v.PV.Spec.AccessModes) == 0 {
		return false
	}
	for _, m := range v.PV.Spec.AccessModes {
		if m == v1.ReadWriteMany || m == v1.ReadOnlyMany {
			return false
		}
	}
	return true
}
