package block

import (
	"context"
	"fmt"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/block/pool"
)

// Allocated implements backend.Changes.
func (b *Backend) Allocated(ctx context.Context, id string, start int64, f func(backend.Range) error) error {
	if _, err := b.snapshotFrom(id, start); err != nil {
		return err
	}
	return translate(b.o.Pool.Allocated(ctx, id, start, ranges(f)))
}

// Delta implements backend.Changes.
func (b *Backend) Delta(ctx context.Context, baseID, targetID string, start int64, f func(backend.Range) error) error {
	base, err := b.snapshotFrom(baseID, 0)
	if err != nil {
		return err
	}
	target, err := b.snapshotFrom(targetID, start)
	if err != nil {
		return err
	}
	if base.VolumeID != target.VolumeID {
		return fmt.Errorf("%w: snapshot %s is of volume %s and snapshot %s of volume %s: only two of one volume can be compared", backend.ErrInvalid, baseID, base.VolumeID, targetID, target.VolumeID)
	}
	if base.Taken.After(target.Taken) {
		return fmt.Errorf("%w: snapshot %s was taken after snapshot %s: the base is the older one", backend.ErrInvalid, baseID, targetID)
	}
	return translate(b.o.Pool.Delta(ctx, baseID, targetID, start, ranges(f)))
}

// snapshotFrom returns a snapshot that has a place start.
func (b *Backend) snapshotFrom(id string, start int64) (pool.Snapshot, error) {
	s, err := b.o.Pool.Snapshot(id)
	if err != nil {
		return pool.Snapshot{}, translate(err)
	}
	if start < 0 || start > s.SizeBytes {
		return pool.Snapshot{}, fmt.Errorf("%w: offset %d is not in snapshot %s, which has %d bytes", backend.ErrInvalid, start, id, s.SizeBytes)
	}
	return s, nil
}

func ranges(f func(backend.Range) error) func(offset, length int64) error {
	return func(offset, length int64) error { return f(backend.Range{Offset: offset, Length: length}) }
}
