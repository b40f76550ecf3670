package cluster

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"

	v1 "k8s.io/api/core/v1"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	api "berth.io/berth/api/v1alpha1"
	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/backend/block"
	"berth.io/berth/internal/block/objects"
	"berth.io/berth/internal/block/pool"
)

// Options of the backend. Objects, Kube and Nodes are needed.
type Options struct {
	Objects *objects.Client
	// Kube is asked for one Node, and only before data are given up because the Node seems to be gone.
	Kube kubernetes.Interface
	// Nodes is started by its owner.
	Nodes coreinformers.NodeInformer
	Log   *slog.Logger
}

// Backend implements backend.Controller and what goes with it, of all nodes.
type Backend struct {
	o         Options
	volumes   cache.SharedIndexInformer
	snapshots cache.SharedIndexInformer
	pools     cache.SharedIndexInformer
	changed   signals // by "volume/ID", "snapshot/ID", "group/ID"

	mu       sync.Mutex
	capacity []func()
}

var _ interface {
	backend.Controller
	backend.Snapshotter
	backend.Modifier
	backend.Rounder
	backend.Placer
} = (*Backend)(nil)

// Indexes of the caches.
const (
	byNode    = "node"
	byGroup   = "group"
	byPending = "pending" // volumes that are being made, by node
)

// New prepares the informers. It does nothing before Run.
func New(o Options) (*Backend, error) {
	if o.Objects == nil || o.Kube == nil || o.Nodes == nil {
		return nil, errors.New("cluster backend: Objects, Kube and Nodes are needed")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	b := &Backend{o: o}
	var err error
	if b.volumes, err = objects.Informer(o.Objects.Volumes, &api.BlockVolume{}, objects.Select{}, cache.Indexers{byPending: func(o any) ([]string, error) {
		if v, ok := o.(*api.BlockVolume); ok && v.Status.Phase != api.PhaseReady && v.DeletionTimestamp == nil {
			return []string{v.Spec.Node}, nil
		}
		return nil, nil
	}}); err != nil {
		return nil, err
	}
	if b.snapshots, err = objects.Informer(o.Objects.Snapshots, &api.BlockSnapshot{}, objects.Select{}, cache.Indexers{byGroup: func(o any) ([]string, error) {
		if s, ok := o.(*api.BlockSnapshot); ok && s.Spec.Group != nil {
			return []string{s.Spec.Group.ID}, nil
		}
		return nil, nil
	}}); err != nil {
		return nil, err
	}
	if b.pools, err = objects.Informer(o.Objects.Pools, &api.BlockPool{}, objects.Select{}, cache.Indexers{byNode: func(o any) ([]string, error) {
		if p, ok := o.(*api.BlockPool); ok {
			return []string{p.Spec.Node}, nil
		}
		return nil, nil
	}}); err != nil {
		return nil, err
	}
	return b, b.watch()
}

func (b *Backend) watch() error {
	seen := func(o any) {
		switch o := objects.Last(o).(type) {
		case *api.BlockVolume:
			b.changed.tell("volume/" + o.Name)
		case *api.BlockSnapshot:
			b.changed.tell("snapshot/" + o.Name)
			if o.Spec.Group != nil {
				b.changed.tell("group/" + o.Spec.Group.ID)
			}
		case *api.BlockPool:
			b.changed.tell("node/" + o.Spec.Node)
		case *v1.Node:
			b.changed.tell("node/" + o.Name)
		}
	}
	for _, informer := range []cache.SharedIndexInformer{b.volumes, b.snapshots, b.pools, b.o.Nodes.Informer()} {
		if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: seen, UpdateFunc: func(_, o any) { seen(o) }, DeleteFunc: seen}); err != nil {
			return err
		}
	}
	room := func(any) { b.capacityChanged() }
	_, err := b.pools.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: room, DeleteFunc: room, UpdateFunc: func(was, is any) {
		p, okWas := was.(*api.BlockPool)
		q, okIs := is.(*api.BlockPool)
		if okWas && okIs && (p.Status.Ready != q.Status.Ready || p.Status.AvailableBytes != q.Status.AvailableBytes || p.Status.MaximumVolumeBytes != q.Status.MaximumVolumeBytes) {
			b.capacityChanged()
		}
	}})
	return err
}

