package block

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/block/pool"
)

// CreateGroupSnapshot implements backend.Snapshotter.
func (b *Backend) CreateGroupSnapshot(ctx context.Context, r backend.GroupSnapshotRequest) (backend.GroupSnapshot, error) {
	if err := CheckSnapshotParameters(r.Parameters); err != nil {
		return backend.GroupSnapshot{}, err
	}
	if len(r.VolumeIDs) == 0 {
		return backend.GroupSnapshot{}, fmt.Errorf("%w: a group snapshot of no volume", backend.ErrInvalid)
	}
	id := backend.GroupID(r.Name)
	// Held in one order by everybody, so that two groups never wait for each other.
	volumes := slices.Compact(slices.Sorted(slices.Values(r.VolumeIDs)))
	if g, found, err := b.sameGroup(id, r.Name, volumes); found || err != nil {
		return g, err
	}
	name, err := b.holds.Acquire(ctx, id, "CreateVolumeGroupSnapshot") // the same name for other volumes, or a deletion
	if err != nil {
		return backend.GroupSnapshot{}, err
	}
	defer name.Release()
	var members []held
	for _, id := range volumes {
		if _, err := b.get(id); err != nil {
			return backend.GroupSnapshot{}, err
		}
		h, err := b.holds.Acquire(ctx, id, "CreateVolumeGroupSnapshot")
		if err != nil {
			return backend.GroupSnapshot{}, err
		}
		defer h.Release()
		v, err := b.get(id) // again: what the last holder did counts
		if err != nil {
			return backend.GroupSnapshot{}, err
		}
		members = append(members, held{v, h})
	}
	if g, found, err := b.sameGroup(id, r.Name, volumes); found || err != nil {
		return g, err
	}
	requests := make([]pool.TakeRequest, len(volumes))
	for i, v := range volumes {
		requests[i] = pool.TakeRequest{ID: backend.MemberID(id, v), Name: r.Name, VolumeID: v}
	}
	if _, err := b.take(ctx, id, r.Name, members, requests...); err != nil {
		return backend.GroupSnapshot{}, err
	}
	return b.GroupSnapshot(ctx, id)
}

// sameGroup is the group that is there already; ErrExists when it is of other volumes.
func (b *Backend) sameGroup(id, name string, volumes []string) (backend.GroupSnapshot, bool, error) {
	g, err := b.GroupSnapshot(context.Background(), id)
	if errors.Is(err, backend.ErrSnapshotNotFound) {
		return backend.GroupSnapshot{}, false, nil
	}
	if err != nil {
		return backend.GroupSnapshot{}, false, err
	}
	var have []string
	for _, s := range g.Snapshots {
		have = append(have, s.VolumeID)
	}
	slices.Sort(have)
	if !slices.Equal(have, volumes) {
		return backend.GroupSnapshot{}, true, fmt.Errorf("%w: group snapshot %q is of volumes %v, and one of %v is asked for", backend.ErrExists, name, have, volumes)
	}
	return g, true, nil
}

// DeleteGroupSnapshot implements backend.Snapshotter.
func (b *Backend) DeleteGroupSnapshot(ctx context.Context, id string) error {
	if pool.ValidID(id) != nil {
		return nil // never was one
	}
	h, err := b.holds.Acquire(ctx, id, "DeleteVolumeGroupSnapshot")
	if err != nil {
		return err
	}
	defer h.Release()
	_, members, err := b.o.Pool.Group(id)
	if errors.Is(err, pool.ErrSnapshotNotFound) {
		return translate(b.o.Pool.DeleteGroup(id)) // its files may be there yet
	}
	if err != nil {
		return translate(err)
	}
	for _, s := range members { // a volume may be being made from one
		m, err := b.holds.Acquire(ctx, s.ID, "DeleteVolumeGroupSnapshot")
		if err != nil {
			return err
		}
		defer m.Release()
	}
	h.Step("deleting it")
	return translate(b.o.Pool.DeleteGroup(id))
}

// GroupSnapshot implements backend.Snapshotter.
func (b *Backend) GroupSnapshot(_ context.Context, id string) (backend.GroupSnapshot, error) {
	g, members, err := b.o.Pool.Group(id)
	if err != nil {
		return backend.GroupSnapshot{}, translate(err)
	}
	return backend.GroupSnapshot{ID: g.ID, Name: g.Name, Taken: g.Taken, Snapshots: showSnapshots(members)}, nil
}
