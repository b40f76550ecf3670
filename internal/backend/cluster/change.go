package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	api "berth.io/berth/api/v1alpha1"
	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/block/objects"
	"berth.io/berth/internal/boundary"
)

// Resize implements backend.Controller. A size that the node cannot give is taken back from the spec.
func (b *Backend) Resize(ctx context.Context, id string, bytes int64) (backend.Volume, error) {
	o, err := b.ready(ctx, id)
	if err != nil {
		return backend.Volume{}, err
	}
	if bytes > 1<<60 {
		return backend.Volume{}, fmt.Errorf("%w: %d bytes", backend.ErrTooLarge, bytes)
	}
	if bytes <= o.Status.SizeBytes {
		return b.show(o), nil
	}
	c := change{op: api.OperationResize, what: fmt.Sprintf("extend volume %s to %d bytes", id, bytes)}
	c.done = func(v *api.BlockVolume) bool { return v.Status.SizeBytes >= bytes }
	if o.Spec.SizeBytes != bytes {
		c.spec = map[string]any{"sizeBytes": bytes}
	}
	c.back = func(v *api.BlockVolume) map[string]any { return map[string]any{"sizeBytes": v.Status.SizeBytes} }
	o, err = b.apply(ctx, o, c)
	if err != nil {
		return backend.Volume{}, err
	}
	return b.show(o), nil
}

// Modify implements backend.Modifier. What the node refuses is taken back from the spec.
func (b *Backend) Modify(ctx context.Context, id string, parameters map[string]string) error {
	o, err := b.ready(ctx, id)
	if err != nil {
		return err
	}
	if err := b.CheckMutable(parameters); err != nil {
		return err
	}
	c := change{op: api.OperationModify, what: "set the parameters of volume " + id}
	c.done = func(v *api.BlockVolume) bool {
		for k, want := range parameters {
			if have, ok := v.Status.Mutable[k]; !ok || string(have) != want {
				return false
			}
		}
		return true
	}
	if c.done(o) {
		return nil
	}
	for k, want := range parameters {
		if have, ok := o.Spec.Mutable[k]; !ok || string(have) != want {
			c.spec = map[string]any{"mutable": parameters}
		}
	}
	c.back = func(v *api.BlockVolume) map[string]any {
		was := map[string]any{}
		for k := range parameters {
			was[k] = nil
			if have, ok := v.Status.Mutable[k]; ok {
				was[k] = have
			}
		}
		return map[string]any{"mutable": was}
	}
	_, err = b.apply(ctx, o, c)
	return err
}

// Attach implements backend.Controller.
func (b *Backend) Attach(ctx context.Context, id, node string, readOnly bool) error {
	o, err := b.ready(ctx, id)
	if err != nil {
		return err
	}
	if objects.VolumeGoes(o) {
		return fmt.Errorf("%w: %s is being deleted", backend.ErrNotFound, id)
	}
	if b.node(node) == nil {
		return fmt.Errorf("%w: %q", backend.ErrNodeNotFound, node)
	}
	if node != o.Spec.Node {
		return fmt.Errorf("%w: %q (volume %s is on node %q, and usable there alone)", backend.ErrNodeNotFound, node, id, o.Spec.Node)
	}
	want := api.BlockVolumeAttachment{Node: node, ReadOnly: readOnly}
	c := change{op: api.OperationAttach, what: "attach volume " + id}
	c.done = func(v *api.BlockVolume) bool {
		return v.Spec.AttachedTo != nil && *v.Spec.AttachedTo == want && len(v.Status.Nodes) == 1 && v.Status.Nodes[0] == node && v.Status.ReadOnly == readOnly
	}
	if c.done(o) {
		return nil
	}
	if have := o.Spec.AttachedTo; have != nil && have.ReadOnly != readOnly {
		words := map[bool]string{true: "reading", false: "writing"}
		return fmt.Errorf("%w: volume %s is attached to node %s for %s, and for %s is asked for: detach it first", backend.ErrExists, id, have.Node, words[have.ReadOnly], words[readOnly])
	}
	if o.Spec.AttachedTo == nil {
		c.spec = map[string]any{"attachedTo": want}
	}
	c.back = func(*api.BlockVolume) map[string]any { return map[string]any{"attachedTo": nil} }
	_, err = b.apply(ctx, o, c)
	return err
}

