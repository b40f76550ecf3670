package block

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"berth.io/berth/internal/backend"
)

// CheckMutable implements backend.Modifier.
func (b *Backend) CheckMutable(parameters map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(parameters)) {
		return fmt.Errorf("%w: unknown mutable parameter %q", backend.ErrInvalid, name)
	}
	return nil
}

// Modify implements backend.Modifier.
func (b *Backend) Modify(_ context.Context, id string, parameters map[string]string) error {
	if _, err := b.get(id); err != nil {
		return err
	}
	return b.CheckMutable(parameters)
}
