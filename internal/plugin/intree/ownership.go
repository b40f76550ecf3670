package intree

import (
	"context"

	v1 "k8s.io/api/core/v1"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/plugin/fsgroup"
)

// ownVolume gives everything in dir to the group by the pod's policy; a nil group does nothing.
func ownVolume(ctx context.Context, dir string, group *int64, policy v1.PodFSGroupChangePolicy, a fsgroup.Access) error {
	if group == nil || !fsgroup.Due(dir, *group, policy, a) {
		return nil
	}
	return boundary.Do("intree/own-volume", func() error { return fsgroup.Apply(ctx, dir, *group, a) })
}

// soleUser is the user that all containers of the pod run as, nil when they differ or none is named (upstream's FsUserFrom).
func soleUser(pod *v1.Pod) *int64 {
	var user *int64
	differ := false
	visit := func(c *v1.SecurityContext) {
		u := (*int64)(nil)
		if pod.Spec.SecurityContext != nil {
			u = pod.Spec.SecurityContext.RunAsUser
		}
		if c != nil && c.RunAsUser != nil {
			u = c.RunAsUser
		}
		if u == nil || user != nil && *user != *u {
			differ = true
			return
		}
		user = u
	}
	for i := range pod.Spec.InitContainers {
		visit(pod.Spec.InitContainers[i].SecurityContext)
	}
	for i := range pod.Spec.Containers {
		visit(pod.Spec.Containers[i].SecurityContext)
	}
	for i := range pod.Spec.EphemeralContainers {
		visit(pod.Spec.EphemeralContainers[i].SecurityContext)
	}
	if differ {
		return nil
	}
	return user
}
