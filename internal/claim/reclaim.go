package claim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	storagehelpers "k8s.io/component-helpers/storage/volume"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/plugin"
	"berth.io/berth/internal/trace"
)

// reclaim does with a released volume what its policy says. Deleting and recycling go on in the background, and are
// tried again as long as the volume is there, also when it is Failed.
func (c *Controller) reclaim(ctx context.Context, pv *v1.PersistentVolume) error {
	if pv.Annotations[storagehelpers.AnnMigratedTo] != "" {
		return nil // the CSI driver's provisioner deletes it
	}
	name := pv.Name
	again := func(after time.Duration) { c.volumeQueue.AddAfter(name, after) }
	switch pv.Spec.PersistentVolumeReclaimPolicy {
	case v1.PersistentVolumeReclaimRetain:
	case v1.PersistentVolumeReclaimDelete:
		d, err := c.deleterOf(pv)
		c.stats.begin("delete", name, c.deleterName(pv, d, err))
		if err != nil {
			_, err = c.setVolumePhase(ctx, pv, v1.VolumeFailed, warning(reasonVolumeFailedDelete, err.Error()))
			return err
		}
		if d == nil {
			return nil // an external provisioner watches for Released volumes
		}
		c.ops.start("delete/"+name, again, func(ctx context.Context) error {
			err := c.deleteVolume(ctx, name, d)
			c.stats.failed("delete", name, err)
			return err
		})
	case v1.PersistentVolumeReclaimRecycle:
		c.ops.start("recycle/"+name, again, func(ctx context.Context) error { return c.recycleVolume(ctx, name) })
	default:
		_, err := c.setVolumePhase(ctx, pv, v1.VolumeFailed, warning(reasonVolumeUnknownReclaimPolicy, "Volume has unrecognized PersistentVolumeReclaimPolicy"))
		return err
	}
	return nil
}

// deleterOf finds the plugin that deletes pv: the one that provisioned it, else one for what it is made of. nil
// without an error: an external provisioner does it.
func (c *Controller) deleterOf(pv *v1.PersistentVolume) (plugin.Deleter, error) {
	if by := pv.Annotations[storagehelpers.AnnDynamicallyProvisioned]; by != "" {
		d, err := c.opts.Plugins.DeleterByName(by)
		if err != nil && !strings.HasPrefix(by, inTree) {
			return nil, nil
		}
		return d, err
	}
	if pv.Spec.CSI != nil {
		return nil, nil
	}
	d, err := c.opts.Plugins.DeleterOf(pv)
	if err != nil {
		return nil, fmt.Errorf("error getting deleter volume plugin for volume %q: %w", pv.Name, err)
	}
	return d, nil
}

func (c *Controller) deleterName(pv *v1.PersistentVolume, d plugin.Deleter, err error) string {
	if err != nil {
		return notAvailable
	}
	if d != nil {
		return d.Name()
	}
	// The class's provisioner and not the annotation's, which may be anything and would make a label per value.
	class, err := c.class.Get(storagehelpers.GetPersistentVolumeClass(pv))
	if err != nil {
		return notAvailable
	}
	if driver := migratedTo(class.Provisioner); driver != "" {
		return driver
	}
	return class.Provisioner
}

// readReleased reads the volume once more, right before its data is destroyed. nil: leave it alone.
func (c *Controller) readReleased(ctx context.Context, name string) (*v1.PersistentVolume, error) {
	pv, err := c.opts.Client.CoreV1().PersistentVolumes().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read volume %s: %w", name, err)
	}
	if pv.Spec.ClaimRef == nil || !stillReleased(pv, c.claims.get(keyOfRef(pv.Spec.ClaimRef))) {
		return nil, nil
	}
	return pv, nil
}

