package block

import (
	"context"
	"fmt"

	"berth.io/berth/internal/backend"
)

// Allocated implements backend.Changes.
func (b *Backend) Allocated(_ context.Context, id string, start int64, f func(backend.Range) error) error {
	s, err := b.o.Pool.Snapshot(id)
	if err != nil {
		return translate(err)
	}
	if start < 0 || start > s.SizeBytes {
		return fmt.Errorf("%w: offset %d of a snapshot of %d bytes", backend.ErrInvalid, start, s.SizeBytes)
	}
	return f(backend.Range{Offset: start, Length: s.SizeBytes - start})
}

// Delta implements backend.Changes.
func (b *Backend) Delta(ctx context.Context, base, target string, start int64, f func(backend.Range) error) error {
	if _, err := b.o.Pool.Snapshot(base); err != nil {
		return translate(err)
	}
	return b.Allocated(ctx, target, start, f)
}
