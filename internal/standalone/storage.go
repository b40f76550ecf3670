package standalone

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	"berth.io/berth/internal/backend/block"
	"berth.io/berth/internal/block/pool"
	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/loop"
)

// storage is what the driver serves on this machine.
type storage struct {
	loops   *loop.Table
	pool    *pool.Pool
	backend *block.Backend
}

// openStorage opens the default pool and finishes what a crash left in it.
func (in *instance) openStorage(ctx context.Context) error {
	var limit int64
	var err error
	if in.PoolDevice == "" { // a device is used whole
		if limit, err = in.dir.poolSize(in.PoolSize); err != nil {
			return err
		}
	}
	s := storage{}
	if s.loops, err = loop.NewTable(); err != nil {
		return err
	}
	log := in.log.With("room", "pool")
	if s.pool, err = pool.Open(ctx, pool.Options{Dir: in.dir.Pools(), Device: in.PoolDevice, LimitBytes: limit, Loops: s.loops, Log: log}); err != nil {
		return err
	}
	in.store = s
	if in.store.backend, err = block.New(block.Options{Pool: s.pool, Loops: s.loops, Node: in.NodeName, Log: log, Metrics: in.metrics}); err != nil {
		return err
	}
	c := s.pool.Capacity()
	in.say.line("pool default open: %s of %s free for volumes", bytesText(c.Available), bytesText(c.Total))
	return nil
}

// poolSize returns the most that the default pool may take, in bytes; 0: the pool's own choice. What was asked for once
// holds for the starts after it, too: a pool must not outgrow its limit because one start came without the flag.
func (d DataDir) poolSize(asked string) (int64, error) {
	path := d.join("pool-size")
	if asked == "" {
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
		limit, err := parseSize(strings.TrimSpace(string(b)))
		if err == nil && limit == 0 {
			err = errors.New("the file is empty")
		}
		if err != nil {
			return 0, fmt.Errorf("%s: %w; give --pool-size anew", path, err)
		}
		return limit, nil
	}
	limit, err := parseSize(asked)
	if err != nil {
		return 0, fmt.Errorf("--pool-size: %w", err)
	}
	temp := path + ".new"
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return 0, err
	}
	_, err = f.WriteString(asked + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return 0, fmt.Errorf("remember --pool-size: %w", err)
	}
	return limit, boundary.Do("standalone/remember-pool-size", func() error { return os.Rename(temp, path) })
}

// closeStorage ends the background work; everything stays mounted.
func (in *instance) closeStorage() {
	if in.store.backend != nil {
		in.store.backend.Close()
	}
	if in.store.pool != nil {
		in.store.pool.Close()
	}
	in.store = storage{}
}

// parseSize reads a quantity such as 50Gi; empty is 0.
func parseSize(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	q, err := resource.ParseQuantity(text)
	if err != nil {
		return 0, fmt.Errorf("%q is not a size such as 50Gi", text)
	}
	if q.Value() <= 0 {
		return 0, errors.New("must be greater than zero")
	}
	return q.Value(), nil
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
