package block

import (
	"fmt"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/block/pool"
	"berth.io/berth/internal/host/filesystem"
)

// origin is what a new volume is made from.
type origin struct {
	source    *pool.Source
	sizeBytes int64
	fsType    string
	content   pool.Content
	words     string
}

// originOf finds the source of a request; nil when it has none.
func (b *Backend) originOf(s backend.Source) (*origin, error) {
	switch {
	case s == (backend.Source{}):
		return nil, nil
	case s.SnapshotID != "" && s.VolumeID != "":
		return nil, fmt.Errorf("%w: a volume has one source, a snapshot or a volume, and not both", backend.ErrInvalid)
	case s.SnapshotID != "":
		from, err := b.o.Pool.Snapshot(s.SnapshotID)
		if err != nil {
			return nil, translate(fmt.Errorf("%w (the pool of node %s has no such snapshot: it was deleted, or belongs to another driver or pool, from where nothing can be copied)", err, b.o.Node))
		}
		return &origin{&pool.Source{SnapshotID: from.ID}, from.SizeBytes, from.FSType, from.Content, "snapshot " + from.ID}, nil
	}
	from, err := b.get(s.VolumeID)
	if err != nil {
		return nil, translate(fmt.Errorf("%w (the pool of node %s has no such volume: it was deleted, or belongs to another driver or pool, from where nothing can be copied)", err, b.o.Node))
	}
	return &origin{&pool.Source{VolumeID: from.ID}, from.SizeBytes, from.FSType, from.Content, "volume " + from.ID}, nil
}

// adapt completes a request from its source: its size when none is asked for, its filesystem when any will do.
func (o *origin) adapt(r *backend.CreateRequest) error {
	if r.RequiredBytes == 0 {
		r.RequiredBytes = o.sizeBytes
	}
	if least, err := filesystem.MinimumBytes(o.fsType); err == nil && o.sizeBytes == least && (r.LimitBytes == 0 || r.LimitBytes >= least) {
		r.RequiredBytes = max(r.RequiredBytes, least) // it was rounded up itself, perhaps from the same size
	}
	if most := max(r.RequiredBytes, r.LimitBytes); most < o.sizeBytes || r.LimitBytes > 0 && r.LimitBytes < o.sizeBytes {
		return fmt.Errorf("%w: %s has %d bytes, and a volume of %d is asked for: ask for at least as much", backend.ErrTooLarge, o.words, o.sizeBytes, most)
	}
	if r.RequiredBytes < o.sizeBytes {
		return fmt.Errorf("%w: %s has %d bytes, and a volume of %d is asked for: ask for at least as much", backend.ErrTooLarge, o.words, o.sizeBytes, r.RequiredBytes)
	}
	if r.FSType == "" || o.fsType == "" || o.fsType == r.FSType {
		return nil
	}
	if !r.FSTypeIsDefault {
		return fmt.Errorf("%w: %s holds %s, and %s is asked for: name a class with fsType %s", backend.ErrInvalid, o.words, o.fsType, r.FSType, o.fsType)
	}
	r.FSType = o.fsType
	return nil
}

// contentFor says whose bytes are in a volume that is made from it.
func (o *origin) contentFor(fsType string) pool.Content {
	if fsType == "" || o.fsType == "" {
		return pool.Raw // as a device it is its user's; as a filesystem it is looked at before it is mounted
	}
	return o.content
}
