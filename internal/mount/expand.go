package mount

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/plugin"
	"berth.io/berth/internal/trace"
)

// expand grows the volume on the node and then says so in the claim's status (upstream NodeExpander).
func (m *Manager) expand(v *volume, u *use) {
	r := plugin.ExpandRequest{
		Volume:  u.resolved,
		OldSize: size(u.resolved.Claim.Status.Capacity),
		NewSize: size(u.resolved.PV.Spec.Capacity),
	}
	quantity := u.resolved.PV.Spec.Capacity[v1.ResourceStorage]
	claim, expander := u.resolved.Claim, v.plugin.(plugin.Expander)
	err := m.during(v, trace.Expanded, u, "volume_fs_resize", func(ctx context.Context) error {
		if err := m.markClaim(ctx, claim, resizeInProgress); err != nil {
			return err
		}
		if err := expander.Expand(ctx, r); err != nil {
			m.markExpandFailed(ctx, claim, err)
			return err
		}
		return m.markClaim(ctx, claim, func(c *v1.PersistentVolumeClaim) { resizeFinished(c, quantity) })
	})
	if u.settling {
		u.settling = false // a failure does not keep the pod from its volume
		m.changed(u.pod)
	}
	switch {
	case err == nil:
		v.expandedTo, u.err = r.NewSize, nil
		u.back.reset()
		m.resizeEvent(u, v1.EventTypeNormal, eventFSResizeSucceeded, "MountVolume.NodeExpandVolume succeeded for volume %q", u.specName)
		m.opts.Events.Eventf(claim, v1.EventTypeNormal, eventResizeSuccessful, "volume %q has %s on node %s", u.specName, quantity.String(), m.opts.Node)
	case errors.Is(err, errStopping):
	case errors.Is(err, plugin.ErrExpandInUse), errors.Is(err, plugin.ErrExpandInfeasible), errors.Is(err, plugin.ErrExpandNotServed):
		v.expandedTo = r.NewSize // not for this size again
		m.expandFailed(u, claim, err)
	default:
		u.err, u.since = err, time.Now()
		u.back.fail(time.Now())
		m.expandFailed(u, claim, err)
	}
}

func (m *Manager) expandFailed(u *use, claim *v1.PersistentVolumeClaim, err error) {
	m.resizeEvent(u, v1.EventTypeWarning, eventFSResizeFailed, "MountVolume.NodeExpandVolume failed for volume %q : %s", u.specName, stable(err))
	m.opts.Events.Eventf(claim, v1.EventTypeWarning, eventResizeFailed, "volume %q could not be expanded on node %s: %s", u.specName, m.opts.Node, stable(err))
	m.log.Warn("expand", "volume", u.specName, "pod", podName(u), "err", err)
	m.changed(u.pod)
}

func (m *Manager) resizeEvent(u *use, kind, reason, format string, args ...any) {
	m.opts.Events.Eventf(u.resolved.Pod, kind, reason, format, args...)
	m.opts.Events.Eventf(u.resolved.Claim, kind, reason, format, args...)
}

func size(l v1.ResourceList) int64 {
	q := l[v1.ResourceStorage]
	return q.Value()
}

// markExpandFailed leaves word in the claim; that the word does not arrive must not hide the failure itself.
func (m *Manager) markExpandFailed(ctx context.Context, claim *v1.PersistentVolumeClaim, cause error) {
	if errors.Is(cause, plugin.ErrUncertain) || ctx.Err() != nil {
		return
	}
	err := m.markClaim(ctx, claim, func(c *v1.PersistentVolumeClaim) {
		resizeFailed(c, cause, errors.Is(cause, plugin.ErrExpandInfeasible), metav1.Now())
	})
	if err != nil {
		m.log.Warn("the failed expansion can't be noted in the claim", "claim", claim.Namespace+"/"+claim.Name, "err", err)
	}
}

