package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"

	"berth.io/berth/internal/boundary"
)

// swap makes the volume have the form that its record wants. It begins wherever an earlier swap has ended.
func (m *Migration) swap(ctx context.Context, r *record) error {
	to, from := r.wants()
	pv, err := m.get(ctx, to.Name)
	if err != nil {
		return err
	}
	switch {
	case pv != nil && sameSource(pv, to) && pv.DeletionTimestamp == nil:
	// A deletion cannot be taken back: also what is right already has to go and come again, when a killed run has begun to delete it.
	case pv != nil && (sameSource(pv, to) || sameSource(pv, from)):
		if err := m.remove(ctx, r, pv); err != nil {
			return err
		}
		pv = nil
	case pv != nil:
		return unknown(r, pv)
	}
	var instead error
	if pv == nil {
		if instead, err = m.create(ctx, r); err != nil {
			return err
		}
	}
	return errors.Join(instead, m.finish(ctx, r))
}

func unknown(r *record, pv *v1.PersistentVolume) error {
	return refuse(pv.Name, "it is %s now, which undo file %s knows nothing of", sourceText(pv), r.path)
}

func sourceText(pv *v1.PersistentVolume) string {
	if pv.Spec.CSI == nil && pv.Spec.FlexVolume == nil {
		return "of another kind"
	}
	return describe(pv)
}

// remove takes the object away, and nothing else. The reclaim policy is Retain before it goes, so that whoever sees the volume
// without its claim, or the claim without its volume, leaves the data alone.
func (m *Migration) remove(ctx context.Context, r *record, pv *v1.PersistentVolume) error {
	if err := m.movable(ctx, pv); err != nil {
		return err
	}
	// What changed since the record was made belongs to the new object, and in the moment between the two only the file has it.
	if r.State == undoing {
		r.Flex = refreshed(r.Flex, pv)
	} else {
		r.CSI = refreshed(r.CSI, pv)
	}
	r.Policy = policyOf(pv)
	if err := r.save(); err != nil {
		return err
	}
	m.say("%s: undo file %s", pv.Name, r.path)
	if pv.Spec.PersistentVolumeReclaimPolicy != v1.PersistentVolumeReclaimRetain {
		retained, err := m.setPolicy(ctx, pv, v1.PersistentVolumeReclaimRetain, r.Policy)
		if err != nil {
			return err
		}
		pv = retained
	}
	if err := m.movable(ctx, pv); err != nil { // again: the first look was before the file was written
		if pv.DeletionTimestamp == nil && pv.Spec.PersistentVolumeReclaimPolicy != r.Policy {
			_, policyErr := m.setPolicy(ctx, pv, r.Policy, nil)
			err = errors.Join(err, policyErr)
		}
		return err
	}
	r.Retained = true
	if err := r.save(); err != nil {
		return err
	}
	if pv.DeletionTimestamp == nil {
		err := boundary.Do("migrate/delete-volume", func() error {
			return m.Client.CoreV1().PersistentVolumes().Delete(ctx, pv.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pv.UID}})
		})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("remove the object of volume %s: %w", pv.Name, err)
		}
	}
	return m.release(ctx, pv)
}

// release takes off the finalizers that keep the object: the protection of a volume that is bound, and of one whose storage its
// provisioner would delete. Both are looked after here.
func (m *Migration) release(ctx context.Context, pv *v1.PersistentVolume) error {
	for ctx.Err() == nil {
		now, err := m.get(ctx, pv.Name)
		if err != nil || now == nil {
			return err
		}
		if now.UID != pv.UID {
			return refuse(pv.Name, "somebody else has made it anew meanwhile")
		}
		for _, f := range now.Finalizers {
			if !ours(f) {
				return refuse(pv.Name, "its object is being deleted and waits for the finalizer %s: remove it, then run this again", f)
			}
		}
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": now.UID, "resourceVersion": now.ResourceVersion, "finalizers": nil}})
		if err != nil {
			return err
		}
		err = boundary.Do("migrate/drop-finalizers", func() error {
			_, err := m.Client.CoreV1().PersistentVolumes().Patch(ctx, pv.Name, types.MergePatchType, patch, metav1.PatchOptions{})
			return err
		})
		if err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			return fmt.Errorf("release the object of volume %s: %w", pv.Name, err)
		}
	}
	return ctx.Err()
}

