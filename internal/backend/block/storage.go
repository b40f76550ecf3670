package block

import (
	"context"
	"fmt"
	"os"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/host/mountpoint"
)

var _ backend.StorageHealth = (*Backend)(nil)

// StorageProblem implements backend.StorageHealth: whether the pool's filesystem answers, and takes writes. It has shut down
// where it does not; space is no question here, since what is promised is there.
func (b *Backend) StorageProblem(context.Context) string {
	dir := b.o.Pool.Directory("")
	entries, err := os.Open(dir)
	if err == nil {
		_, err = entries.Stat()
		entries.Close()
	}
	if err == nil {
		var ro bool
		if ro, err = mountpoint.ReadOnly(dir); err == nil && ro {
			return fmt.Sprintf("the pool at %s takes no writes: look at the kernel's log and the disk, then berth down and berth up", dir)
		}
	}
	if err != nil {
		return fmt.Sprintf("the pool at %s answers %q: its filesystem has shut down; look at the kernel's log and the disk, then berth down and berth up", dir, err)
	}
	return ""
}
