package schedule

import (
	"slices"

	"github.com/google/btree"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/types"
	storagehelpers "k8s.io/component-helpers/storage/volume"
)

// cluster is the world as decisions see it: the watch's objects (read-only, shared with the informers' caches), and
// over them what was decided and is not in the watch yet. Only the scheduler's own goroutine touches it.
type cluster struct {
	nodes     map[string]*nodeState
	nodeNames []string // sorted, of nodes that have an object

	placed   map[types.UID]*placedPod
	claimUse map[string]map[types.UID]struct{} // claim key → placed pods that use it

	claims  map[string]*v1.PersistentVolumeClaim
	volumes map[string]*v1.PersistentVolume

	assumedClaims  map[string]*assumed[*v1.PersistentVolumeClaim]
	assumedVolumes map[string]*assumed[*v1.PersistentVolume]

	// Volumes as decisions see them (assumptions included): by class those without a claimRef, smallest first, and
	// by claim key those whose claimRef names the claim. A match costs O(log n), not a scan.
	free    map[string]*btree.BTreeG[*v1.PersistentVolume]
	claimed map[string]map[string]*v1.PersistentVolume

	classes     map[string]*storagev1.StorageClass
	drivers     map[string]*storagev1.CSIDriver
	csiNodes    map[string]*storagev1.CSINode
	capacities  map[string]map[types.NamespacedName]*storagev1.CSIStorageCapacity // by class
	attachments map[string]map[string]*storagev1.VolumeAttachment                 // by node, by name
}

// nodeState is a node and what its pods ask of it. Object is nil while only pods name the node.
type nodeState struct {
	object *v1.Node
	pods   map[types.UID]*placedPod
	used   resources
}

// placedPod is a pod that uses a node: bound to it, or assumed to be (decided, its Binding not seen in the watch yet).
type placedPod struct {
	pod      *v1.Pod
	node     string
	requests resources
}

func newCluster() *cluster {
	return &cluster{
		nodes:          map[string]*nodeState{},
		placed:         map[types.UID]*placedPod{},
		claimUse:       map[string]map[types.UID]struct{}{},
		claims:         map[string]*v1.PersistentVolumeClaim{},
		volumes:        map[string]*v1.PersistentVolume{},
		assumedClaims:  map[string]*assumed[*v1.PersistentVolumeClaim]{},
		assumedVolumes: map[string]*assumed[*v1.PersistentVolume]{},
		free:           map[string]*btree.BTreeG[*v1.PersistentVolume]{},
		claimed:        map[string]map[string]*v1.PersistentVolume{},
		classes:        map[string]*storagev1.StorageClass{},
		drivers:        map[string]*storagev1.CSIDriver{},
		csiNodes:       map[string]*storagev1.CSINode{},
		capacities:     map[string]map[types.NamespacedName]*storagev1.CSIStorageCapacity{},
		attachments:    map[string]map[string]*storagev1.VolumeAttachment{},
	}
}

// claim returns the claim as decisions see it, or nil.
func (c *cluster) claim(key string) *v1.PersistentVolumeClaim {
	if a := c.assumedClaims[key]; a != nil {
		return a.object
	}
	return c.claims[key]
}

// volume returns the volume as decisions see it, or nil.
func (c *cluster) volume(name string) *v1.PersistentVolume {
	if a := c.assumedVolumes[name]; a != nil {
		return a.object
	}
	return c.volumes[name]
}

func (c *cluster) setNode(n *v1.Node) {
	s := c.nodeState(n.Name)
	if s.object == nil {
		at, _ := slices.BinarySearch(c.nodeNames, n.Name)
		c.nodeNames = slices.Insert(c.nodeNames, at, n.Name)
	}
	s.object = n
}

func (c *cluster) removeNode(name string) {
	s := c.nodes[name]
	if s == nil {
		return
	}
	s.object = nil
	if at, found := slices.BinarySearch(c.nodeNames, name); found {
		c.nodeNames = slices.Delete(c.nodeNames, at, at+1)
	}
	if len(s.pods) == 0 {
		delete(c.nodes, name)
	}
}

