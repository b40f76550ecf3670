package why

import (
	"encoding/json"

	v1 "k8s.io/api/core/v1"
)

// hostPath reads where the pod's volume is on the host, from the pod's annotation.
func hostPath(p *v1.Pod, volume string) string {
	var paths map[string]string
	if json.Unmarshal([]byte(p.Annotations[pathsAnnotation]), &paths) != nil {
		return ""
	}
	return paths[volume]
}
