package csi

import (
	"context"
	"slices"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/plugin"
	"berth.io/berth/internal/plugin/fsgroup"
)

// appliesFSGroup says whether the node changes the volume's group (upstream supportsFSGroup).
func (p *Plugin) appliesFSGroup(v *plugin.Volume, q *publishCall, fsGroup *int64) bool {
	switch {
	case fsGroup == nil || v.ReadOnly || q.fsPolicy == storagev1.NoneFSGroupPolicy:
		return false
	case q.fsPolicy == storagev1.FileFSGroupPolicy:
		return true
	case q.fsType == "":
		return false // a shared file system, perhaps: other nodes' pods would lose their access
	case v.PV != nil:
		return slices.Contains(v.PV.Spec.AccessModes, v1.ReadWriteOnce) || slices.Contains(v.PV.Spec.AccessModes, v1.ReadWriteOncePod)
	}
	return true
}

func applyFSGroup(ctx context.Context, dir string, group int64, policy v1.PodFSGroupChangePolicy) error {
	if !fsgroup.Due(dir, group, policy, fsgroup.ReadWrite) {
		return nil
	}
	return boundary.Do("csi/apply-fs-group", func() error { return fsgroup.Apply(ctx, dir, group, fsgroup.ReadWrite) })
}
