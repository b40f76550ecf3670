package claim

import (
	"context"
	"fmt"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/trace"
)

// syncVolume is the volume worker.
func (c *Controller) syncVolume(ctx context.Context, name string) error {
	pv := c.volumes.get(name)
	if pv == nil {
		return nil
	}
	c.wakeNaming(pv)
	if c.settled(pv) {
		return nil
	}
	pv, release, err := c.volumes.hold(name, "volume worker", "sync", func() { c.volumeQueue.Add(name) })
	if err != nil {
		return err
	}
	defer release()
	if pv == nil {
		return nil
	}
	if pv, err = c.alignVolume(ctx, pv); err != nil {
		return err
	}
	claim, err := c.claimOf(ctx, pv)
	if err != nil {
		return err
	}
	return c.applyVolume(ctx, pv, claim)
}

// settled says, from what is in memory, that nothing has to be written about pv. It answers for nearly every event,
// most of them echoes of our own writes.
func (c *Controller) settled(pv *v1.PersistentVolume) bool {
	if alignVolumePatch(pv) != nil {
		return false
	}
	r := pv.Spec.ClaimRef
	if r == nil || r.UID == "" {
		return pv.Status.Phase == v1.VolumeAvailable
	}
	claim := c.claims.get(keyOfRef(r))
	if claim == nil || claim.UID != r.UID {
		return false
	}
	switch decideVolume(pv, claim) {
	case volumeBound:
		return pv.Status.Phase == v1.VolumeBound
	case volumeWakes:
		c.claimQueue.Add(keyOf(claim))
		return true
	}
	return false
}

// wakeNaming wakes the claims that name pv and are not bound to it as they should be.
func (c *Controller) wakeNaming(pv *v1.PersistentVolume) {
	for _, claim := range c.claims.namesVolume(pv.Name) {
		r := pv.Spec.ClaimRef
		if claim.Status.Phase != v1.ClaimBound || r == nil || r.UID != claim.UID {
			c.claimQueue.Add(keyOf(claim))
		}
	}
}

// claimOf finds the claim that pv's claimRef names by name and UID; nil means that it certainly does not exist. The
// claim may be younger than our caches (a provisioner or a scheduler can be ahead of us), and taking a volume from a
// claim that exists would lose data: so before a volume is released for the first time the API is asked, unless the
// watch itself has told of the deletion of this very UID.
func (c *Controller) claimOf(ctx context.Context, pv *v1.PersistentVolume) (*v1.PersistentVolumeClaim, error) {
	r := pv.Spec.ClaimRef
	if r == nil || r.UID == "" {
		return nil, nil
	}
	claim := c.claims.get(keyOfRef(r))
	if claim != nil && claim.UID == r.UID {
		return claim, nil
	}
	if c.claims.sawDeleted(r.UID) {
		return nil, nil
	}
	if claim == nil {
		if pv.Status.Phase == v1.VolumeReleased || pv.Status.Phase == v1.VolumeFailed {
			return nil, nil
		}
		if cached, err := c.pvcs.PersistentVolumeClaims(r.Namespace).Get(r.Name); err == nil && cached.UID == r.UID {
			return cached, nil
		}
	}
	live, err := c.opts.Client.CoreV1().PersistentVolumeClaims(r.Namespace).Get(ctx, r.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read claim %s of volume %s: %w", keyOfRef(r), pv.Name, err)
	case live.UID != r.UID:
		return nil, nil // the one that was bound is gone, this one has its name
	}
	return live, nil
}

// applyVolume decides and does it; the caller holds the volume.
func (c *Controller) applyVolume(ctx context.Context, pv *v1.PersistentVolume, claim *v1.PersistentVolumeClaim) (err error) {
	switch decideVolume(pv, claim) {
	case volumeAvailable:
		_, err = c.setVolumePhase(ctx, pv, v1.VolumeAvailable, nil)
	case volumeBound:
		_, err = c.setVolumePhase(ctx, pv, v1.VolumeBound, nil)
	case volumeWakes:
		c.claimQueue.Add(keyOf(claim))
	case volumeDiffers:
		if !c.told.again("volume/"+pv.Name, reasonVolumeMismatch+keyOf(claim)) {
			c.event(pv, warning(reasonVolumeMismatch, fmt.Sprintf("Cannot bind PersistentVolume to requested PersistentVolumeClaim %q due to incompatible volumeMode.", claim.Name)))
			c.event(claim, warning(reasonVolumeMismatch, fmt.Sprintf("Cannot bind PersistentVolume %q to requested PersistentVolumeClaim due to incompatible volumeMode.", pv.Name)))
		}
	case volumeUnbinds:
		err = c.unbindVolume(ctx, pv)
	case volumeReleased:
		if pv.Status.Phase != v1.VolumeReleased && pv.Status.Phase != v1.VolumeFailed {
			ref := trace.ClaimOf(pv)
			if pv, err = c.setVolumePhase(ctx, pv, v1.VolumeReleased, nil); err != nil {
				return err
			}
			c.opts.Trace.Record(trace.Entry{Step: trace.Released, State: trace.Done, Claim: ref, Volume: pv.Name,
				Detail: fmt.Sprintf("its claim is gone; reclaim policy %s", pv.Spec.PersistentVolumeReclaimPolicy)})
		}
		err = c.reclaim(ctx, pv)
	}
	return err
}
