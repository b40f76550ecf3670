package claim

import (
	"context"
	"fmt"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/boundary"
)

// addVolumeProtection keeps a volume that is being deleted while it is Bound (upstream's pvprotection).
func (c *Controller) addVolumeProtection() error {
	q := newQueue()
	c.parts = append(c.parts, part{"volume protection", q, c.opts.Workers, c.protectVolume})
	c.onVolume = append(c.onVolume, func(_, now *v1.PersistentVolume) {
		if volumeProtectionOf(now) != protected {
			q.Add(now.Name)
		}
	})
	return nil
}

// volumeProtectionOf leaves a released volume that is to be deleted as it is: a provisioner that has deleted the data
// takes all finalizers off at once. When its claimRef is emptied instead it is Available, and gets the finalizer back.
func volumeProtectionOf(pv *v1.PersistentVolume) protection {
	p := protectionOf(pv, volumeProtection)
	if p == unguarded && pv.Status.Phase == v1.VolumeReleased && pv.Spec.PersistentVolumeReclaimPolicy == v1.PersistentVolumeReclaimDelete {
		return protected
	}
	return p
}

func (c *Controller) protectVolume(ctx context.Context, name string) error {
	pv := c.volumes.get(name)
	if pv == nil {
		return nil
	}
	switch volumeProtectionOf(pv) {
	case unguarded:
		err := boundary.Do("claim/protect-volume", func() error {
			_, err := c.opts.Client.CoreV1().PersistentVolumes().Patch(ctx, name, types.StrategicMergePatchType, addFinalizer(pv, volumeProtection).json(), metav1.PatchOptions{})
			return err
		})
		return ignoreGone(err, "protect volume")
	case leaving:
		if pv.Status.Phase == v1.VolumeBound {
			return nil
		}
		p := dropFinalizer(pv, volumeProtection)
		if pv.Status.Phase != v1.VolumeReleased && pv.Status.Phase != v1.VolumeFailed {
			// It may be about to be bound, and is still Available in the cache: the version guards against letting it go.
			// A volume past its claim is never bound again, and its other finalizers go in this very moment.
			p = p.guarded(pv)
		}
		err := boundary.Do("claim/unprotect-volume", func() error {
			_, err := c.opts.Client.CoreV1().PersistentVolumes().Patch(ctx, name, types.StrategicMergePatchType, p.json(), metav1.PatchOptions{})
			return err
		})
		return ignoreGone(err, "let volume go")
	}
	return nil
}

// ignoreGone: an object that is gone meanwhile needs nothing any more.
func ignoreGone(err error, act string) error {
	if err == nil || apierrors.IsNotFound(err) {
		return nil
	}
	return fmt.Errorf("%s: %w", act, err)
}
