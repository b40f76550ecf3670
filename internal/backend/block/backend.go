package block

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/backend/hold"
	"berth.io/berth/internal/block/pool"
	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/filesystem"
	"berth.io/berth/internal/host/loop"
)

// Options of the backend.
type Options struct {
	// Pool is open, and opened with the same Loops.
	Pool  *pool.Pool
	Loops *loop.Table
	// Node is the name of this node: the pool's volumes are usable here and nowhere else.
	Node    string
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Backend implements backend.Backend.
type Backend struct {
	o     Options
	holds hold.Table
	// pauses: for how long mounted volumes were frozen.
	pauses prometheus.Histogram

	mu    sync.Mutex
	nodes map[string]*onNode // by volume id

	formats  sync.WaitGroup
	rush     rush
	freezes  sync.RWMutex  // read-locked while anything is frozen
	slots    chan struct{} // as many formats at once as there are tokens
	stopping context.Context
	stop     context.CancelFunc
}

var _ interface {
	backend.Backend
	backend.Snapshotter
	backend.Modifier
	backend.Changes
	backend.Rounder
} = (*Backend)(nil)

// New finds what is staged and published already.
func New(o Options) (*Backend, error) {
	if o.Pool == nil || o.Loops == nil || o.Node == "" {
		return nil, errors.New("block backend: Pool, Loops and Node are needed")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	b := &Backend{o: o, nodes: map[string]*onNode{}, pauses: newPauses(), slots: make(chan struct{}, formatsAtOnce)}
	b.stopping, b.stop = context.WithCancel(context.Background())
	if missing := filesystem.Missing(); len(missing) > 0 {
		o.Log.Warn("programs missing, their filesystems cannot be made", slog.Any("programs", missing))
	}
	if err := registerMetrics(o.Metrics, o.Pool, b.pauses); err != nil {
		return nil, err
	}
	if err := b.recover(); err != nil {
		return nil, fmt.Errorf("block backend: find what is in use: %w", err)
	}
	for _, v := range o.Pool.List() { // a crash interrupted the background format
		b.formatAhead(v)
	}
	return b, nil
}

// Close waits until the background work has ended and nothing is frozen. Volumes stay as they are.
func (b *Backend) Close() {
	b.stop()
	b.formats.Wait()
	b.freezes.Lock() // what comes later sees that this is the end
	defer b.freezes.Unlock()
}

// Busy lists the operations under way.
func (b *Backend) Busy() []backend.BusyError { return b.holds.All() }

// OnCapacityChange implements backend.Backend.
func (b *Backend) OnCapacityChange(f func()) { b.o.Pool.OnCapacityChange(f) }

// Create implements backend.Controller.
func (b *Backend) Create(ctx context.Context, r backend.CreateRequest) (backend.Volume, error) {
	if err := b.CheckParameters(r.Parameters); err != nil {
		return backend.Volume{}, err
	}
	if err := b.CheckMutable(r.Mutable); err != nil {
		return backend.Volume{}, err
	}
	id := backend.VolumeID(r.Name)
	if v, err := b.o.Pool.Get(id); err == nil && r.Source != (backend.Source{}) {
		// Its source may be gone since.
		if r.FSTypeIsDefault {
			r.FSType = v.FSType
		}
		if err := compatible(v, r, r.RequiredBytes); err != nil {
			return backend.Volume{}, err
		}
		return b.show(v), nil
	}
	from, err := b.originOf(r.Source)
	if err != nil {
		return backend.Volume{}, err
	}
	if from != nil {
		if err := from.adapt(&r); err != nil {
			return backend.Volume{}, err
		}
	}
	size, err := volumeSize(r)
	if err != nil {
		return backend.Volume{}, err
	}
	if r.FSType != "" && !filesystem.Installed(r.FSType) {
		return backend.Volume{}, fmt.Errorf("%w: mkfs.%s is not installed on node %s", backend.ErrInvalid, r.FSType, b.o.Node)
	}
	h, err := b.holds.Acquire(ctx, id, "CreateVolume")
	if err != nil {
		return backend.Volume{}, err
	}
	defer h.Release()
	h.Step("creating it")
	spec := pool.Spec{ID: id, Name: r.Name, SizeBytes: size, FSType: r.FSType, Parameters: r.Parameters, Mutable: r.Mutable}
	if from != nil {
		spec.Source, spec.Content = from.source, from.contentFor(r.FSType)
		source, err := b.holds.Acquire(ctx, cmp.Or(r.Source.SnapshotID, r.Source.VolumeID), "CreateVolume")
		if err != nil {
			return backend.Volume{}, err
		}
		defer source.Release()
		source.Step("copying it to " + id)
		if r.Source.VolumeID != "" {
			v, err := b.get(r.Source.VolumeID) // again: what the last holder did counts
			if err != nil {
				return backend.Volume{}, err
			}
			spec.Quiesced = func(c pool.Copying) error { return b.quiesced(ctx, []held{{v, source}}, c) }
		}
	}
	v, err := b.o.Pool.Create(spec)
	if errors.Is(err, pool.ErrExists) {
		if err := compatible(v, r, size); err != nil {
			return backend.Volume{}, err
		}
		return b.show(v), nil
	}
	if err != nil {
		return backend.Volume{}, translate(err)
	}
	b.formatAhead(v)
	return b.show(v), nil
}

// Delete implements backend.Controller.
func (b *Backend) Delete(ctx context.Context, id string) error {
	if pool.ValidID(id) != nil {
		return nil // never was one
	}
	h, err := b.holds.Acquire(ctx, id, "DeleteVolume")
	if err != nil {
		return err
	}
	defer h.Release()
	if _, err := b.o.Pool.Get(id); errors.Is(err, pool.ErrNotFound) {
		return nil
	} else if err != nil {
		return translate(err)
	}
	if nodes := b.attachedTo(id); len(nodes) > 0 {
		return fmt.Errorf("%w: volume %s is attached to node %s", backend.ErrInUse, id, nodes[0])
	}
	if use := b.inUse(id); use != "" {
		return fmt.Errorf("%w: volume %s is mounted at %s", backend.ErrInUse, id, use)
	}
	h.Step("deleting it")
	if err := b.detachLoop(id); err != nil {
		return err
	}
	if err := b.o.Pool.Delete(id); err != nil {
		return translate(err)
	}
	b.forget(id)
	return nil
}

// Get implements backend.Controller.
func (b *Backend) Get(_ context.Context, id string) (backend.Volume, error) {
	v, err := b.get(id)
	if err != nil {
		return backend.Volume{}, err
	}
	return b.show(v), nil
}

func (b *Backend) get(id string) (pool.Volume, error) {
	if err := pool.ValidID(id); err != nil {
		return pool.Volume{}, &kindError{kind: backend.ErrNotFound, err: err}
	}
	v, err := b.o.Pool.Get(id)
	return v, translate(err)
}

// List implements backend.Controller.
func (b *Backend) List(context.Context) ([]backend.Volume, error) {
	volumes := b.o.Pool.List()
	out := make([]backend.Volume, len(volumes))
	for i, v := range volumes {
		out[i] = b.show(v)
	}
	return out, nil
}

func (b *Backend) show(v pool.Volume) backend.Volume {
	out := backend.Volume{ID: v.ID, Name: v.Name, SizeBytes: v.SizeBytes, FSType: v.FSType, Mutable: v.Mutable, Nodes: b.attachedTo(v.ID), Problem: b.problem(v)}
	if v.Source != nil {
		out.Source = backend.Source(*v.Source)
	}
	return out
}

// Resize implements backend.Controller.
func (b *Backend) Resize(ctx context.Context, id string, bytes int64) (backend.Volume, error) {
	if _, err := b.get(id); err != nil {
		return backend.Volume{}, err
	}
	h, err := b.holds.Acquire(ctx, id, "ControllerExpandVolume")
	if err != nil {
		return backend.Volume{}, err
	}
	defer h.Release()
	h.Step("extending it")
	v, err := b.get(id)
	if err != nil {
		return backend.Volume{}, err
	}
	if least := filesystem.MinimumGrownBytes(v.FSType); bytes > v.SizeBytes && bytes < least {
		return backend.Volume{}, fmt.Errorf("%w: %s can be grown to %d MiB or more, not to %d bytes", backend.ErrTooLarge, v.FSType, least>>20, bytes)
	}
	v, err = b.o.Pool.Resize(id, bytes)
	if err != nil {
		return backend.Volume{}, translate(err)
	}
	return b.show(v), nil
}

// RoundSize implements backend.Rounder.
func (b *Backend) RoundSize(bytes int64) int64 { return pool.RoundSize(bytes) }

// Attach implements backend.Controller. It must survive the end of the process, or an attacher would see the volume
// as detached and attach it anew; it need not survive a power cut, which detaches everything anyway. The link is made
// by one atomic call, so it needs no hold on the volume and never waits for a format.
func (b *Backend) Attach(_ context.Context, id, node string, readOnly bool) error {
	if _, err := b.get(id); err != nil {
		return err
	}
	if node != b.o.Node {
		return fmt.Errorf("%w: %q (the volumes of this pool are on node %q)", backend.ErrNodeNotFound, node, b.o.Node)
	}
	link, target := filepath.Join(b.o.Pool.Directory(id), publishedLink), node
	if readOnly {
		target = readOnlyMark + node
	}
	err := boundary.Do("backend-block/publish", func() error { return os.Symlink(target, link) })
	if errors.Is(err, fs.ErrExist) {
		switch holder, holderReads := b.attachment(id); {
		case holder != node:
			return fmt.Errorf("%w: volume %s is attached to node %s", backend.ErrInUse, id, holder)
		case holderReads && !readOnly:
			return fmt.Errorf("%w: volume %s is attached to node %s for reading, and for writing is asked for: detach it first", backend.ErrExists, id, node)
		case !holderReads && readOnly:
			return fmt.Errorf("%w: volume %s is attached to node %s for writing, and for reading is asked for: detach it first", backend.ErrExists, id, node)
		}
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s", backend.ErrNotFound, id)
	}
	return err
}

// Detach implements backend.Controller.
func (b *Backend) Detach(_ context.Context, id, node string) error {
	if _, err := b.get(id); err != nil {
		return nil
	}
	if holder, _ := b.attachment(id); holder == "" || node != "" && holder != node {
		return nil
	}
	link := filepath.Join(b.o.Pool.Directory(id), publishedLink)
	return boundary.Do("backend-block/unpublish", func() error {
		if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

// readOnlyMark begins the text of a read-only attachment. No node's name has a colon.
const readOnlyMark = "ro:"

// attachment is the node that has the volume; empty when none has.
func (b *Backend) attachment(id string) (node string, readOnly bool) {
	node, err := os.Readlink(filepath.Join(b.o.Pool.Directory(id), publishedLink))
	if err != nil {
		return "", false
	}
	return strings.CutPrefix(node, readOnlyMark)
}

func (b *Backend) attachedTo(id string) []string {
	if node, _ := b.attachment(id); node != "" {
		return []string{node}
	}
	return nil
}

// Capacity implements backend.Controller.
func (b *Backend) Capacity(context.Context) (backend.Capacity, error) {
	c := b.o.Pool.Capacity()
	return backend.Capacity{Total: c.Total, Available: c.Available, MaximumVolume: c.Available, MinimumVolume: pool.VolumeQuantum}, nil
}

// translate turns the pool's errors into the backend's.
func translate(err error) error {
	for _, pair := range [][2]error{
		{pool.ErrNotFound, backend.ErrNotFound}, {pool.ErrInvalidID, backend.ErrInvalid}, {pool.ErrNoSpace, backend.ErrNoSpace},
		{pool.ErrTooLarge, backend.ErrTooLarge}, {pool.ErrInUse, backend.ErrInUse}, {pool.ErrExists, backend.ErrExists},
		{pool.ErrSnapshotNotFound, backend.ErrSnapshotNotFound}, {pool.ErrTooSmall, backend.ErrTooLarge},
		{pool.ErrDisturbed, backend.ErrCannotFreeze},
	} {
		if errors.Is(err, pair[0]) {
			return &kindError{kind: pair[1], err: err}
		}
	}
	return err
}

// kindError is err, and of a kind of the backend's; its text is err's alone.
type kindError struct{ kind, err error }

func (e *kindError) Error() string   { return e.err.Error() }
func (e *kindError) Unwrap() []error { return []error{e.kind, e.err} }
