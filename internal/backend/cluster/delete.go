package cluster

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	api "berth.io/berth/api/v1alpha1"
	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/block/objects"
	"berth.io/berth/internal/block/pool"
	"berth.io/berth/internal/boundary"
)

// Delete implements backend.Controller. It ends when the node has deleted the data, and the object is gone. A deletion that was begun
// goes on without its caller.
func (b *Backend) Delete(ctx context.Context, id string) error {
	if pool.ValidID(id) != nil {
		return nil // never was one
	}
	if err := b.synced(ctx); err != nil {
		return err
	}
	o := objects.Get[api.BlockVolume](b.volumes, id)
	if o == nil { // perhaps made by another leader a moment ago
		var err error
		if o, err = b.o.Objects.Volumes.Get(ctx, id, metav1.GetOptions{}); apierrors.IsNotFound(err) {
			return nil
		} else if err != nil {
			return fmt.Errorf("look for volume %s: %w", id, err)
		}
	}
	if !objects.VolumeGoes(o) {
		lost, err := b.lost(ctx, o.Spec.Node, o)
		if err != nil {
			return err
		}
		if nodes := attachedTo(o); len(nodes) > 0 && lost == "" {
			return fmt.Errorf("%w: volume %s is attached to node %s", backend.ErrInUse, id, nodes[0])
		}
	}
	return b.remove(ctx, o)
}

// attachedTo are the nodes that may use a volume, or are about to.
func attachedTo(o *api.BlockVolume) []string {
	if o.Spec.AttachedTo != nil {
		return []string{o.Spec.AttachedTo.Node}
	}
	return o.Status.Nodes
}

// remove deletes this object of a volume, not a later one of its name, and waits until it is gone. The mark comes first: without it the
// node keeps the data.
func (b *Backend) remove(ctx context.Context, o *api.BlockVolume) error {
	began := objects.Find(o.Status.Errors, api.OperationDelete)
	if !objects.Marked(o) {
		err := boundary.Do("backend-cluster/mark-volume", func() error {
			patch, err := objects.MarkPatch(o)
			if err == nil {
				_, err = b.o.Objects.Volumes.Patch(ctx, o.Name, types.MergePatchType, patch, metav1.PatchOptions{})
			}
			return err
		})
		if gone(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("mark the data of volume %s to be deleted: %w", o.Name, err)
		}
	}
	if o.DeletionTimestamp == nil {
		err := boundary.Do("backend-cluster/delete-volume", func() error {
			return b.o.Objects.Volumes.Delete(ctx, o.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(o.UID))})
		})
		if gone(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("delete volume %s: %w", o.Name, err)
		}
	}
	lost, err := b.lost(ctx, o.Spec.Node, o)
	if err != nil {
		return err
	}
	if lost != "" {
		b.o.Log.Warn("a volume is given up without its data being deleted", "volume", o.Name, "node", o.Spec.Node, "because", lost)
		err := boundary.Do("backend-cluster/give-up-volume", func() error {
			patch, err := objects.ReleasePatch(o)
			if err == nil {
				_, err = b.o.Objects.Volumes.Patch(ctx, o.Name, types.JSONPatchType, patch, metav1.PatchOptions{})
			}
			return err
		})
		if err != nil && !gone(err) {
			return fmt.Errorf("give up volume %s of node %s: %w", o.Name, o.Spec.Node, err)
		}
	}
	return b.await(ctx, "volume/"+o.Name, o.Spec.Node, "delete volume "+o.Name, func() (bool, error) {
		v := objects.Get[api.BlockVolume](b.volumes, o.Name)
		if v == nil || v.UID != o.UID {
			return true, nil
		}
		if e := objects.Find(v.Status.Errors, api.OperationDelete); e != nil && (began == nil || !e.Time.Equal(&began.Time)) {
			return false, &objects.RemoteError{Node: v.Spec.Node, OperationError: *e}
		}
		return false, nil
	})
}

// gone: there is no such object any more, or another one of its name.
func gone(err error) bool { return apierrors.IsNotFound(err) || apierrors.IsConflict(err) }
