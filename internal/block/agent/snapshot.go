package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	api "berth.io/berth/api/v1alpha1"
	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/block/objects"
	"berth.io/berth/internal/boundary"
)

// takes says why no snapshot can be taken here; nil: it can.
func (a *Agent) takes() error {
	if a.snapshots == nil {
		return fmt.Errorf("%w: the storage of node %s takes no snapshots", backend.ErrInvalid, a.o.Node)
	}
	return nil
}

// snapshot works the object of a snapshot that is taken alone.
//
// The effects on the pool are the backend's, in boundaries of its own. For the scan of the source, which knows calls by their names:
// boundary: held by the caller.
func (a *Agent) snapshot(ctx context.Context, id string) error {
	o := objects.Get[api.BlockSnapshot](a.snaps, id)
	if o == nil || o.Spec.Node != a.o.Node {
		return nil
	}
	if a.snapshotGoes(ctx, o) {
		return a.letGo(ctx, []*api.BlockSnapshot{o}, func() error {
			if a.snapshots == nil {
				return nil
			}
			return a.snapshots.DeleteSnapshot(ctx, id)
		})
	}
	return a.takeAll(ctx, []*api.BlockSnapshot{o}, func() ([]backend.Snapshot, error) {
		if want := backend.SnapshotID(o.Spec.Name); want != id {
			return nil, fmt.Errorf("%w: the snapshot called %q has the id %s, and not %s: objects are made by the controller, for VolumeSnapshots", backend.ErrInvalid, o.Spec.Name, want, id)
		}
		s, err := a.snapshots.CreateSnapshot(ctx, backend.SnapshotRequest{Name: o.Spec.Name, VolumeID: o.Spec.Volume, Parameters: objects.Plain(o.Spec.Parameters)})
		return []backend.Snapshot{s}, err
	}, func() ([]backend.Snapshot, error) {
		s, err := a.snapshots.Snapshot(ctx, id)
		return []backend.Snapshot{s}, err
	})
}

// group works the objects of a group's snapshots: all at one instant.
//
// The effects on the pool are the backend's, in boundaries of its own. For the scan of the source, which knows calls by their names:
// boundary: held by the caller.
func (a *Agent) group(ctx context.Context, id string) error {
	all := objects.Of[api.BlockSnapshot](a.snaps, byGroup, id)
	all = slices.DeleteFunc(all, func(o *api.BlockSnapshot) bool { return o.Spec.Node != a.o.Node })
	if len(all) == 0 {
		return nil
	}
	going := 0
	for _, o := range all {
		if a.snapshotGoes(ctx, o) {
			going++
		}
	}
	members := all[0].Spec.Group.Members
	switch {
	case going == len(all):
		return a.letGo(ctx, all, func() error {
			if a.snapshots == nil {
				return nil
			}
			return a.snapshots.DeleteGroupSnapshot(ctx, id)
		})
	case going > 0 || len(all) < len(members):
		return nil // it is being written, or taken away: the last event decides
	}
	return a.takeAll(ctx, all, func() ([]backend.Snapshot, error) {
		var volumes []string
		for _, m := range members {
			volumes = append(volumes, m.Volume)
			if backend.MemberID(id, m.Volume) != m.Snapshot || backend.GroupID(all[0].Spec.Name) != id {
				return nil, fmt.Errorf("%w: the group called %q has other ids than %s: objects are made by the controller, for VolumeGroupSnapshots", backend.ErrInvalid, all[0].Spec.Name, id)
			}
		}
		g, err := a.snapshots.CreateGroupSnapshot(ctx, backend.GroupSnapshotRequest{Name: all[0].Spec.Name, VolumeIDs: volumes, Parameters: objects.Plain(all[0].Spec.Parameters)})
		return g.Snapshots, err
	}, func() ([]backend.Snapshot, error) {
		g, err := a.snapshots.GroupSnapshot(ctx, id)
		return g.Snapshots, err
	})
}

