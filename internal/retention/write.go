package retention

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	api "berth.io/berth/api/v1alpha1"
	"berth.io/berth/internal/boundary"
)

// final says that asking again would get the same answer: the API refuses the object.
func final(err error) bool {
	return apierrors.IsForbidden(err) || apierrors.IsInvalid(err) || apierrors.IsNotFound(err)
}

// make makes the snapshot of a claim, or of the group when claim is empty, for a time; it reports whether there was none.
func (c *Controller) make(ctx context.Context, s *api.SnapshotSchedule, claim string, due time.Time) (bool, error) {
	m := metav1.ObjectMeta{Namespace: s.Namespace, Name: nameOf(s.Name, s.UID, claim, due),
		Labels:      map[string]string{api.LabelSchedule: s.Name, api.LabelScheduleUID: string(s.UID)},
		Annotations: map[string]string{api.AnnotationScheduledAt: due.UTC().Format(time.RFC3339)},
	}
	var err error
	if claim == "" {
		group := &groupv1.VolumeGroupSnapshot{ObjectMeta: m, Spec: groupv1.VolumeGroupSnapshotSpec{
			VolumeGroupSnapshotClassName: s.Spec.VolumeGroupSnapshotClassName,
			Source:                       groupv1.VolumeGroupSnapshotSource{Selector: s.Spec.Selector.DeepCopy()},
		}}
		err = boundary.Do("retention/create-group-snapshot", func() error {
			_, err := c.opts.Snap.GroupsnapshotV1().VolumeGroupSnapshots(s.Namespace).Create(ctx, group, metav1.CreateOptions{})
			return err
		})
	} else {
		snapshot := &snapv1.VolumeSnapshot{ObjectMeta: m, Spec: snapv1.VolumeSnapshotSpec{
			VolumeSnapshotClassName: s.Spec.VolumeSnapshotClassName,
			Source:                  snapv1.VolumeSnapshotSource{PersistentVolumeClaimName: &claim},
		}}
		err = boundary.Do("retention/create-snapshot", func() error {
			_, err := c.opts.Snap.SnapshotV1().VolumeSnapshots(s.Namespace).Create(ctx, snapshot, metav1.CreateOptions{})
			return err
		})
	}
	if apierrors.IsAlreadyExists(err) {
		return false, nil // by a run that was interrupted: the name says what it is
	}
	if err != nil {
		return false, fmt.Errorf("make snapshot %s of %s: %w", m.Name, ofWhat(claim), err)
	}
	return true, nil
}

// drop deletes snapshots of the schedule, in the order given. reason is for the metric.
func (c *Controller) drop(ctx context.Context, s *api.SnapshotSchedule, reason string, gone []made) error {
	var all error
	for _, m := range gone {
		only := metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(m.uid))} // not another one of this name
		var err error
		if m.group {
			err = boundary.Do("retention/delete-group-snapshot", func() error {
				return c.opts.Snap.GroupsnapshotV1().VolumeGroupSnapshots(s.Namespace).Delete(ctx, m.name, only)
			})
		} else {
			err = boundary.Do("retention/delete-snapshot", func() error {
				return c.opts.Snap.SnapshotV1().VolumeSnapshots(s.Namespace).Delete(ctx, m.name, only)
			})
		}
		switch {
		case err == nil:
			c.metrics.deleted.WithLabelValues(reason).Inc()
		case !apierrors.IsNotFound(err) && !apierrors.IsConflict(err):
			all = errors.Join(all, fmt.Errorf("delete snapshot %s: %w", m.name, err))
		}
	}
	return all
}

func (c *Controller) writeStatus(ctx context.Context, s *api.SnapshotSchedule, status api.SnapshotScheduleStatus) error {
	// A whole status, and of this object in the state that it was decided from: a merge, so that what is nil must be said.
	body := map[string]any{"metadata": map[string]any{"uid": s.UID, "resourceVersion": s.ResourceVersion}}
	b, err := json.Marshal(status)
	if err != nil {
		return err
	}
	fields := map[string]any{"lastScheduleTime": nil, "nextScheduleTime": nil}
	if err := json.Unmarshal(b, &fields); err != nil {
		return err
	}
	body["status"] = fields
	patch, err := json.Marshal(body)
	if err != nil {
		return err
	}
	err = boundary.Do("retention/write-status", func() error {
		_, err := c.opts.Client.Resource(api.SnapshotScheduleResource).Namespace(s.Namespace).Patch(ctx, s.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
		return err
	})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // gone, or changed: its event wakes us
	}
	if err != nil {
		return fmt.Errorf("write the status of SnapshotSchedule %s/%s: %w", s.Namespace, s.Name, err)
	}
	return nil
}
