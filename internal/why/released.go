package why

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
)

// releasedKept: a volume with the reclaim policy Retain whose claim is gone. That is what was asked for, and the next
// step is a person's.
func releasedKept(_ *facts, vf *volumeFacts) (what, advice string) {
	// A volume whose deletion has failed stays Failed when its policy is changed to Retain.
	if vf.pv == nil || vf.pv.Status.Phase != v1.VolumeReleased && vf.pv.Status.Phase != v1.VolumeFailed || vf.pv.DeletionTimestamp != nil ||
		vf.pv.Spec.PersistentVolumeReclaimPolicy != v1.PersistentVolumeReclaimRetain {
		return "", ""
	}
	what = fmt.Sprintf("Claim %s/%s had the volume and is gone. The reclaim policy is Retain: the data is kept, and no other claim gets it by itself. This is no error.", vf.namespace, vf.claimName)
	advice = fmt.Sprintf("To use it again: %s, then make a claim with volumeName %s%s, of %s at most. ", freed(vf.pv.Name, ""), vf.pv.Name, classArg(vf.pv), vf.pv.Spec.Capacity.Storage())
	if vf.pv.Spec.CSI != nil {
		return what, advice + fmt.Sprintf(`To delete it with its data: kubectl patch pv %s -p '{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}'`, vf.pv.Name)
	}
	return what, advice + fmt.Sprintf("To give it up: remove the data%s by hand, then kubectl delete pv %s", inPlace(vf.pv), vf.pv.Name)
}

// notDeleted and notRecycled: a volume that was made by hand and whose policy asks for what nothing here does. Upstream
// removes a hostPath directory below /tmp and empties others with a pod; here the host's directories are left to their
// owner: a path that a PersistentVolume names may be anything.
func notDeleted(_ *facts, vf *volumeFacts) (what, advice string) {
	if !failedInTree(vf.pv, v1.PersistentVolumeReclaimDelete) {
		return "", ""
	}
	return "The reclaim policy is Delete, and nothing here can delete the storage of a volume of type " + vf.driverOf() + ": it was made by hand. Its data is untouched.",
		fmt.Sprintf("Remove the data%s by hand, then kubectl delete pv %s. Or give it to another claim as it is: %s. Give such volumes the reclaim policy Retain.",
			inPlace(vf.pv), vf.pv.Name, freed(vf.pv.Name, v1.PersistentVolumeReclaimRetain))
}

func notRecycled(_ *facts, vf *volumeFacts) (what, advice string) {
	if !failedInTree(vf.pv, v1.PersistentVolumeReclaimRecycle) {
		return "", ""
	}
	return "The reclaim policy is Recycle, and nothing here empties a volume of type " + vf.driverOf() + ". Its data is untouched.",
		fmt.Sprintf("Remove the data%s by hand, then make it Available: %s. Or remove it: kubectl delete pv %s. Give such volumes the reclaim policy Retain.",
			inPlace(vf.pv), freed(vf.pv.Name, v1.PersistentVolumeReclaimRetain), vf.pv.Name)
}

func failedInTree(pv *v1.PersistentVolume, policy v1.PersistentVolumeReclaimPolicy) bool {
	return pv != nil && pv.Status.Phase == v1.VolumeFailed && pv.DeletionTimestamp == nil &&
		pv.Spec.PersistentVolumeReclaimPolicy == policy && pv.Spec.CSI == nil && pv.Spec.FlexVolume == nil
}

// freed is the command that takes the former claim off a volume, and sets the policy when one is given.
func freed(pv string, policy v1.PersistentVolumeReclaimPolicy) string {
	set := ""
	if policy != "" {
		set = fmt.Sprintf(`,"persistentVolumeReclaimPolicy":"%s"`, policy)
	}
	return fmt.Sprintf(`kubectl patch pv %s --type=merge -p '{"spec":{"claimRef":null%s}}'`, pv, set)
}

// inPlace says where on the node the data of a volume made by hand is.
func inPlace(pv *v1.PersistentVolume) string {
	switch {
	case pv.Spec.HostPath != nil:
		return " in " + pv.Spec.HostPath.Path
	case pv.Spec.Local != nil:
		return " in " + pv.Spec.Local.Path
	}
	return ""
}

func classArg(pv *v1.PersistentVolume) string {
	return fmt.Sprintf(" and storageClassName %q", pv.Spec.StorageClassName)
}