func (c *cluster) nodeState(name string) *nodeState {
	s := c.nodes[name]
	if s == nil {
		s = &nodeState{pods: map[types.UID]*placedPod{}}
		c.nodes[name] = s
	}
	return s
}

// place counts pod on node, whether the watch says so or it was decided.
func (c *cluster) place(pod *v1.Pod, node string) {
	c.unplace(pod.UID)
	p := &placedPod{pod: pod, node: node, requests: requestsOf(pod)}
	c.placed[pod.UID] = p
	s := c.nodeState(node)
	s.pods[pod.UID] = p
	s.used.add(p.requests)
	for _, key := range claimKeys(pod) {
		if c.claimUse[key] == nil {
			c.claimUse[key] = map[types.UID]struct{}{}
		}
		c.claimUse[key][pod.UID] = struct{}{}
	}
}

// unplace takes the pod off its node; false when it was on none.
func (c *cluster) unplace(uid types.UID) bool {
	p := c.placed[uid]
	if p == nil {
		return false
	}
	delete(c.placed, uid)
	s := c.nodes[p.node]
	delete(s.pods, uid)
	s.used.subtract(p.requests)
	if s.object == nil && len(s.pods) == 0 {
		delete(c.nodes, p.node)
	}
	for _, key := range claimKeys(p.pod) {
		delete(c.claimUse[key], uid)
		if len(c.claimUse[key]) == 0 {
			delete(c.claimUse, key)
		}
	}
	return true
}

// reindex files the volume called name under what decisions see of it now; was is what they saw before.
func (c *cluster) reindex(was *v1.PersistentVolume, name string) {
	if was != nil {
		if was.Spec.ClaimRef == nil {
			if tree := c.free[storagehelpers.GetPersistentVolumeClass(was)]; tree != nil {
				tree.Delete(was)
			}
		} else {
			key := claimRefKey(was.Spec.ClaimRef)
			delete(c.claimed[key], name)
			if len(c.claimed[key]) == 0 {
				delete(c.claimed, key)
			}
		}
	}
	now := c.volume(name)
	switch {
	case now == nil:
	case now.Spec.ClaimRef == nil:
		class := storagehelpers.GetPersistentVolumeClass(now)
		if c.free[class] == nil {
			c.free[class] = btree.NewG(16, smallerVolume)
		}
		c.free[class].ReplaceOrInsert(now)
	default:
		key := claimRefKey(now.Spec.ClaimRef)
		if c.claimed[key] == nil {
			c.claimed[key] = map[string]*v1.PersistentVolume{}
		}
		c.claimed[key][name] = now
	}
}

// smallerVolume orders volumes by capacity, then name.
func smallerVolume(a, b *v1.PersistentVolume) bool {
	if order := a.Spec.Capacity.Storage().Cmp(*b.Spec.Capacity.Storage()); order != 0 {
		return order < 0
	}
	return a.Name < b.Name
}

func (c *cluster) setCapacity(o *storagev1.CSIStorageCapacity) {
	name := types.NamespacedName{Namespace: o.Namespace, Name: o.Name}
	if c.capacities[o.StorageClassName] == nil {
		c.capacities[o.StorageClassName] = map[types.NamespacedName]*storagev1.CSIStorageCapacity{}
	}
	c.capacities[o.StorageClassName][name] = o
}

func (c *cluster) removeCapacity(o *storagev1.CSIStorageCapacity) {
	delete(c.capacities[o.StorageClassName], types.NamespacedName{Namespace: o.Namespace, Name: o.Name})
}

func (c *cluster) setAttachment(a *storagev1.VolumeAttachment) {
	if c.attachments[a.Spec.NodeName] == nil {
		c.attachments[a.Spec.NodeName] = map[string]*storagev1.VolumeAttachment{}
	}
	c.attachments[a.Spec.NodeName][a.Name] = a
}

func (c *cluster) removeAttachment(a *storagev1.VolumeAttachment) {
	delete(c.attachments[a.Spec.NodeName], a.Name)
}
