package attach

import (
	"errors"
	"fmt"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"berth.io/berth/internal/plugin"
)

func (c *Controller) podChanged(p *v1.Pod, _ bool) {
	if p.Spec.NodeName != "" {
		c.podQueue.Add(cache.MetaObjectToName(p).String())
	}
}

// claimChanged wakes the pods that wait for a claim.
func (c *Controller) claimChanged(claim *v1.PersistentVolumeClaim, _ bool) {
	c.wakeWaiting(cache.MetaObjectToName(claim).String())
}

func (c *Controller) volumeChanged(pv *v1.PersistentVolume, _ bool) {
	if r := pv.Spec.ClaimRef; r != nil {
		c.wakeWaiting(r.Namespace + "/" + r.Name)
	}
}

func (c *Controller) wakeWaiting(claim string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for pod := range c.waiting[claim] {
		c.podQueue.Add(pod)
	}
}

// driverChanged: whether a driver's volumes are attached at all may be known now. It happens a few times in a
// cluster's life, so every pod that waits may look again.
func (c *Controller) driverChanged(*storagev1.CSIDriver, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, pods := range c.waiting {
		for pod := range pods {
			c.podQueue.Add(pod)
		}
	}
}

// csiNodeChanged: a driver came to a node, and what failed there may work.
func (c *Controller) csiNodeChanged(n *storagev1.CSINode, _ bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.byNode[types.NodeName(n.Name)] {
		if e.actual == uncertain {
			c.keyQueue.Add(e.key)
		}
	}
}

// syncPod brings what one pod wants up to date.
func (c *Controller) syncPod(name string) {
	ns, podName, err := cache.SplitMetaNamespaceKey(name)
	if err != nil {
		return
	}
	pod, err := c.pods.Pods(ns).Get(podName)
	if err != nil {
		pod = nil
	}
	var wanted []want
	var waits []string
	unresolved := false
	if pod != nil && pod.Spec.NodeName != "" && c.keeps(pod) {
		wanted, waits, unresolved = c.wants(pod)
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	rec := c.worldState.pods[name]
	if rec != nil && (pod == nil || rec.uid != pod.UID) {
		c.release(rec, nil)
		c.stopWaiting(name, rec)
		delete(c.worldState.pods, name)
		rec = nil
	}
	if pod == nil {
		return
	}
	if rec == nil {
		if len(wanted) == 0 && len(waits) == 0 {
			return
		}
		rec = &podRecord{uid: pod.UID, keys: map[key]bool{}}
		c.worldState.pods[name] = rec
	}
	keep := map[key]bool{}
	for _, w := range wanted {
		k := key{w.name, types.NodeName(pod.Spec.NodeName)}
		keep[k] = true
		e := c.ensure(k)
		c.setVolume(e, w.attacher, w.volume)
		if e.pods[pod.UID] == nil {
			e.told = "" // the new pod has not been told yet why it waits
			c.keyQueue.Add(k)
		}
		e.pods[pod.UID] = pod
		rec.keys[k] = true
	}
	if !unresolved {
		// A volume that cannot be resolved just now is still wanted: its pod has not gone.
		c.release(rec, keep)
	}
	c.stopWaiting(name, rec)
	rec.claims = map[string]bool{}
	for _, claim := range waits {
		rec.claims[claim] = true
		put(c.waiting, claim, name, true)
	}
	if len(rec.keys) == 0 && len(rec.claims) == 0 {
		delete(c.worldState.pods, name)
	}
}

// release takes the pod out of all its entries but those to keep.
func (c *Controller) release(rec *podRecord, keep map[key]bool) {
	for k := range rec.keys {
		if keep[k] {
			continue
		}
		delete(rec.keys, k)
		if e := c.entries[k]; e != nil {
			delete(e.pods, rec.uid)
			c.keyQueue.Add(k)
		}
	}
}

func (c *Controller) stopWaiting(name string, rec *podRecord) {
	for claim := range rec.claims {
		drop(c.waiting, claim, name)
	}
	rec.claims = nil
}

// keeps says whether the pod's volumes are wanted: it has not ended, or its node keeps the volumes of pods that have.
func (c *Controller) keeps(p *v1.Pod) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.nodes[types.NodeName(p.Spec.NodeName)]
	return n != nil && n.managed && (n.keepsTerminated || !terminated(p))
}

