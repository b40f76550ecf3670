package cluster

import (
	"context"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	api "berth.io/berth/api/v1alpha1"
	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/backend/block"
	"berth.io/berth/internal/block/objects"
	"berth.io/berth/internal/block/pool"
	"berth.io/berth/internal/boundary"
)

// CreateSnapshot implements backend.Snapshotter.
func (b *Backend) CreateSnapshot(ctx context.Context, r backend.SnapshotRequest) (backend.Snapshot, error) {
	none := backend.Snapshot{}
	if err := block.CheckSnapshotParameters(r.Parameters); err != nil {
		return none, err
	}
	if err := b.synced(ctx); err != nil {
		return none, err
	}
	id := backend.SnapshotID(r.Name)
	taken, err := b.take(ctx, "snapshot/"+id, func() ([]*api.BlockSnapshot, error) {
		if o := objects.Get[api.BlockSnapshot](b.snapshots, id); o != nil {
			return []*api.BlockSnapshot{o}, nil
		}
		v, err := b.ready(ctx, r.VolumeID)
		if err != nil {
			return nil, err
		}
		return []*api.BlockSnapshot{snapshotOf(id, r.Name, v, r.Parameters, nil)}, nil
	}, func(all []*api.BlockSnapshot) error {
		if all[0].Spec.Volume != r.VolumeID {
			return fmt.Errorf("%w: snapshot %q is of volume %s, and one of volume %s is asked for", backend.ErrExists, r.Name, all[0].Spec.Volume, r.VolumeID)
		}
		return nil
	})
	if err != nil {
		return none, err
	}
	return showSnapshot(taken[0]), nil
}

func snapshotOf(id, name string, of *api.BlockVolume, parameters map[string]string, group *api.BlockSnapshotGroup) *api.BlockSnapshot {
	return &api.BlockSnapshot{
		ObjectMeta: metav1.ObjectMeta{Name: id, Labels: map[string]string{api.LabelNode: api.NodeLabel(of.Spec.Node)}, Finalizers: []string{api.FinalizerNode}},
		Spec:       api.BlockSnapshotSpec{Node: of.Spec.Node, Volume: of.Name, Name: name, Parameters: objects.Parameters(parameters), Group: group},
	}
}

// take writes the objects of snapshots that wanted names and are not there yet, and waits until all are ready to use. What is there and
// not the same, same refuses. Objects of snapshots that the node could not take are removed again.
func (b *Backend) take(ctx context.Context, key string, wanted func() ([]*api.BlockSnapshot, error), same func([]*api.BlockSnapshot) error) ([]*api.BlockSnapshot, error) {
	for {
		all, err := wanted()
		if err != nil {
			return nil, err
		}
		if i := slices.IndexFunc(all, stale); i >= 0 {
			// Of an earlier snapshot of this name, or an earlier try: this is a new one.
			if err := b.removeAll(ctx, key, present(all)); err != nil {
				return nil, err
			}
			continue
		}
		if err := same(all); err != nil {
			return nil, err
		}
		for i, o := range all {
			if o.UID != "" {
				continue
			}
			if all[i], err = b.writeSnapshot(ctx, o); err != nil {
				return nil, err
			}
		}
		latest, err := b.taken(ctx, key, all)
		if refusal := (*objects.RemoteError)(nil); asRemote(err, &refusal) && objects.Final(refusal.Kind) {
			if err := b.removeAll(ctx, key, latest); err != nil {
				return nil, err
			}
		}
		return latest, err
	}
}

// stale: it is being deleted, or its node refused it for good while nobody waited.
func stale(o *api.BlockSnapshot) bool {
	e := objects.Find(o.Status.Errors, api.OperationCreate)
	return objects.SnapshotGoes(o) || e != nil && objects.Final(e.Kind) && !o.Status.ReadyToUse
}

