package vanished

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/discovery"
)

const (
	// annGoneSince is since when a volume's node is missed, RFC 3339.
	annGoneSince = "storage.berth.io/node-gone-since"
	// reasonGone is the reason of a volume's status and of its events; reasonClaim the original's, of a claim's event.
	reasonGone  = "NodeGone"
	reasonBack  = "NodeBack"
	reasonClaim = "ReferencedNodeDeleted"
)

// callWithin bounds one call of the API.
const callWithin = 30 * time.Second

// retryAfter is when what the API failed is tried again.
const retryAfter = 5 * time.Second

// gone does what is due for a volume whose node is no more, and says when the next is.
func (c *Controller) gone(ctx context.Context, pv *v1.PersistentVolume) (next time.Duration) {
	since, err := time.Parse(time.RFC3339, pv.Annotations[annGoneSince])
	if known, is := c.missed[pv.UID]; is {
		since = known
	} else if err != nil || since.After(c.now()) {
		since = c.now().Truncate(time.Second)
		if err := c.report(ctx, pv, since); err != nil {
			return c.failed(pv, "report", err)
		}
		c.missed[pv.UID] = since
	} else if pv.Status.Reason != reasonGone { // a death came in between
		if err := c.writeStatus(ctx, pv, reasonGone, c.text(pv, since)); err != nil {
			return c.failed(pv, "report", err)
		}
	}
	act, after, what := c.due(pv)
	c.tell(pv, c.text(pv, since)+what)
	if act == nil {
		return never
	}
	if left := after - c.now().Sub(since); left > 0 {
		return left
	}
	there, err := c.stillGone(ctx, pv)
	if err != nil || there {
		if err != nil {
			return c.failed(pv, "ask for its node", err)
		}
		return retryAfter // the informer will know
	}
	if err := act(ctx, pv); err != nil {
		return c.failed(pv, "clean up", err)
	}
	return never
}

func (c *Controller) failed(pv *v1.PersistentVolume, what string, err error) time.Duration {
	c.Log.Warn("discovery: the volume of a node that is gone", "volume", pv.Name, "step", what, "err", err)
	return retryAfter
}

// due is what is to be done about the volume, how long after its node, and a word on it. nil: nothing but to tell.
func (c *Controller) due(pv *v1.PersistentVolume) (act func(context.Context, *v1.PersistentVolume) error, after time.Duration, what string) {
	deletes := pv.Spec.PersistentVolumeReclaimPolicy == v1.PersistentVolumeReclaimDelete
	switch {
	case !deletes && pv.Status.Phase != v1.VolumeBound:
		return nil, 0, "; its policy is Retain: delete it when its disk is not needed any more"
	case pv.Status.Phase == v1.VolumeAvailable:
		return c.deleteVolume, 0, "; nobody has the volume, it is deleted"
	case pv.Status.Phase == v1.VolumeReleased:
		return c.deleteVolume, c.Volume, fmt.Sprintf("; nobody has the volume, it is deleted if the node does not come back within %s", c.Volume)
	case pv.Status.Phase == v1.VolumeBound && pv.Spec.ClaimRef != nil && slices.Contains(c.Classes, pv.Spec.StorageClassName):
		return c.deleteClaim, c.Claim, fmt.Sprintf("; its claim %s/%s is deleted if the node does not come back within %s", pv.Spec.ClaimRef.Namespace, pv.Spec.ClaimRef.Name, c.Claim)
	case pv.Status.Phase == v1.VolumeBound:
		return nil, 0, "; pods that use it wait for the node: bring it back, or delete the claim, and the volume is released"
	}
	return nil, 0, ""
}

func (c *Controller) text(pv *v1.PersistentVolume, since time.Time) string {
	return fmt.Sprintf("its node %s is no more (missed since %s)", strings.Join(discovery.Hostnames(pv), ", "), since.UTC().Format(time.RFC3339))
}

// tell says something of a volume, and to its claim, once until it changes.
func (c *Controller) tell(pv *v1.PersistentVolume, text string) {
	if c.told[pv.Name] == text {
		return
	}
	c.told[pv.Name] = text
	c.Events.Event(pv, v1.EventTypeWarning, reasonGone, text)
	if ref := pv.Spec.ClaimRef; ref != nil && pv.Status.Phase == v1.VolumeBound {
		c.Events.Event(ref, v1.EventTypeWarning, reasonClaim, "PersistentVolume "+pv.Name+": "+text)
	}
	c.Log.Warn("discovery: the volume of a node that is gone", "volume", pv.Name, "message", text)
}