// terminated as upstream's IsPodTerminated.
func terminated(p *v1.Pod) bool {
	stopped := func(list []v1.ContainerStatus) bool {
		for _, s := range list {
			if s.State.Terminated == nil && s.State.Waiting == nil {
				return false
			}
		}
		return true
	}
	return p.Status.Phase == v1.PodFailed || p.Status.Phase == v1.PodSucceeded ||
		p.DeletionTimestamp != nil && stopped(p.Status.InitContainerStatuses) && stopped(p.Status.ContainerStatuses) && stopped(p.Status.EphemeralContainerStatuses)
}

// want is one volume of a pod that needs an attach.
type want struct {
	name     v1.UniqueVolumeName
	volume   *plugin.Volume
	attacher plugin.Attacher
}

// wants resolves the pod's volumes. Unresolved says that some could not be; waits names the claims among them.
func (c *Controller) wants(p *v1.Pod) (out []want, waits []string, unresolved bool) {
	for i := range p.Spec.Volumes {
		v, claim, err := c.resolve(p, &p.Spec.Volumes[i])
		if err == nil {
			var w want
			if w, err = c.attachable(v); err == nil && w.attacher != nil {
				out = append(out, w)
			}
		}
		if err != nil {
			unresolved = true
			if claim != "" {
				waits = append(waits, claim)
			}
		}
	}
	return out, waits, unresolved
}

// attachable finds the volume's attacher; it is nil when the volume needs none.
func (c *Controller) attachable(v *plugin.Volume) (want, error) {
	p, err := c.opts.Plugins.Find(v)
	if err != nil {
		return want{}, nil // the mount room says so to the user
	}
	a, ok := p.(plugin.Attacher)
	if !ok {
		return want{}, nil
	}
	needed, err := a.Attachable(v)
	if err != nil || !needed {
		return want{}, err
	}
	name, err := a.UniqueName(v)
	return want{name, v, a}, err
}

var errNotBound = errors.New("the claim is not bound")

// resolve follows a pod's volume to its PersistentVolume; claim is namespace/name where there is one.
func (c *Controller) resolve(p *v1.Pod, s *v1.Volume) (v *plugin.Volume, claim string, err error) {
	var name string
	readOnly := false
	switch {
	case s.PersistentVolumeClaim != nil:
		name, readOnly = s.PersistentVolumeClaim.ClaimName, s.PersistentVolumeClaim.ReadOnly
	case s.Ephemeral != nil:
		name = p.Name + "-" + s.Name
	default:
		return &plugin.Volume{Name: s.Name, Pod: p, Source: s}, "", nil
	}
	claim = p.Namespace + "/" + name
	pvc, err := c.claims.PersistentVolumeClaims(p.Namespace).Get(name)
	if err != nil {
		return nil, claim, err
	}
	if s.Ephemeral != nil && !metav1.IsControlledBy(pvc, p) {
		return nil, claim, fmt.Errorf("claim %s was not made for pod %s", claim, p.Name)
	}
	if pvc.Status.Phase != v1.ClaimBound || pvc.Spec.VolumeName == "" {
		return nil, claim, errNotBound
	}
	pv, err := c.volumes.Get(pvc.Spec.VolumeName)
	if err != nil {
		return nil, claim, err
	}
	if pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.UID != pvc.UID {
		return nil, claim, fmt.Errorf("volume %s is not bound to claim %s", pv.Name, claim)
	}
	return &plugin.Volume{Name: s.Name, Pod: p, Claim: pvc, PV: pv, ReadOnly: readOnly}, claim, nil
}

// podsOn lists the names of all pods on a node, for a node that is managed from now on.
func (c *Controller) podsOn(node types.NodeName) (names []string) {
	pods, _ := c.pods.List(labels.Everything())
	for _, p := range pods {
		if p.Spec.NodeName == string(node) {
			names = append(names, cache.MetaObjectToName(p).String())
		}
	}
	return names
}
