package why

import (
	"fmt"

	v1 "k8s.io/api/core/v1"

	"berth.io/berth/internal/trace"
)

// modificationWaits says what a change of the claim's VolumeAttributesClass waits for; nil when there is none.
func modificationWaits(vf *volumeFacts) *Waiting {
	if vf.claim == nil || vf.pv == nil || vf.claim.Status.ModifyVolumeStatus == nil || vf.claim.DeletionTimestamp != nil {
		return nil
	}
	m := vf.claim.Status.ModifyVolumeStatus
	w := &Waiting{For: fmt.Sprintf("driver %s to change the volume to VolumeAttributesClass %s", vf.driverOf(), m.TargetVolumeAttributesClassName)}
	if m.Status == v1.PersistentVolumeClaimModifyVolumePending {
		w.For = fmt.Sprintf("VolumeAttributesClass %s to be there and to fit the driver", m.TargetVolumeAttributesClassName)
	}
	for i := range vf.claim.Status.Conditions {
		if c := &vf.claim.Status.Conditions[i]; c.Type == v1.PersistentVolumeClaimVolumeModifyingVolume || c.Type == v1.PersistentVolumeClaimVolumeModifyVolumeError {
			if w.Since.IsZero() || c.LastTransitionTime.Time.Before(w.Since) {
				w.Since = c.LastTransitionTime.Time
			}
		}
	}
	return w
}

// addConditions adds the errors that stand in the claim's conditions: of growing and of changing.
func addConditions(add func(complaint), vf *volumeFacts) {
	if vf.claim == nil {
		return
	}
	for i := range vf.claim.Status.Conditions {
		c := &vf.claim.Status.Conditions[i]
		rank := 0
		switch c.Type {
		case v1.PersistentVolumeClaimControllerResizeError, v1.PersistentVolumeClaimNodeResizeError:
			rank = order[trace.Expanded]
		case v1.PersistentVolumeClaimVolumeModifyVolumeError:
			rank = order[trace.Modified]
		}
		if rank == 0 || c.Status != v1.ConditionTrue || c.Message == "" {
			continue
		}
		add(complaint{message: c.Message, from: "condition " + string(c.Type), time: c.LastTransitionTime.Time, count: 1, rank: rank})
	}
}
