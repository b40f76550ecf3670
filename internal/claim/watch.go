package claim

import (
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/client-go/tools/cache"
)

// handle registers typed handlers on an informer and makes Run wait until they have seen the first list. deleted may
// be told of an object whose last state was missed; sure is false then, and the deletion itself is certain only as
// far as the list was.
func handle[T any](c *Controller, inf cache.SharedIndexInformer, changed func(old, now T), deleted func(last T, sure bool)) error {
	reg, err := inf.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) {
			var none T
			if now, ok := o.(T); ok {
				changed(none, now)
			}
		},
		UpdateFunc: func(o, n any) {
			old, ok1 := o.(T)
			now, ok2 := n.(T)
			if ok1 && ok2 {
				changed(old, now)
			}
		},
		DeleteFunc: func(o any) {
			sure := true
			if unknown, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o, sure = unknown.Obj, false
			}
			if last, ok := o.(T); ok && deleted != nil {
				deleted(last, sure)
			}
		},
	})
	if err != nil {
		return err
	}
	c.synced = append(c.synced, reg.HasSyncedChecker())
	return nil
}

func (c *Controller) watchClaims() error {
	inf := c.opts.Informers.Core().V1().PersistentVolumeClaims().Informer()
	return handle(c, inf, func(old, now *v1.PersistentVolumeClaim) {
		if old != nil && old.UID != now.UID {
			c.claimGone(old, true) // deleted and made again between two lists
		}
		c.claims.put(now)
		c.claimQueue.Add(keyOf(now))
		for _, tell := range c.onClaim {
			tell(old, now)
		}
	}, c.claimGone)
}

// claimGone wakes what the deletion of a claim concerns: the volume that it names and those that name it (a volume
// that was just provisioned for it may not be named by it yet).
func (c *Controller) claimGone(claim *v1.PersistentVolumeClaim, sure bool) {
	key := keyOf(claim)
	c.claims.remove(claim, sure)
	c.stats.abandon("provision", key)
	c.claimQueue.Add(key)
	if v := claim.Spec.VolumeName; v != "" {
		c.volumeQueue.Add(v)
	}
	for _, name := range c.volumes.referTo(key) {
		c.volumeQueue.Add(name)
	}
	for _, tell := range c.onClaimGone {
		tell(claim)
	}
}

func (c *Controller) watchVolumes() error {
	inf := c.opts.Informers.Core().V1().PersistentVolumes().Informer()
	return handle(c, inf, func(old, now *v1.PersistentVolume) {
		if old != nil && old.UID != now.UID {
			c.volumeGone(old)
		}
		c.volumes.put(now)
		c.volumeQueue.Add(now.Name)
		// The claim of a volume that a provisioner or a scheduler has just bound is worked on at once, without the way
		// through the volume worker: this is the hot path.
		if r := now.Spec.ClaimRef; r != nil {
			if claim := c.claims.get(keyOfRef(r)); claim != nil && claim.Status.Phase != v1.ClaimBound {
				c.claimQueue.Add(keyOfRef(r))
			}
		}
		for _, tell := range c.onVolume {
			tell(old, now)
		}
	}, func(last *v1.PersistentVolume, _ bool) { c.volumeGone(last) })
}

// volumeGone wakes the claims that lose their volume.
func (c *Controller) volumeGone(pv *v1.PersistentVolume) {
	c.volumes.remove(pv)
	c.stats.finish("delete", pv.Name)
	c.ops.forget("delete/" + pv.Name)
	c.ops.forget("recycle/" + pv.Name)
	c.told.forget("volume/" + pv.Name)
	if r := pv.Spec.ClaimRef; r != nil {
		c.claimQueue.Add(keyOfRef(r))
	}
	for _, claim := range c.claims.namesVolume(pv.Name) {
		c.claimQueue.Add(keyOf(claim))
	}
	for _, tell := range c.onVolumeGone {
		tell(pv)
	}
}

// watchClasses wakes the claims that wait for a class, or for a default class.
func (c *Controller) watchClasses() error {
	inf := c.opts.Informers.Storage().V1().StorageClasses().Informer()
	return handle(c, inf, func(_, now *storagev1.StorageClass) {
		for _, key := range c.waiting.ofClass(now.Name) {
			c.claimQueue.Add(key)
		}
		if defaultClass([]*storagev1.StorageClass{now}) != nil {
			for _, key := range c.waiting.ofClass("") {
				c.claimQueue.Add(key)
			}
		}
	}, nil)
}

// watchPods: a pod that waits for a node changes what its claims say they wait for; a pod that has ended may have
// kept a volume from being recycled.
func (c *Controller) watchPods() error {
	inf := c.opts.Informers.Core().V1().Pods().Informer()
	return handle(c, inf, func(old, now *v1.Pod) {
		c.pods.saw(now.ResourceVersion)
		switch {
		case terminated(now):
			c.podEnded(now)
		case old == nil && now.Spec.NodeName == "":
			for _, key := range claimsOfPod(now) {
				if claim := c.claims.get(key); claim == nil || claim.Spec.VolumeName == "" {
					c.claimQueue.AddAfter(key, podWait)
				}
			}
		}
	}, func(last *v1.Pod, sure bool) {
		if sure {
			c.pods.saw(last.ResourceVersion)
		}
		c.podEnded(last)
	})
}

func (c *Controller) podEnded(pod *v1.Pod) {
	for _, key := range claimsOfPod(pod) {
		if c.claims.get(key) != nil {
			continue
		}
		for _, name := range c.volumes.referTo(key) {
			c.volumeQueue.Add(name)
		}
	}
}