// report writes since when the node is missed, and then the status.
func (c *Controller) report(ctx context.Context, pv *v1.PersistentVolume, since time.Time) error {
	if err := c.note(ctx, pv, since.UTC().Format(time.RFC3339)); err != nil {
		return err
	}
	return c.writeStatus(ctx, pv, reasonGone, c.text(pv, since))
}

// back takes back what was said of a node that is there again.
func (c *Controller) back(ctx context.Context, pv *v1.PersistentVolume) {
	if _, missed := pv.Annotations[annGoneSince]; !missed && pv.Status.Reason != reasonGone {
		return
	}
	if pv.Status.Reason == reasonGone {
		if err := c.writeStatus(ctx, pv, "", ""); err != nil {
			c.failed(pv, "take the report back", err)
			return
		}
	}
	if err := c.note(ctx, pv, nil); err != nil {
		c.failed(pv, "take the report back", err)
		return
	}
	c.Events.Event(pv, v1.EventTypeNormal, reasonBack, fmt.Sprintf("its node %s is back", strings.Join(discovery.Hostnames(pv), ", ")))
}

// note writes the annotation, or takes it away with nil.
func (c *Controller) note(ctx context.Context, pv *v1.PersistentVolume, since any) error {
	return c.patch(ctx, pv, map[string]any{"metadata": map[string]any{"uid": pv.UID, "annotations": map[string]any{annGoneSince: since}}},
		func(ctx context.Context, patch []byte) error {
			return boundary.Do("discovery/note-node-gone", func() error {
				_, err := c.Client.CoreV1().PersistentVolumes().Patch(ctx, pv.Name, types.MergePatchType, patch, metav1.PatchOptions{})
				return err
			})
		})
}

func (c *Controller) writeStatus(ctx context.Context, pv *v1.PersistentVolume, reason, message string) error {
	return c.patch(ctx, pv, map[string]any{"metadata": map[string]any{"uid": pv.UID}, "status": map[string]string{"reason": reason, "message": message}},
		func(ctx context.Context, patch []byte) error {
			return boundary.Do("discovery/report-node-gone", func() error {
				_, err := c.Client.CoreV1().PersistentVolumes().Patch(ctx, pv.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
				return err
			})
		})
}

func (c *Controller) patch(ctx context.Context, pv *v1.PersistentVolume, change any, send func(context.Context, []byte) error) error {
	patch, err := json.Marshal(change)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	if err := send(ctx, patch); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("patch PersistentVolume %s: %w", pv.Name, err)
	}
	return nil
}

// stillGone asks the API, not the informer, which may lag: a node that was made anew a moment ago keeps its volumes.
func (c *Controller) stillGone(ctx context.Context, pv *v1.PersistentVolume) (there bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	list, err := c.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return false, err
	}
	nodes := make([]*v1.Node, len(list.Items))
	for i := range list.Items {
		nodes[i] = &list.Items[i]
	}
	return served(pv, nodes), nil
}

// deleteVolume takes the volume away as it was looked at: it could have been bound since.
func (c *Controller) deleteVolume(ctx context.Context, pv *v1.PersistentVolume) error {
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	err := boundary.Do("discovery/delete-stale-volume", func() error {
		now, err := c.Client.CoreV1().PersistentVolumes().Get(ctx, pv.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if now.UID != pv.UID || now.Status.Phase != pv.Status.Phase || now.Spec.PersistentVolumeReclaimPolicy != v1.PersistentVolumeReclaimDelete {
			return nil // its change wakes us
		}
		return c.Client.CoreV1().PersistentVolumes().Delete(ctx, pv.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &now.UID, ResourceVersion: &now.ResourceVersion}})
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	c.metrics.deletedVolume(pv.Status.Phase, err)
	return err
}

// deleteClaim deletes the claim that has the volume, and no other of its name.
func (c *Controller) deleteClaim(ctx context.Context, pv *v1.PersistentVolume) error {
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	ref := pv.Spec.ClaimRef
	claim, err := c.Client.CoreV1().PersistentVolumeClaims(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if claim.UID != ref.UID || claim.Spec.VolumeName != pv.Name || claim.DeletionTimestamp != nil {
		return nil
	}
	err = boundary.Do("discovery/delete-stale-claim", func() error {
		return c.Client.CoreV1().PersistentVolumeClaims(ref.Namespace).Delete(ctx, ref.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &claim.UID}})
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	c.metrics.deletedClaim(err)
	if err == nil {
		c.Events.Event(ref, v1.EventTypeWarning, reasonClaim, fmt.Sprintf("deleted: the node of its PersistentVolume %s is no more", pv.Name))
	}
	return err
}
