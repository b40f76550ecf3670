package try

import (
	"context"
	"fmt"
	"slices"

	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/try/spec"
)

// stepGroupSnapshot snapshots two claims at one instant, through their label.
func (b *bench) stepGroupSnapshot(ctx context.Context, s *Step) error {
	if !b.caps.HasPlugin("GROUP_CONTROLLER_SERVICE") || !b.caps.HasGroup("CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT") {
		return skipf("the driver does not advertise GROUP_CONTROLLER_SERVICE")
	}
	if err := b.needMount(); err != nil {
		return err
	}
	var sums []string
	for i, n := range []string{"-1", "-2"} {
		labelled := func(c *corev1.PersistentVolumeClaim) { c.Labels["group"] = s.Name }
		path, err := b.mounted(ctx, s, s.Name+n, labelled)
		if err != nil {
			return err
		}
		sum, err := writeData(path, "data", uint64(30+i))
		if err != nil {
			return err
		}
		sums = append(sums, sum)
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
	if err != nil {
		return err
	}
	return b.restoreMembers(ctx, s, sums)
}

// restoreMembers makes a volume from each snapshot of the group: all that was written must be in one of them.
func (b *bench) restoreMembers(ctx context.Context, s *Step, sums []string) error {
	list, err := b.in.snap.SnapshotV1().VolumeSnapshots(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	n := 0
	for _, m := range list.Items {
		if !slices.ContainsFunc(m.OwnerReferences, func(o metav1.OwnerReference) bool { return o.Kind == "VolumeGroupSnapshot" && o.Name == s.Name }) {
			continue
		}
		n++
		path, err := b.mounted(ctx, s, fmt.Sprintf("%s-restored-%d", s.Name, n), from("VolumeSnapshot", m.Name))
		if err != nil {
			return err
		}
		sums = slices.DeleteFunc(sums, func(sum string) bool { return checkData(path, "data", sum) == nil })
	}
	if n != 2 {
		return fmt.Errorf("the group of two volumes has %d snapshots", n)
	}
	if len(sums) > 0 {
		b.violate(s, spec.Violation{Rule: "CreateVolumeGroupSnapshot/not-restored", Section: "CreateVolumeGroupSnapshot",
			Text: fmt.Sprintf("of two volumes, %d have their content in no volume that was restored from the group's snapshots", len(sums))})
	}
	return nil
}
