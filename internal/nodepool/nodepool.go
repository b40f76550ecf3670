// Package nodepool opens what one machine serves volumes from: its default pool and the block backend on it. `berth up` and the
// node agent of a cluster do it alike.
//
// What flows in is a data directory and what the user says of the pool; what flows out is a backend. Closing leaves everything mounted:
// volumes may be in use, and the next process finds them.
package nodepool

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/backend/block"
	"berth.io/berth/internal/block/pool"
	"berth.io/berth/internal/host/loop"
	"berth.io/berth/internal/node/flexsocket"
)

// Options of a machine's storage.
type Options struct {
	// DataDir holds pools/ and what is remembered of the pool.
	DataDir string
	// Size is the most that the pool may take of the host's disk, as a quantity; empty: what it was last, else a share of the disk.
	Size string
	// Device is a raw device instead of an image file; it is used whole.
	Device string
	// Node is this machine's name.
	Node    string
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Storage is an open pool and the backend on it.
type Storage struct {
	Pool    *pool.Pool
	Backend *block.Backend
}

// Open opens the pool, which finishes what a crash left in it, and the backend. On an error nothing is held.
func Open(ctx context.Context, o Options) (*Storage, error) {
	var limit int64
	var err error
	if o.Device == "" { // a device is used whole
		if limit, err = Size(filepath.Join(o.DataDir, "pool-size"), o.Size); err != nil {
			return nil, err
		}
	}
	loops, err := loop.NewTable()
	if err != nil {
		return nil, err
	}
	s := &Storage{}
	if s.Pool, err = pool.Open(ctx, pool.Options{Dir: filepath.Join(o.DataDir, "pools"), Device: o.Device, LimitBytes: limit, Loops: loops, Log: o.Log}); err != nil {
		return nil, err
	}
	if s.Backend, err = block.New(block.Options{Pool: s.Pool, Loops: loops, Node: o.Node, Log: o.Log, Metrics: o.Metrics}); err != nil {
		s.Pool.Close()
		return nil, err
	}
	return s, nil
}

// Close ends the background work; everything stays mounted.
func (s *Storage) Close() {
	if s == nil {
		return
	}
	s.Backend.Close()
	s.Pool.Close()
}

// Shared is the backend for the CSI driver where FlexVolume serves it, too: a volume is attached by one of them.
func (s *Storage) Shared(flex *flexsocket.Server) *Shared { return &Shared{s.Backend, flex} }

// Shared is a backend that lets FlexVolume's volumes alone.
type Shared struct {
	*block.Backend
	flex *flexsocket.Server
}

// Attach implements backend.Controller.
func (b *Shared) Attach(ctx context.Context, id, node string, readOnly bool) error {
	return b.flex.Exclude(ctx, "block", id, func() error { return b.Backend.Attach(ctx, id, node, readOnly) })
}

// Detach implements backend.Controller. What is attached through FlexVolume alone is not attached for the caller, and stays.
func (b *Shared) Detach(ctx context.Context, id, node string) error {
	err := b.flex.Exclude(ctx, "block", id, func() error { return b.Backend.Detach(ctx, id, node) })
	if errors.Is(err, backend.ErrInUse) {
		return nil
	}
	return err
}
