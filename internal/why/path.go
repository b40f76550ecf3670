package why

import (
	v1 "k8s.io/api/core/v1"

	"berth.io/berth/internal/node/holder"
)

// hostPath reads where the pod's volume is on the host, from the pod's annotation.
func hostPath(p *v1.Pod, volume string) string { return holder.Paths(p)[volume] }
