package standalone

import (
	"context"
	"fmt"

	"berth.io/berth/internal/nodepool"
)

// openStorage opens the default pool and finishes what a crash left in it.
func (in *instance) openStorage(ctx context.Context) (err error) {
	if in.store, err = nodepool.Open(ctx, nodepool.Options{DataDir: string(in.dir), Size: in.PoolSize, Device: in.PoolDevice, Node: in.NodeName,
		Log: in.log.With("room", "pool"), Metrics: in.metrics}); err != nil {
		return err
	}
	c := in.store.Pool.Capacity()
	in.say.line("pool default open: %s of %s free for volumes", bytesText(c.Available), bytesText(c.Total))
	return nil
}

// closeStorage ends the background work; everything stays mounted.
func (in *instance) closeStorage() {
	in.store.Close()
	in.store = nil
}

// bytesText writes bytes for a person.
func bytesText(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	f := float64(n)
	i := 0
	for ; f >= 1024 && i < len(units)-1; i++ {
		f /= 1024
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}
