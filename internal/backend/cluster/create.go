package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	api "berth.io/berth/api/v1alpha1"
	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/backend/block"
	"berth.io/berth/internal/block/objects"
	"berth.io/berth/internal/block/pool"
	"berth.io/berth/internal/boundary"
)

// Create implements backend.Controller. The volume's object is written first; it goes again when its node refuses, and another node
// is tried where the request allows one.
func (b *Backend) Create(ctx context.Context, r backend.CreateRequest) (backend.Volume, error) {
	none := backend.Volume{}
	if err := b.CheckParameters(r.Parameters); err != nil {
		return none, err
	}
	if err := b.CheckMutable(r.Mutable); err != nil {
		return none, err
	}
	if err := checkSizes(r); err != nil {
		return none, err
	}
	if err := b.synced(ctx); err != nil {
		return none, err
	}
	id := backend.VolumeID(r.Name)
	tried := map[string]bool{}
	var refused error
	for {
		o := objects.Get[api.BlockVolume](b.volumes, id)
		ours := false
		if o == nil {
			node, err := b.nodeFor(ctx, r, tried)
			if err != nil && refused != nil {
				return none, refused // what a node said is more than what its pool's object says
			}
			if err != nil {
				return none, err
			}
			if o, ours, err = b.write(ctx, r, id, node); err != nil {
				return none, err
			}
		}
		stale, err := b.stale(ctx, o, r, ours)
		if err != nil {
			return none, err
		}
		if stale {
			if err := b.remove(ctx, o); err != nil {
				return none, err
			}
			continue
		}
		if err := asked(o, r); err != nil {
			return none, err
		}
		v, err := b.made(ctx, o)
		switch {
		case err == nil:
			if err := sized(v, r); err != nil {
				return none, err
			}
			return b.show(v), nil
		case v == nil || v.Status.Phase != api.PhaseFailed:
			return none, err // it goes on; the same call again waits for it
		}
		refused = err
		tried[v.Spec.Node] = true
		if err := b.remove(ctx, v); err != nil {
			return none, err
		}
		if !errors.Is(refused, backend.ErrNoSpace) {
			return none, refused
		}
	}
}

// stale says of an object that is there whether it is of an earlier volume of that name, or of a try that came to nothing: then this
// is a new one. A volume that was made is never that.
func (b *Backend) stale(ctx context.Context, o *api.BlockVolume, r backend.CreateRequest, ours bool) (bool, error) {
	switch {
	case objects.VolumeGoes(o):
		return true, nil
	case ours || o.Status.Phase == api.PhaseReady:
		return false, nil
	case o.Status.Phase == api.PhaseFailed:
		return true, nil
	case len(r.Place.Requisite) > 0 && !slices.Contains(r.Place.Requisite, o.Spec.Node):
		return true, nil // the scheduler has another node in mind by now
	}
	lost, err := b.lost(ctx, o.Spec.Node, o)
	return lost != "", err
}

// checkSizes refuses what no node could make, before anything is written.
func checkSizes(r backend.CreateRequest) error {
	const most = int64(1) << 60
	switch {
	case r.RequiredBytes < 0 || r.LimitBytes < 0:
		return fmt.Errorf("%w: a size of %d bytes (limit %d) is negative", backend.ErrInvalid, r.RequiredBytes, r.LimitBytes)
	case r.LimitBytes > 0 && r.RequiredBytes > r.LimitBytes:
		return fmt.Errorf("%w: %d bytes are required and %d are the limit", backend.ErrInvalid, r.RequiredBytes, r.LimitBytes)
	case r.RequiredBytes > most:
		return fmt.Errorf("%w: %d bytes", backend.ErrTooLarge, r.RequiredBytes)
	case r.Source.SnapshotID != "" && r.Source.VolumeID != "":
		return fmt.Errorf("%w: a volume has one source, a snapshot or a volume, and not both", backend.ErrInvalid)
	}
	return nil
}

