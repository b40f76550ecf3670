package pool

import (
	"context"
	"fmt"
	"os"

	"berth.io/berth/internal/host/xfs"
)

// Which bytes of a snapshot hold data, and in which it differs from an earlier one, is in the maps of their files' extents. Two
// snapshots that have the same block of the disk at the same place have the same bytes there: a shared block is never written,
// and neither is a snapshot. What was written since is in another block; what was discarded is in none.

// extents are in file order and do not overlap; false at the end.
type extents interface {
	Next() (xfs.Extent, bool, error)
}

// Allocated calls f with the ranges [offset, offset+length) of the snapshot that hold data, from start on, in order, as large as
// can be.
func (p *Pool) Allocated(ctx context.Context, id string, start int64, f func(offset, length int64) error) error {
	s, disk, err := p.openSnapshot(id)
	if err != nil {
		return err
	}
	defer p.closeSnapshot(id, disk)
	return differences(ctx, none{}, xfs.NewCursor(disk, start, s.SizeBytes), start, s.SizeBytes, f)
}

// Delta calls f with the ranges of the snapshot target, from start on, that may differ from base: all that differ, and none that
// the two share. What base has beyond target's end is not told: there is nothing.
func (p *Pool) Delta(ctx context.Context, base, target string, start int64, f func(offset, length int64) error) error {
	b, from, err := p.openSnapshot(base)
	if err != nil {
		return err
	}
	defer p.closeSnapshot(base, from)
	t, to, err := p.openSnapshot(target)
	if err != nil {
		return err
	}
	defer p.closeSnapshot(target, to)
	return differences(ctx, xfs.NewCursor(from, start, b.SizeBytes), xfs.NewCursor(to, start, t.SizeBytes), start, t.SizeBytes, f)
}

// reading is of one snapshot: how many have its disk open, and what was reserved for it, if it was deleted meanwhile.
type reading struct {
	open int
	kept int64
}

// openSnapshot opens a snapshot's disk, which keeps its blocks, and what is reserved for them, while somebody deletes it.
func (p *Pool) openSnapshot(id string) (Snapshot, *os.File, error) {
	p.mu.Lock()
	r := p.readings[id]
	r.open++
	p.readings[id] = r
	p.mu.Unlock()
	s, err := p.Snapshot(id)
	var disk *os.File
	if err == nil {
		disk, err = os.Open(p.SnapshotDisk(s))
	}
	if err == nil {
		return s, disk, nil
	}
	if os.IsNotExist(err) {
		err = fmt.Errorf("%w: %s", ErrSnapshotNotFound, clip(id))
	}
	p.closeSnapshot(id, nil)
	return Snapshot{}, nil, err
}

func (p *Pool) closeSnapshot(id string, disk *os.File) {
	if disk != nil {
		disk.Close()
	}
	p.mu.Lock()
	r := p.readings[id]
	if r.open--; r.open == 0 {
		delete(p.readings, id)
	} else {
		p.readings[id] = r
	}
	p.mu.Unlock()
	if r.open == 0 && r.kept > 0 {
		p.release(r.kept)
	}
}

// none has no extents: what everything differs from that holds data.
type none struct{}

func (none) Next() (xfs.Extent, bool, error) { return xfs.Extent{}, false, nil }

// differences goes through both maps at once. Unwritten extents and holes read as zeros.
func differences(ctx context.Context, base, target extents, start, end int64, f func(offset, length int64) error) error {
	b, t := side{from: base}, side{from: target}
	pending := span{start, start} // joined with what follows on it
	for at := start; at < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := b.seek(at); err != nil {
			return err
		}
		if err := t.seek(at); err != nil {
			return err
		}
		inBase, next := b.block(at, end)
		inTarget, until := t.block(at, end)
		next = min(next, until)
		if inBase != inTarget {
			if pending.End != at {
				if err := tell(pending, f); err != nil {
					return err
				}
				pending.Start = at
			}
			pending.End = next
		}
		at = next
	}
	return tell(pending, f)
}

func tell(s span, f func(offset, length int64) error) error {
	if s.End == s.Start {
		return nil
	}
	return f(s.Start, s.End-s.Start)
}

// side is one of two maps, at its extent that ends beyond the place looked at.
type side struct {
	from extents
	now  xfs.Extent
	done bool
}

func (s *side) seek(at int64) error {
	for !s.done && s.now.Logical+s.now.Length <= at {
		e, ok, err := s.from.Next()
		if err != nil {
			return err
		}
		s.now, s.done = e, !ok
	}
	return nil
}

// zeros is where the bytes are that no block holds.
const zeros = int64(-1)

// block is where on the disk the bytes at the place are, and up to where that goes on.
func (s *side) block(at, end int64) (physical, until int64) {
	switch {
	case s.done:
		return zeros, end
	case s.now.Logical > at:
		return zeros, min(s.now.Logical, end)
	case s.now.Unwritten:
		return zeros, min(s.now.Logical+s.now.Length, end)
	}
	return s.now.Physical + at - s.now.Logical, min(s.now.Logical+s.now.Length, end)
}
