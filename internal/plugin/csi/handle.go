package csi

import (
	v1 "k8s.io/api/core/v1"

	"berth.io/berth/internal/plugin"
)

// InlineHandle is the volume id by which a driver knows the inline volume called name of a pod (upstream makeVolumeHandle).
func InlineHandle(pod *v1.Pod, name string) string {
	return handleOf(&plugin.Volume{Pod: pod, Name: name})
}