// create makes the object anew. Pods that came while there was none may have begun to use the volume in its old form: then it gets that
// one back, and instead says so.
func (m *Migration) create(ctx context.Context, r *record) (instead, err error) {
	to, from := r.wants()
	claim, err := m.claimOf(ctx, to)
	if err != nil {
		return nil, err
	}
	if ref := to.Spec.ClaimRef; ref != nil && ref.UID != "" && (claim == nil || claim.DeletionTimestamp != nil || claim.Spec.VolumeName != to.Name) {
		return nil, refuse(to.Name, "its claim %s/%s is gone, and nobody would know whose the volume is; its data is there, and its object is in %s: "+
			"take spec.claimRef out of it, and create it by hand", ref.Namespace, ref.Name, r.path)
	}
	pods, err := m.podsOf(ctx, to.Spec.ClaimRef)
	if err != nil {
		return nil, err
	}
	if len(pods) > 0 {
		instead = refuse(to.Name, "pod %s came while it was migrated: it is what it was; end the pod, then run this again", strings.Join(pods, ", "))
		back := refreshed(from, to)
		if r.State == migrating {
			r.State, r.Flex = undoing, back
		} else {
			r.State, r.CSI = migrating, back
		}
		if err := r.save(); err != nil {
			return nil, errors.Join(instead, err)
		}
		to = back
	}
	object := to.DeepCopy()
	object.Spec.PersistentVolumeReclaimPolicy = v1.PersistentVolumeReclaimRetain
	if r.Policy != v1.PersistentVolumeReclaimRetain {
		metav1.SetMetaDataAnnotation(&object.ObjectMeta, annPolicy, string(r.Policy))
	}
	err = boundary.Do("migrate/create-volume", func() error {
		_, err := m.Client.CoreV1().PersistentVolumes().Create(ctx, object, metav1.CreateOptions{FieldManager: "berth-migrate"})
		return err
	})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return nil, errors.Join(instead, fmt.Errorf("make volume %s anew: %w; its object is in %s", to.Name, err, r.path))
	}
	m.say("%s: is %s", to.Name, describe(to))
	return instead, nil
}

// finish waits for the claim, and gives the volume its reclaim policy back.
func (m *Migration) finish(ctx context.Context, r *record) error {
	to, _ := r.wants()
	pv, err := m.bound(ctx, r)
	if err != nil {
		return err
	}
	r.Policy = policyOf(pv) // it may have been changed meanwhile
	if r.Retained {
		r.Retained = false
		if err := r.save(); err != nil {
			return err
		}
	}
	if _, marked := pv.Annotations[annPolicy]; marked {
		if pv, err = m.setPolicy(ctx, pv, r.Policy, nil); err != nil {
			return err
		}
	}
	if r.unfinished() {
		if err := m.tell(ctx, r, pv); err != nil {
			m.say("%s: no event: %v", to.Name, err) // it is migrated all the same
		}
	}
	if r.State == undoing {
		r.State = undone
	} else {
		r.State = migrated
	}
	if err := r.save(); err != nil {
		return err
	}
	if r.State == undone {
		m.say("%s: taken back", to.Name)
	} else {
		m.say("%s: migrated; take it back with %s", to.Name, m.Again(r.path))
	}
	return nil
}

// bound waits until the volume and its claim are Bound to each other, or the volume is Available when nobody claims it.
func (m *Migration) bound(ctx context.Context, r *record) (*v1.PersistentVolume, error) {
	to, _ := r.wants()
	ctx, cancel := context.WithTimeout(ctx, m.Within)
	defer cancel()
	pv, err := m.awaitVolume(ctx, to)
	if err != nil {
		return nil, fmt.Errorf("volume %s is made anew and not Bound within %s (%w): run this again, or take it back with %s", to.Name, m.Within, err, m.Again(r.path))
	}
	claim, err := m.claimOf(ctx, pv)
	if err != nil || claim == nil {
		return pv, err
	}
	// A controller that was told of the claim while the volume was away looks at it again when it changes, and else at its next
	// resync only, 15 s later at upstream's.
	if err := m.markClaim(ctx, r, claim); err != nil {
		return nil, err
	}
	if err := m.awaitClaim(ctx, claim); err != nil {
		return nil, fmt.Errorf("claim %s/%s is not Bound again within %s (%w): run this again, or take it back with %s",
			claim.Namespace, claim.Name, m.Within, err, m.Again(r.path))
	}
	m.say("%s: claim %s/%s is Bound", pv.Name, claim.Namespace, claim.Name)
	return pv, nil
}

