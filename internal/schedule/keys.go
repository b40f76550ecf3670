package schedule

import (
	v1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/storage/ephemeral"
)

func claimKey(c *v1.PersistentVolumeClaim) string { return c.Namespace + "/" + c.Name }

func claimRefKey(r *v1.ObjectReference) string { return r.Namespace + "/" + r.Name }

// claimName returns the name of the claim behind a pod's volume, if there is one; ephemeral when the claim is made
// for the pod (generic ephemeral volume).
func claimName(pod *v1.Pod, v *v1.Volume) (name string, isEphemeral bool) {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName, false
	case v.Ephemeral != nil:
		return ephemeral.VolumeClaimName(pod, v), true
	}
	return "", false
}

// claimKeys lists the claims that the pod uses, each once.
func claimKeys(pod *v1.Pod) []string {
	var keys []string
	seen := map[string]bool{}
	for i := range pod.Spec.Volumes {
		if name, _ := claimName(pod, &pod.Spec.Volumes[i]); name != "" && !seen[name] {
			seen[name] = true
			keys = append(keys, pod.Namespace+"/"+name)
		}
	}
	return keys
}

// finished says that the pod has ended and uses nothing any more.
func finished(pod *v1.Pod) bool {
	return pod.Status.Phase == v1.PodSucceeded || pod.Status.Phase == v1.PodFailed
}
