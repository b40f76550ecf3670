package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	api "berth.io/berth/api/v1alpha1"
	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/backend/block"
	"berth.io/berth/internal/block/objects"
	"berth.io/berth/internal/block/pool"
)

// CreateGroupSnapshot implements backend.Snapshotter. All volumes have to be on one node: it alone can hold back the writes to all of
// them at one instant.
func (b *Backend) CreateGroupSnapshot(ctx context.Context, r backend.GroupSnapshotRequest) (backend.GroupSnapshot, error) {
	none := backend.GroupSnapshot{}
	if err := block.CheckSnapshotParameters(r.Parameters); err != nil {
		return none, err
	}
	if len(r.VolumeIDs) == 0 {
		return none, fmt.Errorf("%w: a group snapshot of no volume", backend.ErrInvalid)
	}
	if err := b.synced(ctx); err != nil {
		return none, err
	}
	id := backend.GroupID(r.Name)
	volumes := slices.Compact(slices.Sorted(slices.Values(r.VolumeIDs)))
	taken, err := b.take(ctx, "group/"+id, func() ([]*api.BlockSnapshot, error) { return b.members(ctx, id, r.Name, volumes, r.Parameters) }, func(all []*api.BlockSnapshot) error {
		for _, o := range all {
			have := volumesOf(o.Spec.Group)
			if !slices.Equal(have, volumes) {
				return fmt.Errorf("%w: group snapshot %q is of volumes %v, and one of %v is asked for", backend.ErrExists, r.Name, have, volumes)
			}
		}
		return nil
	})
	if errors.Is(err, backend.ErrNotFound) {
		// A volume is gone since the group's first snapshots were noted: they will never be taken.
		begun := slices.DeleteFunc(objects.Of[api.BlockSnapshot](b.snapshots, byGroup, id), func(o *api.BlockSnapshot) bool { return o.Status.ReadyToUse })
		return none, errors.Join(err, b.removeAll(ctx, "group/"+id, begun))
	}
	if err != nil {
		return none, err
	}
	return showGroup(id, taken), nil
}

func volumesOf(g *api.BlockSnapshotGroup) []string {
	if g == nil {
		return nil
	}
	out := make([]string, len(g.Members))
	for i, m := range g.Members {
		out[i] = m.Volume
	}
	return out
}

// members are the objects of a group's snapshots: those that are there, and new ones for the rest.
func (b *Backend) members(ctx context.Context, id, name string, volumes []string, parameters map[string]string) ([]*api.BlockSnapshot, error) {
	have := objects.Of[api.BlockSnapshot](b.snapshots, byGroup, id)
	if len(have) > 0 && !slices.Equal(volumesOf(have[0].Spec.Group), volumes) {
		return have, nil
	}
	group := &api.BlockSnapshotGroup{ID: id}
	for _, v := range volumes {
		group.Members = append(group.Members, api.BlockSnapshotMember{Volume: v, Snapshot: backend.MemberID(id, v)})
	}
	all := have
	var of []*api.BlockVolume
	for _, m := range group.Members {
		if slices.ContainsFunc(have, func(o *api.BlockSnapshot) bool { return o.Name == m.Snapshot }) {
			continue
		}
		v, err := b.ready(ctx, m.Volume)
		if err != nil {
			return nil, err
		}
		of = append(of, v)
		all = append(all, snapshotOf(m.Snapshot, name, v, parameters, group))
	}
	for _, v := range of {
		if v.Spec.Node != all[0].Spec.Node {
			return nil, fmt.Errorf("%w: a group snapshot is taken at one instant, and so on one node: volume %s is on node %s, and volume %s on node %s",
				backend.ErrInvalid, all[0].Spec.Volume, all[0].Spec.Node, v.Name, v.Spec.Node)
		}
	}
	return all, nil
}

// DeleteGroupSnapshot implements backend.Snapshotter.
func (b *Backend) DeleteGroupSnapshot(ctx context.Context, id string) error {
	if pool.ValidID(id) != nil {
		return nil // never was one
	}
	if err := b.synced(ctx); err != nil {
		return err
	}
	return b.removeAll(ctx, "group/"+id, objects.Of[api.BlockSnapshot](b.snapshots, byGroup, id))
}

// GroupSnapshot implements backend.Snapshotter. One that is not whole is not there.
func (b *Backend) GroupSnapshot(ctx context.Context, id string) (backend.GroupSnapshot, error) {
	if err := b.synced(ctx); err != nil {
		return backend.GroupSnapshot{}, err
	}
	have := objects.Of[api.BlockSnapshot](b.snapshots, byGroup, id)
	whole := len(have) > 0 && len(have) == len(have[0].Spec.Group.Members)
	for _, o := range have {
		// One that is being deleted tells of a group of which the caller may still ask what belonged to it.
		if !o.Status.ReadyToUse {
			whole = false
		}
	}
	if !whole {
		return backend.GroupSnapshot{}, fmt.Errorf("%w: group %s", backend.ErrSnapshotNotFound, id)
	}
	return showGroup(id, have), nil
}

func showGroup(id string, members []*api.BlockSnapshot) backend.GroupSnapshot {
	g := backend.GroupSnapshot{ID: id}
	for _, o := range members {
		s := showSnapshot(o)
		g.Snapshots = append(g.Snapshots, s)
		g.Name = s.Name
		if s.Taken.After(g.Taken) {
			g.Taken = s.Taken
		}
	}
	slices.SortFunc(g.Snapshots, func(a, b backend.Snapshot) int { return strings.Compare(a.VolumeID, b.VolumeID) })
	return g
}