// deleteVolume deletes the data, takes the finalizer away and deletes the object. Each can be done again.
func (c *Controller) deleteVolume(ctx context.Context, name string, d plugin.Deleter) error {
	pv, err := c.readReleased(ctx, name)
	if pv == nil || err != nil {
		return err
	}
	err = boundary.Do("claim/delete-in-tree", func() error { return d.Delete(ctx, pv) })
	if errors.Is(err, plugin.ErrInUse) {
		c.event(pv, normal(reasonVolumeDelete, err.Error()))
		return err
	}
	if err != nil {
		c.opts.Trace.Record(trace.Entry{Step: trace.Deleted, State: trace.Failed, Claim: trace.ClaimOf(pv), Volume: name, Detail: err.Error()})
		if _, failed := c.setVolumePhase(ctx, pv, v1.VolumeFailed, warning(reasonVolumeFailedDelete, err.Error())); failed != nil {
			return errors.Join(err, failed)
		}
		return err
	}
	if pv, err = c.dropDeletionFinalizer(ctx, pv); err != nil {
		return err
	}
	err = boundary.Do("claim/delete-volume", func() error {
		return c.opts.Client.CoreV1().PersistentVolumes().Delete(ctx, name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(pv.UID))})
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete volume object %s: %w", name, err)
	}
	c.opts.Trace.Record(trace.Entry{Step: trace.Deleted, State: trace.Done, Claim: trace.ClaimOf(pv), Volume: name, Detail: "by plugin " + d.Name()})
	return nil
}

func (c *Controller) dropDeletionFinalizer(ctx context.Context, pv *v1.PersistentVolume) (*v1.PersistentVolume, error) {
	if !slices.Contains(pv.Finalizers, storagehelpers.PVDeletionInTreeProtectionFinalizer) {
		return pv, nil
	}
	rest := slices.DeleteFunc(slices.Clone(pv.Finalizers), func(f string) bool { return f == storagehelpers.PVDeletionInTreeProtectionFinalizer })
	p := newPatch(pv).guarded(pv).finalizers(rest)
	err := boundary.Do("claim/drop-volume-finalizer", func() (err error) {
		pv, err = c.opts.Client.CoreV1().PersistentVolumes().Patch(ctx, pv.Name, types.MergePatchType, p.json(), metav1.PatchOptions{})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("take finalizer from volume: %w", err)
	}
	c.volumes.put(pv)
	return pv, nil
}

// recycleVolume empties a volume and makes it Available. Pods that still use it put it off: the end of the last one
// wakes the volume.
func (c *Controller) recycleVolume(ctx context.Context, name string) error {
	pv, err := c.readReleased(ctx, name)
	if pv == nil || err != nil {
		return err
	}
	key := keyOfRef(pv.Spec.ClaimRef)
	// A claim of this name that exists is another one, with a volume of its own: pods that name it do not use this volume.
	if c.claims.get(key) == nil {
		pods, err := c.pods.active(key)
		if err != nil {
			return err
		}
		if len(pods) > 0 {
			msg := "Volume is used by pods: " + strings.Join(pods, ",")
			if !c.told.again("volume/"+name, msg) {
				c.event(pv, normal(reasonVolumeFailedRecycle, msg))
			}
			return nil
		}
	}
	r, err := c.opts.Plugins.RecyclerOf(pv)
	if err != nil {
		_, err = c.setVolumePhase(ctx, pv, v1.VolumeFailed, warning(reasonVolumeFailedRecycle, "No recycler plugin found for the volume!"))
		return err
	}
	say := func(eventType, message string) {
		c.event(pv, &notice{eventType, reasonRecyclerPod, "Recycler pod: " + message})
	}
	if err := boundary.Do("claim/recycle", func() error { return r.Recycle(ctx, pv, say) }); err != nil {
		if _, failed := c.setVolumePhase(ctx, pv, v1.VolumeFailed, warning(reasonVolumeFailedRecycle, fmt.Sprintf("Recycle failed: %s", err))); failed != nil {
			return errors.Join(err, failed)
		}
		return err
	}
	c.event(pv, normal(reasonVolumeRecycled, "Volume recycled"))
	return c.unbindVolume(ctx, pv)
}