// present are those of which there is an object.
func present(all []*api.BlockSnapshot) []*api.BlockSnapshot {
	return slices.DeleteFunc(slices.Clone(all), func(o *api.BlockSnapshot) bool { return o.UID == "" })
}

func (b *Backend) writeSnapshot(ctx context.Context, o *api.BlockSnapshot) (*api.BlockSnapshot, error) {
	var made *api.BlockSnapshot
	err := boundary.Do("backend-cluster/create-snapshot", func() (err error) {
		made, err = b.o.Objects.Snapshots.Create(ctx, o, metav1.CreateOptions{})
		return err
	})
	if apierrors.IsAlreadyExists(err) { // the cache lags behind, after a change of leaders
		made, err = b.o.Objects.Snapshots.Get(ctx, o.Name, metav1.GetOptions{})
		if err == nil && made.Spec.Volume != o.Spec.Volume {
			return nil, fmt.Errorf("%w: snapshot %q is of volume %s, and one of volume %s is asked for", backend.ErrExists, o.Spec.Name, made.Spec.Volume, o.Spec.Volume)
		}
	}
	switch {
	case apierrors.IsInvalid(err):
		return nil, fmt.Errorf("%w: %w", backend.ErrInvalid, err)
	case err != nil:
		return nil, fmt.Errorf("note snapshot %s: %w", o.Name, err)
	}
	return made, nil
}

// taken waits until these snapshots are ready to use. With an error come the objects as they were seen last.
func (b *Backend) taken(ctx context.Context, key string, all []*api.BlockSnapshot) ([]*api.BlockSnapshot, error) {
	latest := slices.Clone(all)
	seen := make([]bool, len(all))
	err := b.await(ctx, key, all[0].Spec.Node, "take "+strings.Replace(key, "/", " ", 1), func() (bool, error) {
		ready := 0
		for i, o := range all {
			s := objects.Get[api.BlockSnapshot](b.snapshots, o.Name)
			if s == nil || s.UID != o.UID {
				if seen[i] {
					return false, fmt.Errorf("snapshot %s was deleted while it was being taken", o.Name)
				}
				continue // the cache will know it in a moment
			}
			began := objects.Find(o.Status.Errors, api.OperationCreate)
			seen[i], latest[i] = true, s
			if s.Status.ReadyToUse {
				ready++
				continue
			}
			if e := objects.Find(s.Status.Errors, api.OperationCreate); e != nil && (began == nil || !e.Time.Equal(&began.Time)) {
				return false, &objects.RemoteError{Node: s.Spec.Node, OperationError: *e}
			}
		}
		return ready == len(all), nil
	})
	return latest, err
}

// DeleteSnapshot implements backend.Snapshotter.
func (b *Backend) DeleteSnapshot(ctx context.Context, id string) error {
	if pool.ValidID(id) != nil {
		return nil // never was one
	}
	if err := b.synced(ctx); err != nil {
		return err
	}
	o := objects.Get[api.BlockSnapshot](b.snapshots, id)
	if o == nil { // perhaps made by another leader a moment ago
		var err error
		if o, err = b.o.Objects.Snapshots.Get(ctx, id, metav1.GetOptions{}); apierrors.IsNotFound(err) {
			return nil
		} else if err != nil {
			return fmt.Errorf("look for snapshot %s: %w", id, err)
		}
	}
	if o.Spec.Group != nil && !objects.SnapshotGoes(o) {
		return fmt.Errorf("%w: snapshot %s is part of the group snapshot %s and goes with it", backend.ErrInGroup, id, o.Spec.Group.ID)
	}
	return b.removeAll(ctx, "snapshot/"+id, []*api.BlockSnapshot{o})
}

