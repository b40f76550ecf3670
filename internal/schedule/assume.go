package schedule

import (
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	storagehelpers "k8s.io/component-helpers/storage/volume"
)

// assumed is an object as it will be, laid over the watch's until the watch has caught up.
type assumed[T metav1.Object] struct {
	object T
	// owner is the pod whose decision this is.
	owner types.UID
	// written: the API server has answered, object is its answer. Before that the decision can be taken back.
	written bool
}

// newer says that a is newer than b. Versions that cannot be compared (a fake API) count as newer, so that the next
// event of the object decides.
func newer(a, b metav1.Object) bool {
	order, err := resourceversion.CompareResourceVersion(a.GetResourceVersion(), b.GetResourceVersion())
	return err != nil || order > 0
}

// outdated says whether an assumption gives way to the watch's object, which has just changed to now.
func outdated[T metav1.Object](a *assumed[T], now T) bool {
	if a.object.GetUID() != now.GetUID() {
		return true
	}
	if !a.written {
		return false // the write is under way; its answer will replace the assumption
	}
	order, err := resourceversion.CompareResourceVersion(a.object.GetResourceVersion(), now.GetResourceVersion())
	return err != nil || order <= 0
}

func (c *cluster) setClaim(claim *v1.PersistentVolumeClaim) {
	key := claimKey(claim)
	c.claims[key] = claim
	if a := c.assumedClaims[key]; a != nil && outdated(a, claim) {
		delete(c.assumedClaims, key)
	}
}

func (c *cluster) removeClaim(key string) {
	delete(c.claims, key)
	delete(c.assumedClaims, key)
}

func (c *cluster) setVolume(pv *v1.PersistentVolume) {
	was := c.volume(pv.Name)
	c.volumes[pv.Name] = pv
	if a := c.assumedVolumes[pv.Name]; a != nil && outdated(a, pv) {
		delete(c.assumedVolumes, pv.Name)
	}
	c.reindex(was, pv.Name)
}

func (c *cluster) removeVolume(name string) {
	was := c.volume(name)
	delete(c.volumes, name)
	delete(c.assumedVolumes, name)
	c.reindex(was, name)
}

// assume lays a decision over the cluster and returns what must be written for it: the volumes to be prebound and the
// claims to get the selected node. What another pod has already decided in the same way, or the API says already, is
// not written again.
func (c *cluster) assume(pod *v1.Pod, d *decision) (volumes []*v1.PersistentVolume, claims []*v1.PersistentVolumeClaim, err error) {
	for i := range d.prebinds {
		b := &d.prebinds[i]
		bound, changed, err := storagehelpers.GetBindVolumeToClaim(b.volume, b.claim)
		if err != nil {
			return nil, nil, err
		}
		if changed {
			volumes = append(volumes, bound)
		}
	}
	for _, pv := range volumes {
		was := c.volume(pv.Name)
		c.assumedVolumes[pv.Name] = &assumed[*v1.PersistentVolume]{object: pv, owner: pod.UID}
		c.reindex(was, pv.Name)
	}
	for _, claim := range d.provisions {
		if claim.Annotations[storagehelpers.AnnSelectedNode] == d.node {
			continue
		}
		selected := *claim // shallow: only the annotations differ, and they get a map of their own
		selected.Annotations = make(map[string]string, len(claim.Annotations)+1)
		for k, v := range claim.Annotations {
			selected.Annotations[k] = v
		}
		selected.Annotations[storagehelpers.AnnSelectedNode] = d.node
		c.assumedClaims[claimKey(claim)] = &assumed[*v1.PersistentVolumeClaim]{object: &selected, owner: pod.UID}
		claims = append(claims, &selected)
	}
	c.place(pod, d.node)
	return volumes, claims, nil
}

// confirmClaim replaces an assumption by the API server's answer.
func (c *cluster) confirmClaim(claim *v1.PersistentVolumeClaim, owner types.UID) {
	key := claimKey(claim)
	cached := c.claims[key]
	if cached == nil || cached.UID != claim.UID || !newer(claim, cached) {
		delete(c.assumedClaims, key)
		return
	}
	c.assumedClaims[key] = &assumed[*v1.PersistentVolumeClaim]{object: claim, owner: owner, written: true}
}

// confirmVolume replaces an assumption by the API server's answer.
func (c *cluster) confirmVolume(pv *v1.PersistentVolume, owner types.UID) {
	was := c.volume(pv.Name)
	cached := c.volumes[pv.Name]
	if cached == nil || cached.UID != pv.UID || !newer(pv, cached) {
		delete(c.assumedVolumes, pv.Name)
	} else {
		c.assumedVolumes[pv.Name] = &assumed[*v1.PersistentVolume]{object: pv, owner: owner, written: true}
	}
	c.reindex(was, pv.Name)
}

// unassumeClaim takes back what the pod decided for a claim, unless it is written; true when there was such a thing.
func (c *cluster) unassumeClaim(key string, owner types.UID) bool {
	a := c.assumedClaims[key]
	if a == nil || a.owner != owner || a.written {
		return false
	}
	delete(c.assumedClaims, key)
	return true
}

// unassumeVolume takes back what the pod decided for a volume, unless it is written; true when there was such a thing.
func (c *cluster) unassumeVolume(name string, owner types.UID) bool {
	a := c.assumedVolumes[name]
	if a == nil || a.owner != owner || a.written {
		return false
	}
	delete(c.assumedVolumes, name)
	c.reindex(a.object, name)
	return true
}
