package claim

import (
	"encoding/json"
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	storagehelpers "k8s.io/component-helpers/storage/volume"
)

// patch is a JSON merge patch of one object. Writes are patches and not updates: provisioner, resizer and scheduler
// write other fields of the same objects at the same moments, and an update would meet their conflicts in the
// hot path. Every patch names the object's UID, so a namesake made meanwhile is never written; a write whose
// decision rests on the state of the very fields it changes is guarded by the resourceVersion as well.
type patch map[string]any

func newPatch(o metav1.Object) patch {
	return patch{"metadata": map[string]any{"uid": o.GetUID()}}
}

// guarded makes the API server refuse the patch when the object has changed since it was read.
func (p patch) guarded(o metav1.Object) patch {
	p["metadata"].(map[string]any)["resourceVersion"] = o.GetResourceVersion()
	return p
}

// annotate sets an annotation; nil as the value removes it.
func (p patch) annotate(name string, value any) patch {
	meta := p["metadata"].(map[string]any)
	if meta["annotations"] == nil {
		meta["annotations"] = map[string]any{}
	}
	meta["annotations"].(map[string]any)[name] = value
	return p
}

func (p patch) spec(spec map[string]any) patch     { p["spec"] = spec; return p }
func (p patch) status(status map[string]any) patch { p["status"] = status; return p }

func (p patch) finalizers(f []string) patch {
	if f == nil {
		f = []string{}
	}
	p["metadata"].(map[string]any)["finalizers"] = f
	return p
}

// json cannot fail: a patch holds strings, lists, maps and API types.
func (p patch) json() []byte {
	b, err := json.Marshal(p)
	if err != nil {
		panic("claim: marshal patch: " + err.Error())
	}
	return b
}

// bindVolumePatch makes the volume point at the claim: write 1. nil when it does already. A claimRef without UID is
// the user's own (or the scheduler's): it is completed, and not marked as bound by the controller.
func bindVolumePatch(pv *v1.PersistentVolume, c *v1.PersistentVolumeClaim) patch {
	r := pv.Spec.ClaimRef
	if r != nil && r.Name == c.Name && r.Namespace == c.Namespace && r.UID == c.UID {
		return nil
	}
	p := newPatch(pv).guarded(pv)
	if !refersTo(pv, c) && !metav1.HasAnnotation(pv.ObjectMeta, storagehelpers.AnnBoundByController) {
		p.annotate(storagehelpers.AnnBoundByController, "yes")
	}
	return p.spec(map[string]any{"claimRef": map[string]any{
		"kind": "PersistentVolumeClaim", "apiVersion": "v1",
		"namespace": c.Namespace, "name": c.Name, "uid": c.UID, "resourceVersion": c.ResourceVersion,
	}})
}

// phasePatch sets a volume's phase: write 2 of a binding, and every other change of phase. nil when it has it.
func phasePatch(pv *v1.PersistentVolume, phase v1.PersistentVolumePhase, message string) patch {
	if pv.Status.Phase == phase {
		return nil
	}
	status := map[string]any{"phase": phase, "message": nil}
	if message != "" {
		status["message"] = message
	}
	return newPatch(pv).status(status)
}

// bindClaimPatch makes the claim point at the volume and marks the binding as complete: write 3.
func bindClaimPatch(c *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) patch {
	var p patch
	if c.Spec.VolumeName != pv.Name {
		p = newPatch(c).spec(map[string]any{"volumeName": pv.Name})
		if !metav1.HasAnnotation(c.ObjectMeta, storagehelpers.AnnBoundByController) {
			p.annotate(storagehelpers.AnnBoundByController, "yes")
		}
	}
	if !metav1.HasAnnotation(c.ObjectMeta, storagehelpers.AnnBindCompleted) {
		if p == nil {
			p = newPatch(c)
		}
		p.annotate(storagehelpers.AnnBindCompleted, "yes")
	}
	return p
}

// preResizeCapacity marks a volume that was grown but whose filesystem was not yet; its value is what the claim has.
const preResizeCapacity = "volume.alpha.kubernetes.io/pre-resize-capacity"

// claimStatusPatch sets a claim's phase and what it has of the volume: write 4 when the phase is Bound. Without a
// volume (Pending, Lost) the claim has nothing.
//
// Capacity and VolumeAttributesClass are written only while the claim becomes Bound: afterwards they belong to the
// resizer, and differ from the volume's on purpose while a filesystem waits to grow.
func claimStatusPatch(c *v1.PersistentVolumeClaim, phase v1.PersistentVolumeClaimPhase, pv *v1.PersistentVolume) (patch, error) {
	status := map[string]any{}
	becomes := c.Status.Phase != phase
	if becomes {
		status["phase"] = phase
	}
	if pv == nil {
		if c.Status.AccessModes != nil {
			status["accessModes"] = nil
		}
		if c.Status.Capacity != nil {
			status["capacity"] = nil
		}
		if c.Status.CurrentVolumeAttributesClassName != nil {
			status["currentVolumeAttributesClassName"] = nil
		}
	} else {
		if !slices.Equal(c.Status.AccessModes, pv.Spec.AccessModes) {
			status["accessModes"] = pv.Spec.AccessModes
		}
		if becomes {
			capacity, err := boundCapacity(c, pv)
			if err != nil {
				return nil, err
			}
			if capacity != nil {
				status["capacity"] = capacity
			}
		}
		have, want := c.Status.CurrentVolumeAttributesClassName, pv.Spec.VolumeAttributesClassName
		if c.Status.Phase == v1.ClaimPending && phase == v1.ClaimBound && (have == nil) != (want == nil) ||
			have != nil && want != nil && *have != *want && c.Status.Phase == v1.ClaimPending && phase == v1.ClaimBound {
			status["currentVolumeAttributesClassName"] = want
		}
	}
	if len(status) == 0 {
		return nil, nil
	}
	return newPatch(c).status(status), nil
}

// boundCapacity is what a claim that becomes bound gets into its status; nil when it has that already.
func boundCapacity(c *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) (v1.ResourceList, error) {
	volume, ok := pv.Spec.Capacity[v1.ResourceStorage]
	if !ok {
		return nil, fmt.Errorf("PersistentVolume %q is without a storage capacity", pv.Name)
	}
	if before, ok := pv.Annotations[preResizeCapacity]; ok {
		q, err := resource.ParseQuantity(before)
		if err != nil {
			q = volume
		}
		return v1.ResourceList{v1.ResourceStorage: q}, nil
	}
	if have, ok := c.Status.Capacity[v1.ResourceStorage]; ok && have.Cmp(volume) == 0 {
		return nil, nil
	}
	return pv.Spec.Capacity, nil
}

// unbindPatch takes a binding back from the volume. What the controller wrote is removed; a claimRef that the user
// wrote stays, without the UID that we had added.
func unbindPatch(pv *v1.PersistentVolume) patch {
	if metav1.HasAnnotation(pv.ObjectMeta, storagehelpers.AnnBoundByController) {
		return newPatch(pv).guarded(pv).annotate(storagehelpers.AnnBoundByController, nil).spec(map[string]any{"claimRef": nil})
	}
	return newPatch(pv).guarded(pv).spec(map[string]any{"claimRef": map[string]any{"uid": nil}})
}

// transient errors are part of the work: somebody else wrote first, or the object went away meanwhile.
func transient(err error) bool {
	return apierrors.IsConflict(err) || apierrors.IsNotFound(err)
}