// removeAll deletes these objects of snapshots, and waits until they are gone. The marks come first: without them the node keeps the data.
func (b *Backend) removeAll(ctx context.Context, key string, all []*api.BlockSnapshot) error {
	if len(all) == 0 {
		return nil
	}
	for _, o := range all {
		if objects.Marked(o) {
			continue
		}
		err := boundary.Do("backend-cluster/mark-snapshot", func() error {
			patch, err := objects.MarkPatch(o)
			if err == nil {
				_, err = b.o.Objects.Snapshots.Patch(ctx, o.Name, types.MergePatchType, patch, metav1.PatchOptions{})
			}
			return err
		})
		if err != nil && !gone(err) {
			return fmt.Errorf("mark the data of snapshot %s to be deleted: %w", o.Name, err)
		}
	}
	for _, o := range all {
		if o.DeletionTimestamp != nil {
			continue
		}
		err := boundary.Do("backend-cluster/delete-snapshot", func() error {
			return b.o.Objects.Snapshots.Delete(ctx, o.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(o.UID))})
		})
		if err != nil && !gone(err) {
			return fmt.Errorf("delete snapshot %s: %w", o.Name, err)
		}
	}
	node := all[0].Spec.Node
	for _, o := range all {
		lost, err := b.lost(ctx, node, o)
		if err != nil {
			return err
		}
		if lost == "" {
			continue
		}
		b.o.Log.Warn("a snapshot is given up without its data being deleted", "snapshot", o.Name, "node", node, "because", lost)
		err = boundary.Do("backend-cluster/give-up-snapshot", func() error {
			patch, err := objects.ReleasePatch(o)
			if err == nil {
				_, err = b.o.Objects.Snapshots.Patch(ctx, o.Name, types.JSONPatchType, patch, metav1.PatchOptions{})
			}
			return err
		})
		if err != nil && !gone(err) {
			return fmt.Errorf("give up snapshot %s of node %s: %w", o.Name, node, err)
		}
	}
	return b.await(ctx, key, node, "delete "+strings.Replace(key, "/", " ", 1), func() (bool, error) {
		for _, o := range all {
			s := objects.Get[api.BlockSnapshot](b.snapshots, o.Name)
			if s == nil || s.UID != o.UID {
				continue
			}
			began := objects.Find(o.Status.Errors, api.OperationDelete)
			if e := objects.Find(s.Status.Errors, api.OperationDelete); e != nil && (began == nil || !e.Time.Equal(&began.Time)) {
				return false, &objects.RemoteError{Node: node, OperationError: *e}
			}
			return false, nil
		}
		return true, nil
	})
}

// Snapshot implements backend.Snapshotter.
func (b *Backend) Snapshot(ctx context.Context, id string) (backend.Snapshot, error) {
	if err := b.synced(ctx); err != nil {
		return backend.Snapshot{}, err
	}
	o := objects.Get[api.BlockSnapshot](b.snapshots, id)
	if o == nil || !o.Status.ReadyToUse {
		return backend.Snapshot{}, fmt.Errorf("%w: %s", backend.ErrSnapshotNotFound, id)
	}
	return showSnapshot(o), nil
}

// Snapshots implements backend.Snapshotter.
func (b *Backend) Snapshots(ctx context.Context) ([]backend.Snapshot, error) {
	if err := b.synced(ctx); err != nil {
		return nil, err
	}
	var out []backend.Snapshot
	for _, o := range objects.Of[api.BlockSnapshot](b.snapshots, "", "") {
		if o.Status.ReadyToUse {
			out = append(out, showSnapshot(o))
		}
	}
	slices.SortFunc(out, func(a, b backend.Snapshot) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

func showSnapshot(o *api.BlockSnapshot) backend.Snapshot {
	s := backend.Snapshot{ID: o.Name, Name: o.Spec.Name, VolumeID: o.Spec.Volume, Node: o.Spec.Node, SizeBytes: o.Status.SizeBytes, FSType: o.Status.FSType}
	if o.Status.CreationTime != nil {
		s.Taken = o.Status.CreationTime.Time
	}
	if o.Spec.Group != nil {
		s.GroupID = o.Spec.Group.ID
	}
	return s
}
