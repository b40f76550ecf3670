package claim

import (
	"context"
	"errors"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/trace"
)

// bind makes volume and claim point at each other, in four writes: first the volume's spec; then beside each other the
// volume's status, and the claim's spec and after it the claim's status. The caller holds the volume.
//
// Each write is left out when what it would say is already so. A volume that a provisioner has made carries its
// claimRef, so three remain. A crash between any two leaves a state from which the same call goes on: up to the claim's
// spec the claim still finds the volume by its claimRef, after it by its name.
func (c *Controller) bind(ctx context.Context, pv *v1.PersistentVolume, claim *v1.PersistentVolumeClaim) error {
	began := time.Now()
	pv, err := c.bindVolume(ctx, pv, claim)
	if err != nil {
		return err
	}
	// Nobody waits for the volume's phase on the way to a mounted pod, and all wait for the claim: its two writes do not
	// wait for the phase either.
	marked := make(chan error, 1)
	go func() {
		_, err := c.bindVolumeStatus(ctx, pv)
		marked <- err
	}()
	var wrote bool
	if claim, err = c.bindClaim(ctx, claim, pv); err == nil {
		wrote, err = c.bindClaimStatus(ctx, claim, pv)
	}
	if err = errors.Join(err, <-marked); err != nil || !wrote {
		return err
	}
	c.stats.finish("provision", keyOf(claim))
	c.opts.Trace.Record(trace.Entry{Step: trace.Bound, State: trace.Done, Claim: trace.Claim(claim), Volume: pv.Name,
		Detail: "bound to volume " + pv.Name})
	c.opts.Log.Info("claim bound", "claim", keyOf(claim), "volume", pv.Name, "took", time.Since(began))
	return nil
}

// isBound says that bind would write nothing.
func isBound(pv *v1.PersistentVolume, claim *v1.PersistentVolumeClaim) bool {
	if bindVolumePatch(pv, claim) != nil || pv.Status.Phase != v1.VolumeBound || bindClaimPatch(claim, pv) != nil {
		return false
	}
	p, err := claimStatusPatch(claim, v1.ClaimBound, pv)
	return p == nil && err == nil
}

func (c *Controller) bindVolume(ctx context.Context, pv *v1.PersistentVolume, claim *v1.PersistentVolumeClaim) (*v1.PersistentVolume, error) {
	p := bindVolumePatch(pv, claim)
	if p == nil {
		return pv, nil
	}
	err := boundary.Do("claim/bind-volume-spec", func() (err error) {
		pv, err = c.opts.Client.CoreV1().PersistentVolumes().Patch(ctx, pv.Name, types.MergePatchType, p.json(), metav1.PatchOptions{})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("point volume at claim %s: %w", keyOf(claim), err)
	}
	c.volumes.put(pv)
	return pv, nil
}

func (c *Controller) bindVolumeStatus(ctx context.Context, pv *v1.PersistentVolume) (*v1.PersistentVolume, error) {
	p := phasePatch(pv, v1.VolumeBound, "")
	if p == nil {
		return pv, nil
	}
	err := boundary.Do("claim/bind-volume-status", func() (err error) {
		pv, err = c.opts.Client.CoreV1().PersistentVolumes().Patch(ctx, pv.Name, types.MergePatchType, p.json(), metav1.PatchOptions{}, "status")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("mark volume as Bound: %w", err)
	}
	c.volumes.put(pv)
	return pv, nil
}

func (c *Controller) bindClaim(ctx context.Context, claim *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) (*v1.PersistentVolumeClaim, error) {
	p := bindClaimPatch(claim, pv)
	if p == nil {
		return claim, nil
	}
	err := boundary.Do("claim/bind-claim-spec", func() (err error) {
		claim, err = c.opts.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Patch(ctx, claim.Name, types.MergePatchType, p.json(), metav1.PatchOptions{})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("point claim at volume %s: %w", pv.Name, err)
	}
	c.claims.put(claim)
	return claim, nil
}

func (c *Controller) bindClaimStatus(ctx context.Context, claim *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) (wrote bool, err error) {
	p, err := claimStatusPatch(claim, v1.ClaimBound, pv)
	if p == nil || err != nil {
		return false, err
	}
	err = boundary.Do("claim/bind-claim-status", func() (err error) {
		claim, err = c.opts.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Patch(ctx, claim.Name, types.MergePatchType, p.json(), metav1.PatchOptions{}, "status")
		return err
	})
	if err != nil {
		return false, fmt.Errorf("mark claim as Bound: %w", err)
	}
	c.claims.put(claim)
	return true, nil
}

// setClaimPhase writes a phase without a volume (Pending, Lost). It says whether anything had to be written.
func (c *Controller) setClaimPhase(ctx context.Context, claim *v1.PersistentVolumeClaim, phase v1.PersistentVolumeClaimPhase) (*v1.PersistentVolumeClaim, error) {
	p, err := claimStatusPatch(claim, phase, nil)
	if p == nil || err != nil {
		return claim, err
	}
	err = boundary.Do("claim/claim-phase", func() (err error) {
		claim, err = c.opts.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Patch(ctx, claim.Name, types.MergePatchType, p.json(), metav1.PatchOptions{}, "status")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("mark claim as %s: %w", phase, err)
	}
	c.claims.put(claim)
	return claim, nil
}

// setVolumePhase writes a phase, and sends the event only when it changes.
func (c *Controller) setVolumePhase(ctx context.Context, pv *v1.PersistentVolume, phase v1.PersistentVolumePhase, n *notice) (*v1.PersistentVolume, error) {
	message := ""
	if n != nil {
		message = n.message
	}
	p := phasePatch(pv, phase, message)
	if p == nil {
		return pv, nil
	}
	err := boundary.Do("claim/volume-phase", func() (err error) {
		pv, err = c.opts.Client.CoreV1().PersistentVolumes().Patch(ctx, pv.Name, types.MergePatchType, p.json(), metav1.PatchOptions{}, "status")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("mark volume as %s: %w", phase, err)
	}
	c.volumes.put(pv)
	c.event(pv, n)
	return pv, nil
}

// unbindVolume takes back the volume's side of a binding and makes it Available. The version in the patch guards it
// for the recycler, who does not hold the volume.
func (c *Controller) unbindVolume(ctx context.Context, pv *v1.PersistentVolume) error {
	p := unbindPatch(pv)
	err := boundary.Do("claim/unbind-volume", func() (err error) {
		pv, err = c.opts.Client.CoreV1().PersistentVolumes().Patch(ctx, pv.Name, types.MergePatchType, p.json(), metav1.PatchOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("take claimRef from volume: %w", err)
	}
	c.volumes.put(pv)
	_, err = c.setVolumePhase(ctx, pv, v1.VolumeAvailable, nil)
	return err
}
