package mount

import (
	"fmt"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"

	"berth.io/berth/internal/plugin"
)

// step is the one thing that a volume does next.
type step int

const (
	doNothing step = iota
	// doDrop: a pod has left that had nothing of the volume.
	doDrop
	doUnpublish
	doAttach
	doStage
	doPublish
	doExpand
	doUnstage
	doDetach
	// doForget: nothing is wanted and nothing is there.
	doForget
)

// world is what next knows besides the volume.
type world struct {
	now time.Time
	// complete: every pod of this node has been set, so what nobody wants may go.
	complete bool
	// controllerAttaches: the attach room does, and attached says whether it has.
	controllerAttaches bool
	// reported: the API's node.status.volumesInUse has the volume, and attached is not older than that report.
	reported bool
	attached bool
	expands  bool
}

// decision is what next decided.
type decision struct {
	step step
	use  *use
	// waits says for each pod that does not go on why.
	waits map[*use]string
	// retryAt is when a back-off ends; zero when only an event can change the decision.
	retryAt time.Time
}

// next decides the volume's next step from what is desired and what is there. It has no clock, no I/O and changes nothing.
//
// The order is upstream's: unpublish what nobody wants, then mount, then unstage.
func next(v *volume, w world) decision {
	d := decision{waits: map[*use]string{}}
	uses := v.ordered()
	for _, u := range uses {
		if !u.desired && !u.held && u.state == absent {
			return d.does(doDrop, u)
		}
	}
	if w.complete {
		for _, u := range uses {
			if !u.desired && !u.held && u.state != absent && d.due(&u.back, w.now) {
				return d.does(doUnpublish, u)
			}
		}
	}
	for _, u := range uses {
		if !u.desired || u.resolved == nil {
			continue
		}
		if s, reason := mountStep(v, u, uses, w, &d); s != doNothing {
			return d.does(s, u)
		} else if reason != "" {
			d.waits[u] = reason
		}
	}
	if v.wanted() || !w.complete {
		return d
	}
	for _, u := range uses {
		if u.state != absent {
			return d // its unpublish is backing off
		}
	}
	switch {
	case v.stage != absent:
		if d.due(&v.back, w.now) {
			return d.does(doUnstage, nil)
		}
	case v.attach != absent:
		if v.attachPending == "" && d.due(&v.back, w.now) {
			return d.does(doDetach, nil)
		}
	default:
		return d.does(doForget, nil)
	}
	return d
}

// mountStep is the next step towards u's volume in its pod, or why there is none.
func mountStep(v *volume, u *use, uses []*use, w world, d *decision) (step, string) {
	if u.state == present {
		switch {
		case w.expands && expansionDue(v, u) && d.due(&u.back, w.now):
			return doExpand, ""
		case u.refresh && d.due(&u.back, w.now):
			return doPublish, ""
		}
		return doNothing, ""
	}
	if holder := soleUser(v, uses); holder != nil && holder != u {
		return doNothing, fmt.Sprintf("volume is ReadWriteOncePod and pod %s has it on this node", podName(holder))
	}
	if v.attachable {
		switch {
		case w.controllerAttaches && !(w.reported && w.attached):
			return doNothing, "attach of the volume to this node"
		case w.controllerAttaches:
		case v.attach == present && w.reported:
		case v.attachPending != "":
			return doNothing, v.attachPending
		case v.attach != present:
			if d.due(&v.back, w.now) {
				return doAttach, ""
			}
			return doNothing, retrying(v.err)
		default:
			return doNothing, "node.status.volumesInUse to be written"
		}
	}
	if v.stages && v.stage != present {
		if d.due(&v.back, w.now) {
			return doStage, ""
		}
		return doNothing, retrying(v.err)
	}
	if d.due(&u.back, w.now) {
		return doPublish, ""
	}
	return doNothing, retrying(u.err)
}

func retrying(err error) string { return fmt.Sprintf("the next try after: %v", err) }

// soleUser is the one pod that may have a ReadWriteOncePod volume: the one that has it, else the first that wants it.
func soleUser(v *volume, uses []*use) *use {
	if v.latest == nil || v.latest.PV == nil || !slices.Contains(v.latest.PV.Spec.AccessModes, v1.ReadWriteOncePod) {
		return nil
	}
	for _, u := range uses {
		if u.state != absent {
			return u
		}
	}
	for _, u := range uses {
		if u.desired {
			return u
		}
	}
	return nil
}

// expansionDue: the resizer has grown the volume and left the rest to the node (upstream NodeExpander.runPreCheck).
func expansionDue(v *volume, u *use) bool {
	if u.resolved == nil || u.resolved.Claim == nil || u.resolved.PV == nil || u.resolved.ReadOnly {
		return false
	}
	claim, pv := u.resolved.Claim, u.resolved.PV
	size := pv.Spec.Capacity[v1.ResourceStorage]
	have := claim.Status.Capacity[v1.ResourceStorage]
	if size.Cmp(have) <= 0 || size.Value() <= v.expandedTo {
		return false
	}
	switch claim.Status.AllocatedResourceStatuses[v1.ResourceStorage] {
	case v1.PersistentVolumeClaimNodeResizePending, v1.PersistentVolumeClaimNodeResizeInProgress:
		return true
	case "":
		return slices.ContainsFunc(claim.Status.Conditions, func(c v1.PersistentVolumeClaimCondition) bool {
			return c.Type == v1.PersistentVolumeClaimFileSystemResizePending && c.Status == v1.ConditionTrue
		})
	}
	return false
}

func (d *decision) does(s step, u *use) decision {
	d.step, d.use = s, u
	return *d
}

// due says whether a step may be tried now, and otherwise notes when.
func (d *decision) due(b *backoff, now time.Time) bool {
	if !b.waits(now) {
		return true
	}
	if d.retryAt.IsZero() || b.until.Before(d.retryAt) {
		d.retryAt = b.until
	}
	return false
}

func podName(u *use) string {
	if u.ref.Name == "" {
		return string(u.pod)
	}
	return u.ref.Namespace + "/" + u.ref.Name
}

// canExpand says whether the plugin grows volumes on the node at all.
func canExpand(p plugin.Mounter) bool {
	_, ok := p.(plugin.Expander)
	return ok
}
