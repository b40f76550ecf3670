package schedule

import (
	"fmt"
	"maps"
	"slices"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/client-go/tools/cache"
)

// watch registers a handler for each kind. The handlers only put work into the inbox.
func (s *Scheduler) watch() error {
	core, storage := s.Informers.Core().V1(), s.Informers.Storage().V1()
	for kind, add := range map[string]func() (cache.ResourceEventHandlerRegistration, error){
		"pods": func() (cache.ResourceEventHandlerRegistration, error) {
			return on(s, core.Pods().Informer(), s.podSet, s.podGone)
		},
		"claims": func() (cache.ResourceEventHandlerRegistration, error) {
			return on(s, core.PersistentVolumeClaims().Informer(), s.claimSet, s.claimGone)
		},
		"volumes": func() (cache.ResourceEventHandlerRegistration, error) {
			return on(s, core.PersistentVolumes().Informer(), s.volumeSet, s.volumeGone)
		},
		"nodes": func() (cache.ResourceEventHandlerRegistration, error) {
			return on(s, core.Nodes().Informer(), s.nodeSet, s.nodeGone)
		},
		"csinodes": func() (cache.ResourceEventHandlerRegistration, error) {
			return on(s, storage.CSINodes().Informer(), s.csiNodeSet, s.csiNodeGone)
		},
		"csidrivers": func() (cache.ResourceEventHandlerRegistration, error) {
			return on(s, storage.CSIDrivers().Informer(), s.driverSet, s.driverGone)
		},
		"classes": func() (cache.ResourceEventHandlerRegistration, error) {
			return on(s, storage.StorageClasses().Informer(), s.classSet, s.classGone)
		},
		"capacities": func() (cache.ResourceEventHandlerRegistration, error) {
			return on(s, storage.CSIStorageCapacities().Informer(), s.capacitySet, s.capacityGone)
		},
		"attachments": func() (cache.ResourceEventHandlerRegistration, error) {
			return on(s, storage.VolumeAttachments().Informer(), s.attachmentSet, s.attachmentGone)
		},
	} {
		registration, err := add()
		if err != nil {
			return fmt.Errorf("watch %s: %w", kind, err)
		}
		s.synced = append(s.synced, registration.HasSynced)
	}
	return nil
}

// on has set called with each new state of an object (was is nil at first) and gone with the last one, both on the
// scheduler's goroutine.
func on[T any](s *Scheduler, informer cache.SharedIndexInformer, set func(was, now *T), gone func(*T)) (cache.ResourceEventHandlerRegistration, error) {
	return informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) {
			if now, ok := o.(*T); ok {
				s.inbox.put(func() { set(nil, now) })
			}
		},
		UpdateFunc: func(was, o any) {
			before, ok := was.(*T)
			if now, ok2 := o.(*T); ok && ok2 {
				s.inbox.put(func() { set(before, now) })
			}
		},
		DeleteFunc: func(o any) {
			if tombstone, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = tombstone.Obj
			}
			if last, ok := o.(*T); ok {
				s.inbox.put(func() { gone(last) })
			}
		},
	})
}

func (s *Scheduler) podSet(was, pod *v1.Pod) {
	p := s.pods[pod.UID]
	switch {
	case pod.Spec.NodeName != "":
		if p != nil {
			s.leave(p)
		}
		if !finished(pod) {
			s.cluster.place(pod, pod.Spec.NodeName)
		} else if s.cluster.unplace(pod.UID) {
			s.wake(wakePodGone)
		}
	case !wanted(pod):
		s.drop(p)
	case p == nil:
		if s.cluster.placed[pod.UID] == nil { // else it is bound and this event is older than that
			s.admit(pod)
		}
	default:
		p.pod = pod
		if p.phase == refused && was != nil && !apiequality.Semantic.DeepEqual(&was.Spec, &pod.Spec) {
			s.requeue(p)
		}
	}
}

func (s *Scheduler) podGone(pod *v1.Pod) {
	s.drop(s.pods[pod.UID])
	if s.cluster.unplace(pod.UID) {
		s.wake(wakePodGone)
	}
}

// drop gives up a pod that wants no node any more.
func (s *Scheduler) drop(p *pendingPod) {
	if p == nil {
		return
	}
	s.leave(p)
	s.undo(p)
}