// Detach implements backend.Controller. Where the node is lost or out of service, nobody there can use the volume, and only there it
// could be used: what is wanted is noted, and not waited for.
func (b *Backend) Detach(ctx context.Context, id, node string) error {
	o, err := b.ready(ctx, id)
	if err != nil {
		return notThere(err)
	}
	if node != "" && node != o.Spec.Node || o.Spec.AttachedTo == nil && len(o.Status.Nodes) == 0 {
		return nil
	}
	c := change{op: api.OperationDetach, what: "detach volume " + id}
	c.done = func(v *api.BlockVolume) bool {
		// Once the node has seen that, what it still names is attached by somebody else there (FlexVolume), who lets go of it himself.
		seen := v.Status.ObservedGeneration >= v.Generation && objects.Find(v.Status.Errors, api.OperationDetach) == nil
		return v.Spec.AttachedTo == nil && (len(v.Status.Nodes) == 0 || seen)
	}
	if o.Spec.AttachedTo != nil {
		c.spec = map[string]any{"attachedTo": nil}
	}
	lost, err := b.lost(ctx, o.Spec.Node, o)
	if err != nil {
		return err
	}
	if lost != "" || b.outOfService(o.Spec.Node) {
		c.done = func(v *api.BlockVolume) bool { return v.Spec.AttachedTo == nil }
	}
	_, err = b.apply(ctx, o, c)
	return notThere(err)
}

// change of a volume's spec that its node is to carry out.
type change struct {
	op   api.Operation
	what string
	// spec is what is written, as a JSON merge patch; nil when it stands there already.
	spec map[string]any
	// back is what withdraws it, after a refusal for good; nil: it stays.
	back func(*api.BlockVolume) map[string]any
	done func(*api.BlockVolume) bool
}

// apply writes a change and waits until it is done or refused. The object that it returns is the latest one.
func (b *Backend) apply(ctx context.Context, o *api.BlockVolume, c change) (*api.BlockVolume, error) {
	began := objects.Find(o.Status.Errors, c.op)
	generation := o.Generation
	if c.spec != nil {
		v, err := b.patchSpec(ctx, o, c.spec)
		if err != nil {
			return nil, err
		}
		generation = v.Generation
	}
	last := o
	err := b.await(ctx, "volume/"+o.Name, o.Spec.Node, c.what, func() (bool, error) {
		v := objects.Get[api.BlockVolume](b.volumes, o.Name)
		if v == nil || v.UID != o.UID {
			return false, fmt.Errorf("%w: %s", backend.ErrNotFound, o.Name)
		}
		last = v
		if v.Generation < generation {
			return false, nil // the cache will know in a moment
		}
		if c.done(v) {
			return true, nil
		}
		e := objects.Find(v.Status.Errors, c.op)
		if e == nil || v.Status.ObservedGeneration < generation {
			return false, nil
		}
		if c.spec == nil && began != nil && e.Time.Equal(&began.Time) && !objects.Final(e.Kind) {
			return false, nil // of a try before this call; the node goes on trying
		}
		return false, &objects.RemoteError{Node: v.Spec.Node, OperationError: *e}
	})
	if remote := (*objects.RemoteError)(nil); asRemote(err, &remote) && c.back != nil && objects.Final(remote.Kind) {
		if _, err := b.patchSpec(ctx, last, c.back(last)); err != nil {
			return nil, fmt.Errorf("%w (and it could not be withdrawn: %w)", remote, err)
		}
	}
	return last, err
}

// patchSpec changes fields of this object's spec, and of no later one of its name.
func (b *Backend) patchSpec(ctx context.Context, o *api.BlockVolume, spec map[string]any) (*api.BlockVolume, error) {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": o.UID}, "spec": spec})
	if err != nil {
		return nil, err
	}
	var v *api.BlockVolume
	err = boundary.Do("backend-cluster/change-volume", func() (err error) {
		v, err = b.o.Objects.Volumes.Patch(ctx, o.Name, types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	})
	switch {
	case gone(err):
		return nil, fmt.Errorf("%w: %s", backend.ErrNotFound, o.Name)
	case apierrors.IsInvalid(err):
		return nil, fmt.Errorf("%w: %w", backend.ErrInvalid, err)
	case err != nil:
		return nil, fmt.Errorf("note what is wanted of volume %s: %w", o.Name, err)
	}
	return v, nil
}

func asRemote(err error, to **objects.RemoteError) bool { return errors.As(err, to) }

// notThere makes a success of ErrNotFound.
func notThere(err error) error {
	if errors.Is(err, backend.ErrNotFound) {
		return nil
	}
	return err
}