// markClaim patches the claim's status. The patch carries the resource version that it was made from; on a conflict it is
// made again from the live object.
func (m *Manager) markClaim(ctx context.Context, claim *v1.PersistentVolumeClaim, change func(*v1.PersistentVolumeClaim)) error {
	client := m.opts.Client.CoreV1().PersistentVolumeClaims(claim.Namespace)
	live, err := client.Get(ctx, claim.Name, metav1.GetOptions{})
	for tries := 0; err == nil; tries++ {
		if live.UID != claim.UID {
			return fmt.Errorf("claim %s/%s is another one by now", claim.Namespace, claim.Name)
		}
		changed := live.DeepCopy()
		change(changed)
		var patch []byte
		if patch, err = statusPatch(live, changed); err != nil || patch == nil {
			return err
		}
		err = boundary.Do("mount/mark-claim-resized", func() error {
			_, err := client.Patch(ctx, claim.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
			return err
		})
		if err == nil || !apierrors.IsConflict(err) || tries == 4 {
			break
		}
		live, err = client.Get(ctx, claim.Name, metav1.GetOptions{})
	}
	if err != nil {
		return fmt.Errorf("note the expansion in claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	return nil
}

// statusPatch is nil when nothing differs.
func statusPatch(old, changed *v1.PersistentVolumeClaim) ([]byte, error) {
	before, err := json.Marshal(old)
	if err != nil {
		return nil, err
	}
	after, err := json.Marshal(changed)
	if err != nil {
		return nil, err
	}
	patch, err := strategicpatch.CreateTwoWayMergePatch(before, after, old)
	if err != nil || string(patch) == "{}" {
		return nil, err
	}
	var fields map[string]any
	if err := json.Unmarshal(patch, &fields); err != nil {
		return nil, err
	}
	fields["metadata"] = map[string]any{"resourceVersion": old.ResourceVersion}
	return json.Marshal(fields)
}

// The changes to a claim's status, as upstream's pkg/volume/util/resize_util.go makes them.

func resizeInProgress(c *v1.PersistentVolumeClaim) {
	setResizeStatus(c, v1.PersistentVolumeClaimNodeResizeInProgress)
}

func resizeFinished(c *v1.PersistentVolumeClaim, to resource.Quantity) {
	if c.Status.Capacity == nil {
		c.Status.Capacity = v1.ResourceList{}
	}
	c.Status.Capacity[v1.ResourceStorage] = to
	delete(c.Status.AllocatedResourceStatuses, v1.ResourceStorage)
	if len(c.Status.AllocatedResourceStatuses) == 0 {
		c.Status.AllocatedResourceStatuses = nil
	}
	c.Status.Conditions = slices.DeleteFunc(c.Status.Conditions, func(cond v1.PersistentVolumeClaimCondition) bool {
		switch cond.Type {
		case v1.PersistentVolumeClaimResizing, v1.PersistentVolumeClaimFileSystemResizePending,
			v1.PersistentVolumeClaimControllerResizeError, v1.PersistentVolumeClaimNodeResizeError:
			return true
		}
		return false
	})
}

func resizeFailed(c *v1.PersistentVolumeClaim, cause error, infeasible bool, now metav1.Time) {
	if infeasible {
		setResizeStatus(c, v1.PersistentVolumeClaimNodeResizeInfeasible)
	}
	condition := v1.PersistentVolumeClaimCondition{
		Type: v1.PersistentVolumeClaimNodeResizeError, Status: v1.ConditionTrue, LastTransitionTime: now,
		Message: fmt.Sprintf("failed to expand pvc with %v", cause),
	}
	for i := range c.Status.Conditions {
		if c.Status.Conditions[i].Type == condition.Type {
			if c.Status.Conditions[i].Status != condition.Status {
				c.Status.Conditions[i] = condition
			}
			return
		}
	}
	c.Status.Conditions = append(c.Status.Conditions, condition)
}

func setResizeStatus(c *v1.PersistentVolumeClaim, s v1.ClaimResourceStatus) {
	if c.Status.AllocatedResourceStatuses == nil {
		c.Status.AllocatedResourceStatuses = map[v1.ResourceName]v1.ClaimResourceStatus{}
	}
	c.Status.AllocatedResourceStatuses[v1.ResourceStorage] = s
}