// nodeFor chooses the node of a new volume. A copy is made where its source is.
func (b *Backend) nodeFor(ctx context.Context, r backend.CreateRequest, tried map[string]bool) (string, error) {
	source, node, err := b.sourceOf(ctx, r.Source)
	if err != nil {
		return "", err
	}
	bytes := r.RequiredBytes
	if bytes == 0 && r.LimitBytes > 0 {
		bytes = min(block.DefaultBytes, r.LimitBytes)
	} else if bytes == 0 {
		bytes = block.DefaultBytes
	}
	if node == "" {
		return choose(b.rooms(), r.Place, b.RoundSize(bytes), tried)
	}
	if len(r.Place.Requisite) > 0 && !slices.Contains(r.Place.Requisite, node) {
		return "", fmt.Errorf("%w: %s is on node %s, where its copy would be, and the volume is asked for on node %s: data are not copied between nodes; let the pod run on %s",
			backend.ErrInvalid, source, node, strings.Join(r.Place.Requisite, ", "), node)
	}
	if tried[node] {
		return "", fmt.Errorf("%w on node %s, which has %s", backend.ErrNoSpace, node, source)
	}
	return node, nil // also one that is away: there is no other
}

// sourceOf finds what is to be copied, in words, and its node.
func (b *Backend) sourceOf(ctx context.Context, s backend.Source) (words, node string, err error) {
	const hint = "it was deleted, or belongs to another driver, from where nothing can be copied"
	switch {
	case s.SnapshotID != "":
		from, err := b.Snapshot(ctx, s.SnapshotID)
		if err != nil {
			return "", "", fmt.Errorf("%w (%s)", err, hint)
		}
		return "snapshot " + from.ID, from.Node, nil
	case s.VolumeID != "":
		from, err := b.Get(ctx, s.VolumeID)
		if err != nil {
			return "", "", fmt.Errorf("%w (%s)", err, hint)
		}
		return "volume " + from.ID, from.Node, nil
	}
	return "", "", nil
}

// write makes the object; ours is false when somebody else did.
func (b *Backend) write(ctx context.Context, r backend.CreateRequest, id, node string) (o *api.BlockVolume, ours bool, err error) {
	o = &api.BlockVolume{
		ObjectMeta: metav1.ObjectMeta{Name: id, Labels: map[string]string{api.LabelNode: api.NodeLabel(node)}, Finalizers: []string{api.FinalizerNode}},
		Spec: api.BlockVolumeSpec{
			Node: node, Name: r.Name, SizeBytes: r.RequiredBytes, LimitBytes: r.LimitBytes, FSType: r.FSType, FSTypeIsDefault: r.FSTypeIsDefault,
			Parameters: objects.Parameters(r.Parameters), Mutable: objects.Parameters(r.Mutable),
		},
	}
	if r.Source != (backend.Source{}) {
		o.Spec.Source = &api.BlockVolumeSource{Snapshot: r.Source.SnapshotID, Volume: r.Source.VolumeID}
	}
	var made *api.BlockVolume
	err = boundary.Do("backend-cluster/create-volume", func() (err error) {
		made, err = b.o.Objects.Volumes.Create(ctx, o, metav1.CreateOptions{})
		return err
	})
	switch {
	case apierrors.IsAlreadyExists(err): // the cache lags behind, after a change of leaders
		made, err = b.o.Objects.Volumes.Get(ctx, id, metav1.GetOptions{})
	case apierrors.IsInvalid(err):
		return nil, false, fmt.Errorf("%w: %w", backend.ErrInvalid, err)
	case err == nil:
		return made, true, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("note volume %s: %w", id, err)
	}
	return made, false, nil
}

