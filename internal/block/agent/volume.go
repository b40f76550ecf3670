package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	api "berth.io/berth/api/v1alpha1"
	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/block/objects"
	"berth.io/berth/internal/boundary"
)

// volume works one volume's object.
func (a *Agent) volume(ctx context.Context, id string) error {
	o := objects.Get[api.BlockVolume](a.volumes, id)
	if o == nil || o.Spec.Node != a.o.Node {
		return nil // data of that name, if any, are an orphan now
	}
	if goes(o, latest(&a.written, o.UID, o.Status)) && !a.hasUnmarked(ctx, o) {
		return a.deleteVolume(ctx, o)
	}
	status, f := a.realise(ctx, o)
	status.Errors, status.Problem = f.now, keptVolume(o, false, status.Problem)
	if err := a.reportVolume(ctx, o, status); err != nil {
		return err
	}
	if f.again {
		return errAgain
	}
	return nil
}

// goes is objects.VolumeGoes with the status that was written last.
func goes(o *api.BlockVolume, status api.BlockVolumeStatus) bool {
	return objects.VolumeGoes(&api.BlockVolume{ObjectMeta: o.ObjectMeta, Status: status})
}

// hasUnmarked: the object tells of no data, and here they are all the same, since it was made for data that were there before. It is worked
// first, and then it tells.
func (a *Agent) hasUnmarked(ctx context.Context, o *api.BlockVolume) bool {
	if objects.Marked(o) {
		return false
	}
	_, err := a.o.Backend.Get(ctx, o.Name)
	return !errors.Is(err, backend.ErrNotFound)
}

// keptVolume is a volume's problem, and that somebody deleted its object by hand.
func keptVolume(o *api.BlockVolume, goes bool, problem string) string {
	return withKept(problem, objects.Kept(o, goes, "blockvolume", "PersistentVolume"))
}

func withKept(problem, kept string) string {
	if problem != "" && kept != "" {
		problem += "; "
	}
	return objects.Clip(problem + kept)
}

// realise makes the volume what its spec says, as far as that can be done, and returns its status without errors, and the errors.
//
// The effects are the backend's, in boundaries of its own.
func (a *Agent) realise(ctx context.Context, o *api.BlockVolume) (api.BlockVolumeStatus, *failures) {
	was := latest(&a.written, o.UID, o.Status)
	status := was
	status.ObservedGeneration, status.Problem = o.Generation, ""
	f := &failures{}
	if status.Phase == "" {
		status.Phase = api.PhasePending
	}
	if was.Phase == api.PhaseFailed && was.ObservedGeneration == o.Generation {
		f.now = was.Errors // refused for good: the controller takes the object away
		return was, f
	}
	v, err := a.there(ctx, o, was.Phase == api.PhaseReady)
	if err != nil {
		if was.Phase == api.PhaseReady {
			status.Problem = objects.Clip(err.Error())
			f.again = !errors.Is(err, backend.ErrNotFound)
			return status, f
		}
		f.note(api.OperationCreate, err)
		status.Phase = api.PhasePending
		if !f.again {
			status.Phase = api.PhaseFailed
		}
		return status, f
	}
	status.Phase = api.PhaseReady
	if o.Spec.SizeBytes > v.SizeBytes {
		f.note(api.OperationResize, a.metrics.timed(api.OperationResize, func() error {
			_, err := a.o.Backend.Resize(ctx, o.Name, o.Spec.SizeBytes)
			return err
		}))
	}
	if wanted := differing(o.Spec.Mutable, v.Mutable); len(wanted) > 0 {
		f.note(api.OperationModify, a.metrics.timed(api.OperationModify, func() error { return a.modify(ctx, o.Name, wanted) }))
	}
	status.ReadOnly = false
	if to := o.Spec.AttachedTo; to != nil {
		failed := f.note(api.OperationAttach, a.metrics.timed(api.OperationAttach, func() error { return a.o.Backend.Attach(ctx, o.Name, to.Node, to.ReadOnly) }))
		status.ReadOnly = to.ReadOnly && !failed || failed && was.ReadOnly
	} else if len(v.Nodes) > 0 {
		f.note(api.OperationDetach, a.metrics.timed(api.OperationDetach, func() error { return a.o.Backend.Detach(ctx, o.Name, "") }))
	}
	if v, err = a.o.Backend.Get(ctx, o.Name); err != nil {
		status.Problem, f.again = objects.Clip(err.Error()), true
		return status, f
	}
	status.SizeBytes, status.FSType, status.Mutable, status.Nodes = v.SizeBytes, v.FSType, objects.Parameters(v.Mutable), v.Nodes
	status.Problem = objects.Clip(v.Problem)
	return status, f
}