// snapshotGoes is objects.SnapshotGoes with the status that was written last. As with a volume, data that are there go with the word alone,
// whatever the object tells.
func (a *Agent) snapshotGoes(ctx context.Context, o *api.BlockSnapshot) bool {
	if !objects.SnapshotGoes(&api.BlockSnapshot{ObjectMeta: o.ObjectMeta, Status: latest(&a.written, o.UID, o.Status)}) {
		return false
	}
	if objects.Marked(o) || a.snapshots == nil {
		return true
	}
	_, err := a.snapshots.Snapshot(ctx, o.Name)
	return errors.Is(err, backend.ErrSnapshotNotFound)
}

// takeAll takes the snapshots of these objects, or finds those that were taken, and writes their status.
func (a *Agent) takeAll(ctx context.Context, all []*api.BlockSnapshot, take, find func() ([]backend.Snapshot, error)) error {
	was := make([]api.BlockSnapshotStatus, len(all))
	ready := false
	for i, o := range all {
		was[i] = latest(&a.written, o.UID, o.Status)
		ready = ready || was[i].ReadyToUse
		e := objects.Find(was[i].Errors, api.OperationCreate)
		if e != nil && objects.Final(e.Kind) && was[i].ObservedGeneration == o.Generation && !was[i].ReadyToUse {
			return nil // refused for good: the controller takes the object away
		}
	}
	err := a.takes()
	var taken []backend.Snapshot
	f := &failures{}
	if err == nil && ready {
		if taken, err = find(); errors.Is(err, backend.ErrSnapshotNotFound) {
			err = fmt.Errorf("%w: it was taken on node %s, and its data are not in the pool there any more: restore the pool, or delete the snapshot", err, a.o.Node)
		}
	} else if err == nil {
		err = a.metrics.timed(api.OperationCreate, func() (err error) {
			taken, err = take()
			return err
		})
	}
	if err != nil && !ready {
		f.note(api.OperationCreate, err)
	}
	var writes []error
	for i, o := range all {
		status := was[i]
		status.ObservedGeneration, status.Errors, status.Problem = o.Generation, f.now, ""
		if err != nil && ready {
			status.Problem = objects.Clip(err.Error())
		}
		status.Problem = withKept(status.Problem, objects.Kept(o, false, "blocksnapshot", "VolumeSnapshotContent"))
		if at := slices.IndexFunc(taken, func(s backend.Snapshot) bool { return s.ID == o.Name }); err == nil && at >= 0 {
			s := taken[at]
			instant := metav1.NewMicroTime(s.Taken)
			status.ReadyToUse, status.CreationTime, status.SizeBytes, status.FSType = true, &instant, s.SizeBytes, s.FSType
		}
		writes = append(writes, a.reportSnapshot(ctx, o, status))
	}
	if err := errors.Join(writes...); err != nil {
		return err
	}
	if f.again {
		return errAgain
	}
	return nil
}

// letGo deletes the data, and lets the objects go.
func (a *Agent) letGo(ctx context.Context, all []*api.BlockSnapshot, remove func() error) error {
	all = slices.DeleteFunc(slices.Clone(all), func(o *api.BlockSnapshot) bool { return !held(o) })
	if len(all) == 0 {
		return nil
	}
	f := &failures{}
	failed := f.note(api.OperationDelete, a.metrics.timed(api.OperationDelete, remove))
	var writes []error
	for _, o := range all {
		if failed {
			status := latest(&a.written, o.UID, o.Status)
			status.ObservedGeneration, status.Errors = o.Generation, f.now
			writes = append(writes, a.reportSnapshot(ctx, o, status))
			continue
		}
		err := boundary.Do("block-agent/release-snapshot", func() error {
			patch, err := objects.ReleasePatch(o)
			if err == nil {
				_, err = a.o.Objects.Snapshots.Patch(ctx, o.Name, types.JSONPatchType, patch, metav1.PatchOptions{})
			}
			return err
		})
		if err != nil && !apierrors.IsNotFound(err) {
			writes = append(writes, fmt.Errorf("take the finalizer from snapshot %s: %w", o.Name, err))
			continue
		}
		a.written.forget(o.UID)
	}
	if err := errors.Join(writes...); err != nil {
		return err
	}
	if failed {
		return errAgain
	}
	return nil
}
