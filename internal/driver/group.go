package driver

import (
	"context"
	"errors"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth.io/berth/internal/backend"
)

// maxGroup is the most volumes in one group snapshot: all of them are frozen while each is copied.
const maxGroup = 100

// GroupControllerGetCapabilities implements csi.GroupControllerServer.
func (d *Driver) GroupControllerGetCapabilities(context.Context, *csi.GroupControllerGetCapabilitiesRequest) (*csi.GroupControllerGetCapabilitiesResponse, error) {
	return &csi.GroupControllerGetCapabilitiesResponse{Capabilities: []*csi.GroupControllerServiceCapability{{
		Type: &csi.GroupControllerServiceCapability_Rpc{Rpc: &csi.GroupControllerServiceCapability_RPC{
			Type: csi.GroupControllerServiceCapability_RPC_CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT,
		}},
	}}}, nil
}

// CreateVolumeGroupSnapshot implements csi.GroupControllerServer: all volumes at one instant, or none.
func (d *Driver) CreateVolumeGroupSnapshot(ctx context.Context, r *csi.CreateVolumeGroupSnapshotRequest) (*csi.CreateVolumeGroupSnapshotResponse, error) {
	if err := required("name", r.GetName()); err != nil {
		return nil, err
	}
	ids, err := distinct("source_volume_ids", r.GetSourceVolumeIds())
	if err != nil {
		return nil, err
	}
	if len(ids) == 0 {
		return nil, invalid("source_volume_ids is missing")
	}
	if len(ids) > maxGroup {
		return nil, invalid("source_volume_ids names %d volumes: at most %d can be frozen together", len(ids), maxGroup)
	}
	g, err := d.snapshots.CreateGroupSnapshot(ctx, backend.GroupSnapshotRequest{
		Name: r.GetName(), VolumeIDs: ids, Parameters: ownParameters(r.GetParameters()),
	})
	if err != nil {
		return nil, err
	}
	return &csi.CreateVolumeGroupSnapshotResponse{GroupSnapshot: d.groupSnapshot(g)}, nil
}

// distinct returns ids sorted, and refuses an empty one or one named twice.
func distinct(field string, ids []string) ([]string, error) {
	sorted := slices.Sorted(slices.Values(ids))
	for i, id := range sorted {
		if id == "" {
			return nil, invalid("%s has an empty id", field)
		}
		if i > 0 && id == sorted[i-1] {
			return nil, invalid("%s names %q twice", field, id)
		}
	}
	return sorted, nil
}

func (d *Driver) groupSnapshot(g backend.GroupSnapshot) *csi.VolumeGroupSnapshot {
	out := &csi.VolumeGroupSnapshot{GroupSnapshotId: g.ID, CreationTime: timestamppb.New(g.Taken), ReadyToUse: true}
	for _, s := range g.Snapshots {
		s.GroupID = g.ID
		out.Snapshots = append(out.Snapshots, d.snapshot(s))
	}
	return out
}

// DeleteVolumeGroupSnapshot implements csi.GroupControllerServer. The list of snapshots is not needed, and compared all the
// same: whoever has another one means another group. Snapshots that a deletion which was interrupted took already may
// be named.
func (d *Driver) DeleteVolumeGroupSnapshot(ctx context.Context, r *csi.DeleteVolumeGroupSnapshotRequest) (*csi.DeleteVolumeGroupSnapshotResponse, error) {
	if err := required("group_snapshot_id", r.GetGroupSnapshotId()); err != nil {
		return nil, err
	}
	g, err := d.snapshots.GroupSnapshot(ctx, r.GetGroupSnapshotId())
	if err == nil {
		err = d.sameSnapshots(ctx, g, r.GetSnapshotIds())
	}
	if err != nil && !errors.Is(err, backend.ErrSnapshotNotFound) {
		return nil, err
	}
	if err := d.snapshots.DeleteGroupSnapshot(ctx, r.GetGroupSnapshotId()); err != nil {
		return nil, err
	}
	return &csi.DeleteVolumeGroupSnapshotResponse{}, nil
}

// GetVolumeGroupSnapshot implements csi.GroupControllerServer.
func (d *Driver) GetVolumeGroupSnapshot(ctx context.Context, r *csi.GetVolumeGroupSnapshotRequest) (*csi.GetVolumeGroupSnapshotResponse, error) {
	if err := required("group_snapshot_id", r.GetGroupSnapshotId()); err != nil {
		return nil, err
	}
	g, err := d.snapshots.GroupSnapshot(ctx, r.GetGroupSnapshotId())
	if err != nil {
		return nil, err
	}
	if err := d.sameSnapshots(ctx, g, r.GetSnapshotIds()); err != nil {
		return nil, err
	}
	return &csi.GetVolumeGroupSnapshotResponse{GroupSnapshot: d.groupSnapshot(g)}, nil
}

// sameSnapshots makes sure that ids are those of the group's snapshots. An id of which there is no snapshot any more is
// one that was deleted with the group.
func (d *Driver) sameSnapshots(ctx context.Context, g backend.GroupSnapshot, ids []string) error {
	have := map[string]bool{}
	for _, s := range g.Snapshots {
		have[s.ID] = true
		if !slices.Contains(ids, s.ID) {
			return invalid("snapshot_ids %q lacks %q, which belongs to group snapshot %s", ids, s.ID, g.ID)
		}
	}
	for _, id := range ids {
		if have[id] {
			continue
		}
		if _, err := d.snapshots.Snapshot(ctx, id); err == nil {
			return invalid("snapshot_ids names %q, which does not belong to group snapshot %s", id, g.ID)
		} else if !errors.Is(err, backend.ErrSnapshotNotFound) {
			return err
		}
	}
	return nil
}
