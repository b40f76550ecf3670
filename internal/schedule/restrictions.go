package schedule

import (
	"slices"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	storagehelpers "k8s.io/component-helpers/storage/volume"
)

// What upstream's plugins say (volumerestrictions, nodevolumelimits).
const (
	reasonReadWriteOncePod = "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod"
	reasonDiskConflict     = "node(s) had no available disk"
	reasonVolumeLimit      = "node(s) exceed max volume count"
)

// claimInUse says that another pod has a claim of this pod that only one pod may have (ReadWriteOncePod).
func (c *cluster) claimInUse(pod *v1.Pod) bool {
	for i := range pod.Spec.Volumes {
		source := pod.Spec.Volumes[i].PersistentVolumeClaim
		if source == nil {
			continue // the claim of an ephemeral volume belongs to its pod
		}
		key := pod.Namespace + "/" + source.ClaimName
		claim := c.claim(key)
		if claim == nil || !slices.Contains(claim.Spec.AccessModes, v1.ReadWriteOncePod) {
			continue
		}
		for uid := range c.claimUse[key] {
			if uid != pod.UID {
				return true
			}
		}
	}
	return false
}

// diskConflict says that a pod of the node uses the same inline disk in a way that excludes this pod.
func (s *search) diskConflict(n *nodeState) bool {
	for i := range s.pod.Spec.Volumes {
		v := &s.pod.Spec.Volumes[i]
		if v.ISCSI == nil && v.RBD == nil {
			continue
		}
		for _, other := range n.pods {
			for j := range other.pod.Spec.Volumes {
				if sameDisk(v, &other.pod.Spec.Volumes[j]) {
					return true
				}
			}
		}
	}
	return false
}

// sameDisk says that both volumes are one iSCSI target or RBD image and not both are read-only.
func sameDisk(a, b *v1.Volume) bool {
	if a.ISCSI != nil && b.ISCSI != nil {
		return a.ISCSI.IQN == b.ISCSI.IQN && !(a.ISCSI.ReadOnly && b.ISCSI.ReadOnly)
	}
	if a.RBD != nil && b.RBD != nil {
		return a.RBD.RBDPool == b.RBD.RBDPool && a.RBD.RBDImage == b.RBD.RBDImage && !(a.RBD.ReadOnly && b.RBD.ReadOnly) &&
			slices.ContainsFunc(a.RBD.CephMonitors, func(m string) bool { return slices.Contains(b.RBD.CephMonitors, m) })
	}
	return false
}

// limitExceeded says that with the pod's volumes a driver would have more on the node than its CSINode allows.
// Counted are the volumes of the node's pods and of VolumeAttachments, each once.
func (s *search) limitExceeded(n *nodeState) bool {
	limits := limitsOf(s.csiNodes[n.object.Name])
	if len(limits) == 0 {
		return false
	}
	wanted := map[string]string{}
	s.countVolumes(s.pod, limits, wanted)
	if len(wanted) == 0 {
		return false
	}
	there := map[string]string{}
	for _, other := range n.pods {
		s.countVolumes(other.pod, limits, there)
	}
	for _, a := range s.attachments[n.object.Name] {
		if a.Spec.Source.PersistentVolumeName == nil {
			continue
		}
		if pv := s.volume(*a.Spec.Source.PersistentVolumeName); pv != nil && pv.Spec.CSI != nil {
			there[a.Spec.Attacher+"/"+pv.Spec.CSI.VolumeHandle] = a.Spec.Attacher
		}
	}
	counts, more := map[string]int{}, map[string]int{}
	for _, driver := range there {
		counts[driver]++
	}
	for volume, driver := range wanted {
		if _, shared := there[volume]; !shared {
			more[driver]++
		}
	}
	for driver, count := range more {
		if limit, limited := limits[driver]; limited && counts[driver]+count > limit {
			return true
		}
	}
	return false
}

// limitsOf reads how many volumes each driver may have on the node; drivers without a limit are absent.
func limitsOf(n *storagev1.CSINode) map[string]int {
	limits := map[string]int{}
	if n != nil {
		for _, d := range n.Spec.Drivers {
			if d.Allocatable != nil && d.Allocatable.Count != nil {
				limits[d.Name] = int(*d.Allocatable.Count)
			}
		}
	}
	return limits
}

// countVolumes adds the pod's volumes of the limited drivers to volumes: unique name → driver. A claim that has no
// volume yet counts for its class's driver, under its own name.
func (s *search) countVolumes(pod *v1.Pod, limits map[string]int, volumes map[string]string) {
	for i := range pod.Spec.Volumes {
		name, _ := claimName(pod, &pod.Spec.Volumes[i])
		if name == "" {
			continue
		}
		claim := s.claim(pod.Namespace + "/" + name)
		if claim == nil {
			continue
		}
		driver, handle := "", "claim:"+claimKey(claim)
		if pv := s.volume(claim.Spec.VolumeName); pv != nil {
			if pv.Spec.CSI == nil {
				continue
			}
			driver, handle = pv.Spec.CSI.Driver, pv.Spec.CSI.VolumeHandle
		} else if class := s.classes[storagehelpers.GetPersistentVolumeClaimClass(claim)]; class != nil {
			driver = class.Provisioner
		}
		if _, limited := limits[driver]; limited {
			volumes[driver+"/"+handle] = driver
		}
	}
}