// Run keeps the caches until ctx ends.
func (b *Backend) Run(ctx context.Context) error {
	var running sync.WaitGroup
	for _, informer := range []cache.SharedIndexInformer{b.volumes, b.snapshots, b.pools} {
		running.Go(func() { informer.RunWithContext(ctx) })
	}
	running.Wait()
	return nil
}

// Synced: the caches know what the API knew when they began. Before that every call fails at its deadline.
func (b *Backend) Synced() bool {
	return b.volumes.HasSynced() && b.snapshots.HasSynced() && b.pools.HasSynced() && b.o.Nodes.Informer().HasSynced()
}

// synced waits for Synced.
func (b *Backend) synced(ctx context.Context) error {
	if b.Synced() {
		return nil
	}
	ctx, cancel := before(ctx)
	defer cancel()
	if !cache.WaitForCacheSync(ctx.Done(), b.Synced) {
		return &objects.AwayError{What: "the list of volumes from the API server", Cause: ctx.Err()}
	}
	return nil
}

// OnCapacityChange has f called after Capacity's answer may have changed. f must not block.
func (b *Backend) OnCapacityChange(f func()) {
	b.mu.Lock()
	b.capacity = append(b.capacity, f)
	b.mu.Unlock()
}

func (b *Backend) capacityChanged() {
	b.mu.Lock()
	calls := slices.Clone(b.capacity)
	b.mu.Unlock()
	for _, f := range calls {
		f()
	}
}

// CheckParameters implements backend.Controller.
func (b *Backend) CheckParameters(parameters map[string]string) error {
	return block.CheckParameters(parameters)
}

// CheckMutable implements backend.Modifier.
func (b *Backend) CheckMutable(parameters map[string]string) error {
	return block.CheckMutable(parameters)
}

// RoundSize implements backend.Rounder.
func (b *Backend) RoundSize(bytes int64) int64 { return pool.RoundSize(bytes) }

// List implements backend.Controller.
func (b *Backend) List(ctx context.Context) ([]backend.Volume, error) {
	if err := b.synced(ctx); err != nil {
		return nil, err
	}
	var out []backend.Volume
	for _, o := range objects.Of[api.BlockVolume](b.volumes, "", "") {
		if o.Status.Phase == api.PhaseReady {
			out = append(out, b.show(o))
		}
	}
	slices.SortFunc(out, func(a, b backend.Volume) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

// Get implements backend.Controller. A volume that is being made is not there yet.
func (b *Backend) Get(ctx context.Context, id string) (backend.Volume, error) {
	o, err := b.ready(ctx, id)
	if err != nil {
		return backend.Volume{}, err
	}
	return b.show(o), nil
}

func (b *Backend) show(o *api.BlockVolume) backend.Volume {
	v := backend.Volume{
		ID: o.Name, Name: o.Spec.Name, Node: o.Spec.Node, SizeBytes: o.Status.SizeBytes, FSType: o.Status.FSType,
		Mutable: objects.Plain(o.Status.Mutable), Nodes: slices.Clone(o.Status.Nodes), Problem: o.Status.Problem,
	}
	if o.Spec.Source != nil {
		v.Source = backend.Source{SnapshotID: o.Spec.Source.Snapshot, VolumeID: o.Spec.Source.Volume}
	}
	switch why := b.seemsLost(o.Spec.Node, o); {
	case why != "":
		if v.Problem == "" {
			v.Problem = why
		}
		fallthrough
	case b.outOfService(o.Spec.Node):
		if o.Spec.AttachedTo == nil { // whoever could still use it is not there
			v.Nodes = nil
		}
	}
	return v
}
