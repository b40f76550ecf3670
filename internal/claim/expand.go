package claim

import (
	"context"
	"fmt"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/plugin"
	"berth.io/berth/internal/trace"
)

// resizerAnnotation names who grows a claim's volume.
const resizerAnnotation = "volume.kubernetes.io/storage-resizer"

// addExpansion looks at bound claims that ask for more than they have (upstream's expand controller). Volumes of a
// CSI driver are grown by its resizer, which watches claims by itself: here the user is told so. Volumes of a plugin are grown here.
func (c *Controller) addExpansion() error {
	q := newQueue()
	c.parts = append(c.parts, part{"expansion", q, 2, c.syncExpansion})
	c.onClaim = append(c.onClaim, func(old, now *v1.PersistentVolumeClaim) {
		if now.Status.Phase != v1.ClaimBound {
			return
		}
		// More is asked for, or more was got (a filesystem has grown, and the mark on the volume can go).
		if old == nil || now.Spec.Resources.Requests.Storage().Cmp(*old.Spec.Resources.Requests.Storage()) > 0 ||
			now.Status.Capacity.Storage().Cmp(*old.Status.Capacity.Storage()) > 0 {
			q.Add(keyOf(now))
		}
	})
	return nil
}

func (c *Controller) syncExpansion(ctx context.Context, key string) error {
	claim := c.claims.get(key)
	if claim == nil || claim.Status.Phase != v1.ClaimBound {
		return nil
	}
	pv := c.volumes.get(claim.Spec.VolumeName)
	if pv == nil || pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.UID != claim.UID {
		return nil // Lost, or about to be; the claim worker deals with it
	}
	want, have := claim.Spec.Resources.Requests.Storage(), claim.Status.Capacity.Storage()
	_, marked := pv.Annotations[preResizeCapacity]
	if want.Cmp(*have) <= 0 && !marked {
		return nil
	}
	if driver := migratedTo(pv.Annotations["pv.kubernetes.io/provisioned-by"]); driver != "" {
		c.event(claim, normal(reasonExternalExpanding, fmt.Sprintf("CSI migration enabled for %s; waiting for external resizer to expand the pvc", pv.Annotations["pv.kubernetes.io/provisioned-by"])))
		return c.nameResizer(ctx, claim, driver)
	}
	e, ok := c.opts.Plugins.ExpanderOf(pv)
	if !ok {
		c.event(claim, normal(reasonExternalExpanding, "waiting for an external controller to expand this PVC"))
		return nil
	}
	return c.expandInTree(ctx, claim, pv, e)
}

func (c *Controller) nameResizer(ctx context.Context, claim *v1.PersistentVolumeClaim, resizer string) error {
	if claim.Annotations[resizerAnnotation] == resizer {
		return nil
	}
	err := boundary.Do("claim/name-resizer", func() error {
		_, err := c.opts.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Patch(ctx, claim.Name, types.MergePatchType,
			newPatch(claim).annotate(resizerAnnotation, resizer).json(), metav1.PatchOptions{})
		return err
	})
	return ignoreGone(err, "name the resizer of claim")
}

// expandInTree grows the volume, writes its new size, and leaves the filesystem to the node where one is needed.
// Each step is skipped when it is done; the volume's size in the API says whether the plugin must be asked.
func (c *Controller) expandInTree(ctx context.Context, claim *v1.PersistentVolumeClaim, pv *v1.PersistentVolume, e plugin.ControllerExpander) error {
	want, have, size := *claim.Spec.Resources.Requests.Storage(), *claim.Status.Capacity.Storage(), *pv.Spec.Capacity.Storage()
	if have.Cmp(want) >= 0 && have.Cmp(size) >= 0 {
		err := boundary.Do("claim/unmark-resized-volume", func() error {
			_, err := c.opts.Client.CoreV1().PersistentVolumes().Patch(ctx, pv.Name, types.MergePatchType,
				newPatch(pv).annotate(preResizeCapacity, nil).json(), metav1.PatchOptions{})
			return err
		})
		return ignoreGone(err, "unmark resized volume")
	}
	if size.Cmp(want) < 0 {
		c.opts.Trace.Record(trace.Entry{Step: trace.Expanded, State: trace.Began, Claim: trace.Claim(claim), Volume: pv.Name, Detail: fmt.Sprintf("from %s to %s by plugin %s", size.String(), want.String(), e.Name())})
		err := boundary.Do("claim/expand-in-tree", func() (err error) {
			size, err = e.ExpandVolume(ctx, pv, want, size)
			return err
		})
		if err != nil {
			c.event(claim, warning(reasonVolumeResizeFailed, err.Error()))
			c.opts.Trace.Record(trace.Entry{Step: trace.Expanded, State: trace.Failed, Claim: trace.Claim(claim), Volume: pv.Name, Detail: err.Error()})
			return fmt.Errorf("expand volume %s: %w", pv.Name, err)
		}
		p := newPatch(pv).spec(map[string]any{"capacity": map[string]any{"storage": size.String()}})
		if _, marked := pv.Annotations[preResizeCapacity]; e.RequiresFSResize() && !marked {
			p.annotate(preResizeCapacity, have.String())
		}
		err = boundary.Do("claim/volume-capacity", func() (err error) {
			pv, err = c.opts.Client.CoreV1().PersistentVolumes().Patch(ctx, pv.Name, types.MergePatchType, p.json(), metav1.PatchOptions{})
			return err
		})
		if err != nil {
			return fmt.Errorf("write size of volume: %w", err)
		}
		c.volumes.put(pv)
	}
	status := map[string]any{"capacity": map[string]any{"storage": size.String()}, "conditions": conditionsWithout(claim, v1.PersistentVolumeClaimResizing)}
	if e.RequiresFSResize() {
		status = map[string]any{"conditions": append(conditionsWithout(claim, v1.PersistentVolumeClaimResizing, v1.PersistentVolumeClaimFileSystemResizePending),
			v1.PersistentVolumeClaimCondition{
				Type: v1.PersistentVolumeClaimFileSystemResizePending, Status: v1.ConditionTrue, LastTransitionTime: metav1.Now(),
				Message: "Waiting for user to (re-)start a pod to finish file system resize of volume on node.",
			})}
		for _, have := range claim.Status.Conditions {
			if have.Type == v1.PersistentVolumeClaimFileSystemResizePending {
				return nil
			}
		}
	}
	err := boundary.Do("claim/claim-capacity", func() error {
		_, err := c.opts.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Patch(ctx, claim.Name, types.MergePatchType, newPatch(claim).guarded(claim).status(status).json(), metav1.PatchOptions{}, "status")
		return err
	})
	if err != nil {
		return fmt.Errorf("write size of claim: %w", err)
	}
	c.opts.Trace.Record(trace.Entry{Step: trace.Expanded, State: trace.Done, Claim: trace.Claim(claim), Volume: pv.Name, Detail: "to " + size.String()})
	return nil
}

func conditionsWithout(claim *v1.PersistentVolumeClaim, types ...v1.PersistentVolumeClaimConditionType) []v1.PersistentVolumeClaimCondition {
	out := []v1.PersistentVolumeClaimCondition{}
next:
	for _, cond := range claim.Status.Conditions {
		for _, t := range types {
			if cond.Type == t {
				continue next
			}
		}
		out = append(out, cond)
	}
	return out
}
