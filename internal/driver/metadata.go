package driver

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth.io/berth/internal/backend"
)

// Ranges in one message, unless the caller wants fewer. The first one is small, so that it is soon there.
const (
	firstRanges = 64
	mostRanges  = 4096 // some 100 KiB
)

// GetMetadataAllocated implements csi.SnapshotMetadataServer.
func (d *Driver) GetMetadataAllocated(r *csi.GetMetadataAllocatedRequest, stream csi.SnapshotMetadata_GetMetadataAllocatedServer) error {
	if err := required("snapshot_id", r.GetSnapshotId()); err != nil {
		return err
	}
	ctx := stream.Context()
	s, err := d.snapshots.Snapshot(ctx, r.GetSnapshotId())
	if err != nil {
		return err
	}
	b, err := newBatch(s.SizeBytes, r.GetStartingOffset(), r.GetMaxResults(), func(capacity int64, ranges []*csi.BlockMetadata) error {
		return stream.Send(&csi.GetMetadataAllocatedResponse{
			BlockMetadataType: csi.BlockMetadataType_VARIABLE_LENGTH, VolumeCapacityBytes: capacity, BlockMetadata: ranges,
		})
	})
	if err != nil {
		return err
	}
	if err := d.changes.Allocated(ctx, s.ID, r.GetStartingOffset(), b.add); err != nil {
		return err
	}
	return b.end()
}

// GetMetadataDelta implements csi.SnapshotMetadataServer.
func (d *Driver) GetMetadataDelta(r *csi.GetMetadataDeltaRequest, stream csi.SnapshotMetadata_GetMetadataDeltaServer) error {
	if err := required("base_snapshot_id", r.GetBaseSnapshotId(), "target_snapshot_id", r.GetTargetSnapshotId()); err != nil {
		return err
	}
	ctx := stream.Context()
	base, target, err := d.pair(ctx, r.GetBaseSnapshotId(), r.GetTargetSnapshotId())
	if err != nil {
		return err
	}
	b, err := newBatch(target.SizeBytes, r.GetStartingOffset(), r.GetMaxResults(), func(capacity int64, ranges []*csi.BlockMetadata) error {
		return stream.Send(&csi.GetMetadataDeltaResponse{
			BlockMetadataType: csi.BlockMetadataType_VARIABLE_LENGTH, VolumeCapacityBytes: capacity, BlockMetadata: ranges,
		})
	})
	if err != nil {
		return err
	}
	if err := d.changes.Delta(ctx, base.ID, target.ID, r.GetStartingOffset(), b.add); err != nil {
		return err
	}
	return b.end()
}

// pair makes sure that the two snapshots are of one volume, and base is not the younger one.
func (d *Driver) pair(ctx context.Context, baseID, targetID string) (base, target backend.Snapshot, err error) {
	if base, err = d.snapshots.Snapshot(ctx, baseID); err != nil {
		return base, target, err
	}
	if target, err = d.snapshots.Snapshot(ctx, targetID); err != nil {
		return base, target, err
	}
	switch {
	case base.VolumeID != target.VolumeID:
		err = invalid("base_snapshot_id %s is of volume %s, and target_snapshot_id %s is of volume %s: only snapshots of one volume are compared",
			base.ID, base.VolumeID, target.ID, target.VolumeID)
	case base.Taken.After(target.Taken):
		err = invalid("base_snapshot_id %s was taken after target_snapshot_id %s: exchange them", base.ID, target.ID)
	}
	return base, target, err
}

// batch gathers ranges into messages.
type batch struct {
	capacity, start int64
	limit, most     int
	send            func(capacity int64, ranges []*csi.BlockMetadata) error

	ranges []*csi.BlockMetadata
	sent   bool
}

// newBatch validates where to start and how many ranges a message may have.
func newBatch(capacity, start int64, most int32, send func(int64, []*csi.BlockMetadata) error) (*batch, error) {
	if most < 0 {
		return nil, invalid("max_results is %d: it must not be negative", most)
	}
	if start < 0 || start > capacity {
		// GetMetadataAllocated Errors: "Invalid starting_offset".
		return nil, status.Errorf(codes.OutOfRange, "starting_offset is %d, and the snapshot has %d bytes", start, capacity)
	}
	b := &batch{capacity: capacity, start: start, most: mostRanges, send: send}
	if most > 0 {
		b.most = min(b.most, int(most))
	}
	b.limit = min(firstRanges, b.most)
	return b, nil
}

// add takes the next range. What ends before the start is of no use to the caller, and nothing may go beyond the end.
func (b *batch) add(r backend.Range) error {
	end := min(r.Offset+r.Length, b.capacity)
	if end <= b.start || end <= r.Offset {
		return nil
	}
	b.ranges = append(b.ranges, &csi.BlockMetadata{ByteOffset: r.Offset, SizeBytes: end - r.Offset})
	if len(b.ranges) < b.limit {
		return nil
	}
	return b.flush()
}

func (b *batch) flush() error {
	if err := b.send(b.capacity, b.ranges); err != nil {
		return err
	}
	b.sent, b.limit, b.ranges = true, b.most, nil
	return nil
}

// end sends what is left; one message without ranges when there were none, which tells the capacity.
func (b *batch) end() error {
	if len(b.ranges) == 0 && b.sent {
		return nil
	}
	return b.flush()
}