// there is the volume on this node; it is made where it never was.
func (a *Agent) there(ctx context.Context, o *api.BlockVolume, made bool) (backend.Volume, error) {
	if made {
		v, err := a.o.Backend.Get(ctx, o.Name)
		if errors.Is(err, backend.ErrNotFound) {
			err = fmt.Errorf("%w: it was made on node %s, and its data are not in the pool there any more: restore the pool, or delete the volume", err, a.o.Node)
		}
		return v, err
	}
	r := backend.CreateRequest{
		Name: o.Spec.Name, RequiredBytes: o.Spec.SizeBytes, LimitBytes: o.Spec.LimitBytes, FSType: o.Spec.FSType, FSTypeIsDefault: o.Spec.FSTypeIsDefault,
		Parameters: objects.Plain(o.Spec.Parameters), Mutable: objects.Plain(o.Spec.Mutable),
	}
	if s := o.Spec.Source; s != nil {
		r.Source = backend.Source{SnapshotID: s.Snapshot, VolumeID: s.Volume}
	}
	if id := backend.VolumeID(r.Name); id != o.Name {
		return backend.Volume{}, fmt.Errorf("%w: the volume called %q has the id %s, and not %s: objects are made by the controller, for claims", backend.ErrInvalid, r.Name, id, o.Name)
	}
	var v backend.Volume
	err := a.metrics.timed(api.OperationCreate, func() (err error) {
		v, err = a.o.Backend.Create(ctx, r)
		return err
	})
	return v, err
}

func (a *Agent) modify(ctx context.Context, id string, wanted map[string]string) error {
	if a.modifier == nil {
		return fmt.Errorf("%w: the storage of node %s has no parameters that can be changed", backend.ErrInvalid, a.o.Node)
	}
	return a.modifier.Modify(ctx, id, wanted)
}

// deleteVolume deletes the data, and lets the object go.
//
// The effects on the pool are the backend's, in boundaries of its own.
func (a *Agent) deleteVolume(ctx context.Context, o *api.BlockVolume) error {
	if !held(o) {
		return nil
	}
	f := &failures{}
	if o.Spec.AttachedTo == nil {
		f.note(api.OperationDetach, a.o.Backend.Detach(ctx, o.Name, ""))
	}
	if f.note(api.OperationDelete, a.metrics.timed(api.OperationDelete, func() error { return a.o.Backend.Delete(ctx, o.Name) })) {
		status := latest(&a.written, o.UID, o.Status)
		status.ObservedGeneration, status.Errors = o.Generation, f.now
		if v, err := a.o.Backend.Get(ctx, o.Name); err == nil {
			status.Nodes = v.Nodes
		}
		if err := a.reportVolume(ctx, o, status); err != nil {
			return err
		}
		return errAgain // also what is in use: it will not be for ever, and the deletion cannot be taken back
	}
	err := boundary.Do("block-agent/release-volume", func() error {
		patch, err := objects.ReleasePatch(o)
		if err == nil {
			_, err = a.o.Objects.Volumes.Patch(ctx, o.Name, types.JSONPatchType, patch, metav1.PatchOptions{})
		}
		return err
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("take the finalizer from volume %s: %w", o.Name, err)
	}
	a.written.forget(o.UID)
	return nil
}

// differing are the parameters that are wanted and not in force.
func differing(wanted map[string]api.Parameter, have map[string]string) map[string]string {
	out := objects.Plain(wanted)
	maps.DeleteFunc(out, func(k, v string) bool {
		is, ok := have[k]
		return ok && is == v
	})
	return out
}
