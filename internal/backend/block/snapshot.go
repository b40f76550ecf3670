package block

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/block/pool"
)

// CreateSnapshot implements backend.Snapshotter.
func (b *Backend) CreateSnapshot(ctx context.Context, r backend.SnapshotRequest) (backend.Snapshot, error) {
	if err := CheckSnapshotParameters(r.Parameters); err != nil {
		return backend.Snapshot{}, err
	}
	id := backend.SnapshotID(r.Name)
	if s, found, err := b.sameSnapshot(id, r); found || err != nil {
		return s, err
	}
	if _, err := b.get(r.VolumeID); err != nil {
		return backend.Snapshot{}, err
	}
	name, err := b.holds.Acquire(ctx, id, "CreateSnapshot") // the same name for another volume, or a deletion
	if err != nil {
		return backend.Snapshot{}, err
	}
	defer name.Release()
	h, err := b.holds.Acquire(ctx, r.VolumeID, "CreateSnapshot")
	if err != nil {
		return backend.Snapshot{}, err
	}
	defer h.Release()
	if s, found, err := b.sameSnapshot(id, r); found || err != nil {
		return s, err
	}
	v, err := b.get(r.VolumeID) // again: what the last holder did counts
	if err != nil {
		return backend.Snapshot{}, err
	}
	taken, err := b.take(ctx, "", "", []held{{v, h}}, pool.TakeRequest{ID: id, Name: r.Name, VolumeID: r.VolumeID})
	if err != nil {
		return backend.Snapshot{}, err
	}
	return showSnapshot(taken[0]), nil
}

// sameSnapshot is the snapshot that is there already; ErrExists when it is of another volume.
func (b *Backend) sameSnapshot(id string, r backend.SnapshotRequest) (backend.Snapshot, bool, error) {
	s, err := b.o.Pool.Snapshot(id)
	switch {
	case errors.Is(err, pool.ErrSnapshotNotFound):
		return backend.Snapshot{}, false, nil
	case err != nil:
		return backend.Snapshot{}, false, translate(err)
	case s.VolumeID != r.VolumeID:
		return backend.Snapshot{}, true, fmt.Errorf("%w: snapshot %q is of volume %s, and one of volume %s is asked for", backend.ErrExists, r.Name, s.VolumeID, r.VolumeID)
	}
	return showSnapshot(s), true, nil
}

// take takes the snapshots of volumes that the caller holds.
func (b *Backend) take(ctx context.Context, group, name string, volumes []held, requests ...pool.TakeRequest) ([]pool.Snapshot, error) {
	for _, one := range volumes {
		one.h.Step("sharing its blocks with a snapshot")
	}
	t, err := b.o.Pool.Begin(group, name, requests...)
	if err != nil {
		return nil, translate(err)
	}
	err = b.quiesced(ctx, volumes, t)
	if err == nil {
		var taken []pool.Snapshot
		if taken, err = t.Finish(); err == nil {
			return taken, nil
		}
	}
	return nil, translate(errors.Join(err, t.Abandon()))
}

// DeleteSnapshot implements backend.Snapshotter.
func (b *Backend) DeleteSnapshot(ctx context.Context, id string) error {
	if pool.ValidID(id) != nil {
		return nil // never was one
	}
	h, err := b.holds.Acquire(ctx, id, "DeleteSnapshot")
	if err != nil {
		return err
	}
	defer h.Release()
	s, err := b.o.Pool.Snapshot(id)
	if errors.Is(err, pool.ErrSnapshotNotFound) {
		return translate(b.o.Pool.DeleteSnapshot(id)) // its files may be there yet
	}
	if err != nil {
		return translate(err)
	}
	if s.GroupID != "" {
		return fmt.Errorf("%w: snapshot %s is part of the group snapshot %s and goes with it", backend.ErrInGroup, id, s.GroupID)
	}
	h.Step("deleting it")
	return translate(b.o.Pool.DeleteSnapshot(id))
}

// Snapshot implements backend.Snapshotter.
func (b *Backend) Snapshot(_ context.Context, id string) (backend.Snapshot, error) {
	s, err := b.o.Pool.Snapshot(id)
	if err != nil {
		return backend.Snapshot{}, translate(err)
	}
	return showSnapshot(s), nil
}

// Snapshots implements backend.Snapshotter.
func (b *Backend) Snapshots(context.Context) ([]backend.Snapshot, error) {
	return showSnapshots(b.o.Pool.Snapshots()), nil
}

func showSnapshot(s pool.Snapshot) backend.Snapshot {
	return backend.Snapshot{
		ID: s.ID, Name: s.Name, VolumeID: s.VolumeID, GroupID: s.GroupID, SizeBytes: s.SizeBytes, FSType: s.FSType, Taken: s.Taken,
	}
}

func showSnapshots(all []pool.Snapshot) []backend.Snapshot {
	out := make([]backend.Snapshot, len(all))
	for i, s := range all {
		out[i] = showSnapshot(s)
	}
	return out
}

// CheckSnapshotParameters refuses parameters that no node's backend would take: ErrInvalid. What a class says in deletionPolicy is often
// said once more among its parameters, as in Kubernetes' own tests (storage/framework/volume_group_snapshot_resource.go): it changes nothing here.
func CheckSnapshotParameters(parameters map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(parameters)) {
		if value := parameters[name]; name == "deletionPolicy" && (value == "Delete" || value == "Retain") {
			continue
		}
		return fmt.Errorf("%w: unknown parameter %q: a VolumeSnapshotClass of this driver has none", backend.ErrInvalid, name)
	}
	return nil
}
