// Package holder is what a pod shows of itself on a node that only holds its volumes: the node agent writes it, and whoever
// explains or follows a pod reads it.
package holder

import (
	"encoding/json"
	"time"

	v1 "k8s.io/api/core/v1"
)

// PathsAnnotation on a pod: JSON object, volume name to host path. The agent writes it with the pod's first Ready. It is for
// people and programs that look; who may patch the pod can write it too, so nothing may be done as root on its word.
const PathsAnnotation = "storage.berth.io/paths"

// Paths reads the annotation; nil when the pod has none, or one that cannot be read.
func Paths(pod *v1.Pod) map[string]string {
	var paths map[string]string
	if json.Unmarshal([]byte(pod.Annotations[PathsAnnotation]), &paths) != nil {
		return nil
	}
	return paths
}

// Ready says whether the pod runs and is Ready, which on this node means that all of its volumes are mounted, and since when.
func Ready(pod *v1.Pod) (ready bool, since time.Time) {
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == v1.PodReady {
			return c.Status == v1.ConditionTrue && pod.Status.Phase == v1.PodRunning, c.LastTransitionTime.Time
		}
	}
	return false, time.Time{}
}