func (s *Scheduler) claimSet(_, claim *v1.PersistentVolumeClaim) {
	s.cluster.setClaim(claim)
	s.wakeUsers(claimKey(claim))
}

func (s *Scheduler) claimGone(claim *v1.PersistentVolumeClaim) {
	s.cluster.removeClaim(claimKey(claim))
	s.wakeUsers(claimKey(claim))
}

func (s *Scheduler) volumeSet(_, pv *v1.PersistentVolume) {
	s.cluster.setVolume(pv)
	if pv.Spec.ClaimRef != nil {
		s.wakeUsers(claimRefKey(pv.Spec.ClaimRef))
	}
	s.wake(wakeVolume)
}

func (s *Scheduler) volumeGone(pv *v1.PersistentVolume) {
	s.cluster.removeVolume(pv.Name)
	if pv.Spec.ClaimRef != nil {
		s.wakeUsers(claimRefKey(pv.Spec.ClaimRef))
	}
}

func (s *Scheduler) nodeSet(was, n *v1.Node) {
	s.cluster.setNode(n)
	if was == nil || nodeChanged(was, n) {
		s.wake(wakeNode)
	}
	if was == nil { // first seen, or back again: a count of this number is in every refusal's message
		for _, p := range s.refused {
			s.requeue(p)
		}
	}
}

// nodeChanged leaves out what a heartbeat changes.
func nodeChanged(was, n *v1.Node) bool {
	return was.Spec.Unschedulable != n.Spec.Unschedulable ||
		!apiequality.Semantic.DeepEqual(was.Spec.Taints, n.Spec.Taints) ||
		!maps.Equal(was.Labels, n.Labels) ||
		!apiequality.Semantic.DeepEqual(was.Status.Allocatable, n.Status.Allocatable)
}

func (s *Scheduler) nodeGone(n *v1.Node) {
	s.cluster.removeNode(n.Name)
	for _, p := range s.pods {
		if p.phase == refused || p.phase == awaiting && p.decision.node == n.Name {
			s.undo(p)
			s.requeue(p)
		}
	}
}

func (s *Scheduler) csiNodeSet(was, n *storagev1.CSINode) {
	s.cluster.csiNodes[n.Name] = n
	if was == nil || !apiequality.Semantic.DeepEqual(was.Spec.Drivers, n.Spec.Drivers) {
		s.wake(wakeCSINode)
	}
}

func (s *Scheduler) csiNodeGone(n *storagev1.CSINode) {
	delete(s.cluster.csiNodes, n.Name)
	s.wake(wakeCSINode) // no CSINode, no limits
}

func (s *Scheduler) driverSet(_, d *storagev1.CSIDriver) {
	s.cluster.drivers[d.Name] = d
	s.wake(wakeCapacity)
}

func (s *Scheduler) driverGone(d *storagev1.CSIDriver) {
	delete(s.cluster.drivers, d.Name)
	s.wake(wakeCapacity)
}

func (s *Scheduler) classSet(was, class *storagev1.StorageClass) {
	s.cluster.classes[class.Name] = class
	if was == nil || !slices.EqualFunc(was.AllowedTopologies, class.AllowedTopologies, func(a, b v1.TopologySelectorTerm) bool {
		return apiequality.Semantic.DeepEqual(a, b)
	}) {
		s.wake(wakeClass)
	}
}

func (s *Scheduler) classGone(class *storagev1.StorageClass) { delete(s.cluster.classes, class.Name) }

func (s *Scheduler) capacitySet(was, o *storagev1.CSIStorageCapacity) {
	s.cluster.setCapacity(o)
	if was == nil || volumeLimit(o) > volumeLimit(was) {
		s.wake(wakeCapacity)
	}
}

func (s *Scheduler) capacityGone(o *storagev1.CSIStorageCapacity) { s.cluster.removeCapacity(o) }

func (s *Scheduler) attachmentSet(_, a *storagev1.VolumeAttachment) { s.cluster.setAttachment(a) }

func (s *Scheduler) attachmentGone(a *storagev1.VolumeAttachment) {
	s.cluster.removeAttachment(a)
	s.wake(wakeAttachment)
}
