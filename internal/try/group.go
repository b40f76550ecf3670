package try

import (
	"context"

	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// stepGroupSnapshot snapshots two claims at one instant, through their label.
func (b *bench) stepGroupSnapshot(ctx context.Context, s *Step) error {
	if !b.caps.HasPlugin("GROUP_CONTROLLER_SERVICE") || !b.caps.HasGroup("CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT") {
		return skipf("the driver does not advertise GROUP_CONTROLLER_SERVICE")
	}
	if err := b.needMount(); err != nil {
		return err
	}
	for _, n := range []string{"-1", "-2"} {
		labelled := func(c *corev1.PersistentVolumeClaim) { c.Labels["group"] = s.Name }
		path, err := b.mounted(ctx, s, s.Name+n, labelled)
		if err != nil {
			return err
		}
		if _, err := writeData(path, "data", 12); err != nil {
			return err
		}
	}
	class := classLate
	api := b.in.snap.GroupsnapshotV1().VolumeGroupSnapshots(namespace)
	o := &groupv1.VolumeGroupSnapshot{ObjectMeta: meta(s, s.Name), Spec: groupv1.VolumeGroupSnapshotSpec{
		VolumeGroupSnapshotClassName: &class,
		Source:                       groupv1.VolumeGroupSnapshotSource{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"group": s.Name}}}}}
	if _, err := create(ctx, api.Create, o); err != nil {
		return err
	}
	_, err := await(ctx, api, "group snapshot", s.Name, func(g *groupv1.VolumeGroupSnapshot, found bool) (bool, string) {
		switch {
		case !found || g.Status == nil:
			return false, "no status yet"
		case g.Status.Error != nil && g.Status.Error.Message != nil:
			return false, *g.Status.Error.Message
		}
		return g.Status.ReadyToUse != nil && *g.Status.ReadyToUse, "not ready to use"
	})
	return err
}
