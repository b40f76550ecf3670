package why

import (
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	storagehelpers "k8s.io/component-helpers/storage/volume"
)

// growth says from what to what a bound claim wants to grow; ok is false when it has what it asks for.
func growth(vf *volumeFacts) (has, asked *resource.Quantity, ok bool) {
	if vf.claim == nil || vf.pv == nil || vf.claim.Status.Phase != v1.ClaimBound || vf.claim.DeletionTimestamp != nil {
		return nil, nil, false
	}
	has, asked = vf.claim.Status.Capacity.Storage(), vf.claim.Spec.Resources.Requests.Storage()
	return has, asked, !has.IsZero() && asked.Cmp(*has) > 0
}

// growTooLarge is the cause of a growth that the storage has no room for.
func growTooLarge(f *facts, vf *volumeFacts) (what, advice string) {
	_, asked, growing := growth(vf)
	if !growing {
		return "", ""
	}
	has := vf.pv.Spec.Capacity.Storage()
	more := asked.Value() - has.Value()
	if more <= 0 {
		return "", "" // the storage has grown; the filesystem follows
	}
	room, told := int64(0), false
	if vf.class != nil {
		room, told = f.largestVolume(vf.class)
	}
	switch refused := noRoomToGrow(vf); {
	case told && more > room:
		what = fmt.Sprintf("The claim asks to grow from %s to %s, and its storage has only %s more to give.", has, asked, bytesOf(room))
	case !told && refused:
		what = fmt.Sprintf("The claim asks to grow from %s to %s, and its storage has no room for that.", has, asked)
	default:
		return "", ""
	}
	size := "SIZE"
	if told && room >= 1<<20 {
		size = fmt.Sprintf("%dMi", (has.Value()+room)>>20)
	}
	return what, fmt.Sprintf(`Ask for less, but more than the %s that it has: kubectl patch pvc%s %s -p '{"spec":{"resources":{"requests":{"storage":"%s"}}}}'. `+
		"Or delete volumes that are not needed, or make the pool larger: it is tried again. The volume works on at its present size.",
		has, namespaceArg(vf.namespace), vf.claimName, size)
}

// noRoomToGrow says whether the resizer's last word was that there is no room.
func noRoomToGrow(vf *volumeFacts) bool {
	for i := len(vf.events) - 1; i >= 0; i-- {
		if e := &vf.events[i]; e.Reason == "VolumeResizeFailed" {
			p := inPlainWords(e.Message)
			return p != nil && p.Cause == "pool-full"
		}
	}
	return false
}

// growthWaits says what a growth waits for now; nil when the claim has what it asks for.
func growthWaits(f *facts, vf *volumeFacts) *Waiting {
	has, asked, growing := growth(vf)
	if !growing {
		return nil
	}
	w := &Waiting{For: fmt.Sprintf("driver %s to grow the volume from %s to %s", vf.driverOf(), has, asked), Since: resizingSince(vf.claim)}
	if asked.Cmp(*vf.pv.Spec.Capacity.Storage()) <= 0 { // the storage is there, the filesystem on it is not grown yet
		if f.pod != nil && f.pod.Spec.NodeName != "" {
			w.For = fmt.Sprintf("node %s to grow the filesystem from %s to %s", f.pod.Spec.NodeName, has, asked)
		} else {
			w.For = fmt.Sprintf("a pod that uses the claim: its filesystem grows from %s to %s when it is mounted next", has, asked)
		}
	}
	return w
}

func resizingSince(c *v1.PersistentVolumeClaim) (since time.Time) {
	for i := range c.Status.Conditions {
		switch x := &c.Status.Conditions[i]; x.Type {
		case v1.PersistentVolumeClaimResizing, v1.PersistentVolumeClaimFileSystemResizePending,
			v1.PersistentVolumeClaimControllerResizeError, v1.PersistentVolumeClaimNodeResizeError:
			if t := x.LastTransitionTime.Time; x.Status == v1.ConditionTrue && (since.IsZero() || t.Before(since)) {
				since = t
			}
		}
	}
	return since
}

// rounded says why a volume is larger than its claim asks for; empty when it is not.
func rounded(vf *volumeFacts) string {
	if vf.claim == nil || vf.pv == nil {
		return ""
	}
	asked, has := vf.claim.Spec.Resources.Requests.Storage(), vf.pv.Spec.Capacity.Storage()
	switch {
	case asked.IsZero() || has.Cmp(*asked) <= 0:
		return ""
	case vf.pv.Annotations[storagehelpers.AnnDynamicallyProvisioned] != "":
		return fmt.Sprintf("larger than the %s asked for: the driver rounds up to its unit, or to the smallest volume that the filesystem can have", asked)
	}
	return fmt.Sprintf("larger than the %s asked for: it was the smallest volume that fits, or is the one that the claim names", asked)
}
