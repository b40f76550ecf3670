package driver

import (
	"context"
	"errors"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/host/filesystem"
)

// CreateSnapshot implements csi.ControllerServer. A snapshot is cut and ready when the call returns.
//
// The effects are the backend's, in boundaries of its own. For the scan of the source, which knows calls by their names: boundary:
// held by the caller.
func (d *Driver) CreateSnapshot(ctx context.Context, r *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	if d.snapshots == nil {
		return nil, d.unimplemented("snapshots")
	}
	if err := required("name", r.GetName(), "source_volume_id", r.GetSourceVolumeId()); err != nil {
		return nil, err
	}
	place, err := d.reachable(r.GetAccessibilityRequirements())
	if err != nil {
		return nil, err
	}
	if err := d.sourceIn(ctx, r.GetSourceVolumeId(), place); err != nil {
		return nil, err
	}
	s, err := d.snapshots.CreateSnapshot(ctx, backend.SnapshotRequest{
		Name: r.GetName(), VolumeID: r.GetSourceVolumeId(), Parameters: ownParameters(r.GetParameters()),
	})
	if err != nil {
		return nil, err
	}
	return &csi.CreateSnapshotResponse{Snapshot: d.snapshot(s)}, nil
}

// snapshot as the spec shows it. One of a group names the group: it cannot be deleted alone. One of the least size of its filesystem
// shows none: the volume may have been asked for with less, and whoever is shown a size refuses to restore it by the same request.
func (d *Driver) snapshot(s backend.Snapshot) *csi.Snapshot {
	size := s.SizeBytes
	if least, err := filesystem.MinimumBytes(s.FSType); err == nil && size == least {
		size = 0
	}
	return &csi.Snapshot{
		SnapshotId: s.ID, SourceVolumeId: s.VolumeID, SizeBytes: size, CreationTime: timestamppb.New(s.Taken),
		ReadyToUse: true, GroupSnapshotId: s.GroupID, AccessibleTopology: []*csi.Topology{d.topology(s.Node)},
	}
}

// DeleteSnapshot implements csi.ControllerServer. As for CreateSnapshot, boundary: held by the caller.
func (d *Driver) DeleteSnapshot(ctx context.Context, r *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	if d.snapshots == nil {
		return nil, d.unimplemented("snapshots")
	}
	if err := required("snapshot_id", r.GetSnapshotId()); err != nil {
		return nil, err
	}
	if err := d.snapshots.DeleteSnapshot(ctx, r.GetSnapshotId()); err != nil {
		return nil, err
	}
	return &csi.DeleteSnapshotResponse{}, nil
}

// GetSnapshot implements csi.ControllerServer.
func (d *Driver) GetSnapshot(ctx context.Context, r *csi.GetSnapshotRequest) (*csi.GetSnapshotResponse, error) {
	if d.snapshots == nil {
		return nil, d.unimplemented("snapshots")
	}
	if err := required("snapshot_id", r.GetSnapshotId()); err != nil {
		return nil, err
	}
	s, err := d.snapshots.Snapshot(ctx, r.GetSnapshotId())
	if err != nil {
		return nil, err
	}
	return &csi.GetSnapshotResponse{Snapshot: d.snapshot(s)}, nil
}

// ListSnapshots implements csi.ControllerServer. An id that is not there is an empty list, not an error.
func (d *Driver) ListSnapshots(ctx context.Context, r *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	if d.snapshots == nil {
		return nil, d.unimplemented("snapshots")
	}
	found, err := d.findSnapshots(ctx, r.GetSnapshotId(), r.GetSourceVolumeId())
	if err != nil {
		return nil, err
	}
	found, next, err := pageOf(found, func(s backend.Snapshot) string { return s.ID }, r.GetStartingToken(), r.GetMaxEntries())
	if err != nil {
		return nil, err
	}
	resp := &csi.ListSnapshotsResponse{NextToken: next}
	for _, s := range found {
		resp.Entries = append(resp.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: d.snapshot(s)})
	}
	return resp, nil
}

// findSnapshots returns those with this id and of this volume, ordered by id; an empty string matches all.
func (d *Driver) findSnapshots(ctx context.Context, id, volume string) ([]backend.Snapshot, error) {
	var found []backend.Snapshot
	if id == "" {
		var err error
		if found, err = d.snapshots.Snapshots(ctx); err != nil {
			return nil, err
		}
	} else {
		s, err := d.snapshots.Snapshot(ctx, id)
		if errors.Is(err, backend.ErrSnapshotNotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		found = []backend.Snapshot{s}
	}
	if volume != "" {
		found = slices.DeleteFunc(slices.Clone(found), func(s backend.Snapshot) bool { return s.VolumeID != volume })
	}
	return found, nil
}