// asked says whether the object's spec is what is asked for.
func asked(o *api.BlockVolume, r backend.CreateRequest) error {
	differs := func(what string, have, want any) error {
		return fmt.Errorf("%w: volume %q has %s %v, and %v is asked for", backend.ErrExists, r.Name, what, have, want)
	}
	var source backend.Source
	if o.Spec.Source != nil {
		source = backend.Source{SnapshotID: o.Spec.Source.Snapshot, VolumeID: o.Spec.Source.Volume}
	}
	fsType := o.Spec.FSType
	if r.FSTypeIsDefault && o.Spec.FSTypeIsDefault {
		fsType = r.FSType
	}
	switch {
	case o.Spec.Name != r.Name:
		return differs("name", o.Spec.Name, r.Name)
	case fsType != r.FSType:
		return differs("filesystem", fsType, r.FSType)
	case source != r.Source:
		return fmt.Errorf("%w: volume %q is there, made from another source than is asked for", backend.ErrExists, r.Name)
	case !maps.Equal(objects.Plain(o.Spec.Parameters), r.Parameters) && len(o.Spec.Parameters)+len(r.Parameters) > 0:
		return differs("parameters", o.Spec.Parameters, r.Parameters)
	case o.Status.Phase != api.PhaseReady && (o.Spec.SizeBytes != r.RequiredBytes || o.Spec.LimitBytes != r.LimitBytes):
		return differs("size", o.Spec.SizeBytes, r.RequiredBytes)
	case len(r.Place.Requisite) > 0 && !slices.Contains(r.Place.Requisite, o.Spec.Node):
		return fmt.Errorf("%w: volume %q is on node %s, and it is asked for on node %s", backend.ErrExists, r.Name, o.Spec.Node, strings.Join(r.Place.Requisite, ", "))
	}
	return nil
}

// sized says whether the volume has a size that is asked for.
func sized(o *api.BlockVolume, r backend.CreateRequest) error {
	if have := o.Status.SizeBytes; have < r.RequiredBytes || r.LimitBytes > 0 && have > r.LimitBytes {
		return fmt.Errorf("%w: volume %q has %d bytes, and %d are asked for (limit %d)", backend.ErrExists, r.Name, have, r.RequiredBytes, r.LimitBytes)
	}
	return nil
}

// made waits until the volume is Ready. With an error comes the object as it was seen last; nil when it is gone.
func (b *Backend) made(ctx context.Context, o *api.BlockVolume) (*api.BlockVolume, error) {
	seen := false
	began := objects.Find(o.Status.Errors, api.OperationCreate)
	last := o
	err := b.await(ctx, "volume/"+o.Name, o.Spec.Node, "make volume "+o.Name, func() (bool, error) {
		v := objects.Get[api.BlockVolume](b.volumes, o.Name)
		if v == nil || v.UID != o.UID {
			if seen {
				last = nil
				return false, fmt.Errorf("volume %s was deleted while it was being made", o.Name)
			}
			return false, nil // the cache will know it in a moment
		}
		seen, last = true, v
		if v.Status.Phase == api.PhaseReady {
			return true, nil
		}
		if e := objects.Find(v.Status.Errors, api.OperationCreate); e != nil && (began == nil || !e.Time.Equal(&began.Time) || v.Status.Phase == api.PhaseFailed) {
			return false, &objects.RemoteError{Node: v.Spec.Node, OperationError: *e}
		}
		return false, nil
	})
	return last, err
}

// ready is the object of a volume that is there. ErrNotFound.
func (b *Backend) ready(ctx context.Context, id string) (*api.BlockVolume, error) {
	if err := pool.ValidID(id); err != nil {
		return nil, fmt.Errorf("%w: %w", backend.ErrNotFound, err)
	}
	if err := b.synced(ctx); err != nil {
		return nil, err
	}
	o := objects.Get[api.BlockVolume](b.volumes, id)
	if o == nil || o.Status.Phase != api.PhaseReady {
		return nil, fmt.Errorf("%w: %s", backend.ErrNotFound, id)
	}
	return o, nil
}