func (m *Migration) awaitVolume(ctx context.Context, to *v1.PersistentVolume) (*v1.PersistentVolume, error) {
	volumes := m.Client.CoreV1().PersistentVolumes()
	one := fields.OneTermEqualSelector("metadata.name", to.Name).String()
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = one
			return volumes.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = one
			return volumes.Watch(ctx, o)
		},
	}
	claimed := to.Spec.ClaimRef != nil && to.Spec.ClaimRef.UID != ""
	e, err := watchtools.UntilWithSync(ctx, cache.ToListWatcherWithWatchListSemantics(lw, m.Client), &v1.PersistentVolume{}, nil, func(e watch.Event) (bool, error) {
		pv, ok := e.Object.(*v1.PersistentVolume)
		return ok && e.Type != watch.Deleted && sameSource(pv, to) &&
			(pv.Status.Phase == v1.VolumeBound || !claimed && pv.Status.Phase == v1.VolumeAvailable), nil
	})
	if err != nil {
		return nil, err
	}
	return e.Object.(*v1.PersistentVolume), nil
}

func (m *Migration) awaitClaim(ctx context.Context, claim *v1.PersistentVolumeClaim) error {
	claims := m.Client.CoreV1().PersistentVolumeClaims(claim.Namespace)
	one := fields.OneTermEqualSelector("metadata.name", claim.Name).String()
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = one
			return claims.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = one
			return claims.Watch(ctx, o)
		},
	}
	_, err := watchtools.UntilWithSync(ctx, cache.ToListWatcherWithWatchListSemantics(lw, m.Client), &v1.PersistentVolumeClaim{}, nil, func(e watch.Event) (bool, error) {
		c, ok := e.Object.(*v1.PersistentVolumeClaim)
		if !ok || e.Type == watch.Deleted || c.UID != claim.UID {
			return false, errors.New("it was deleted")
		}
		return c.Status.Phase == v1.ClaimBound, nil
	})
	return err
}

// setPolicy changes the reclaim policy, and marks the volume with the one that it has else; nil takes the mark off.
func (m *Migration) setPolicy(ctx context.Context, pv *v1.PersistentVolume, policy v1.PersistentVolumeReclaimPolicy, mark any) (*v1.PersistentVolume, error) {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pv.UID, "annotations": map[string]any{annPolicy: mark}},
		"spec": map[string]any{"persistentVolumeReclaimPolicy": policy}})
	if err != nil {
		return nil, err
	}
	var out *v1.PersistentVolume
	err = boundary.Do("migrate/set-reclaim-policy", func() (err error) {
		out, err = m.Client.CoreV1().PersistentVolumes().Patch(ctx, pv.Name, types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("set the reclaim policy of volume %s to %s: %w", pv.Name, policy, err)
	}
	return out, nil
}

// markClaim writes on the claim where its volume comes from, or takes that off.
func (m *Migration) markClaim(ctx context.Context, r *record, claim *v1.PersistentVolumeClaim) error {
	var want any
	if r.State == migrating || r.State == migrated {
		want = migratedFrom(r.Flex)
	}
	if have, ok := claim.Annotations[AnnMigratedFrom]; !ok && want == nil || ok && reflect.DeepEqual(want, have) {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": claim.UID, "annotations": map[string]any{AnnMigratedFrom: want}}})
	if err != nil {
		return err
	}
	err = boundary.Do("migrate/mark-claim", func() error {
		_, err := m.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Patch(ctx, claim.Name, types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("mark claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	return nil
}
