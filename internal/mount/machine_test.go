package mount

import (
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/plugin"
)

// machineVolume is an attachable, staged volume without uses.
func machineVolume(modes ...v1.PersistentVolumeAccessMode) *volume {
	pv := &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv-1"}}
	pv.Spec.AccessModes = modes
	return &volume{name: "v", specName: "pv-1", attachable: true, stages: true, uses: map[types.UID]*use{}, latest: &plugin.Volume{PV: pv}}
}

func (v *volume) with(pod types.UID, desired bool, state presence) *use {
	u := &use{volume: v, pod: pod, order: len(v.uses) + 1, desired: desired, state: state, specName: v.specName}
	if desired {
		u.resolved = &plugin.Volume{PV: v.latest.PV, Claim: &v1.PersistentVolumeClaim{}}
	}
	v.uses[pod] = u
	return u
}

var (
	anytime  = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	attached = world{now: anytime, complete: true, controllerAttaches: true, reported: true, attached: true, expands: true}
)

func TestNext(t *testing.T) {
	later := anytime.Add(time.Minute)
	for name, c := range map[string]struct {
		volume func() *volume
		world  world
		step   step
		pod    types.UID
		wait   string // of pod "a"
		retry  time.Time
	}{
		"nothing wanted, nothing there": {volume: func() *volume { return machineVolume() }, world: attached, step: doForget},
		"not reported yet": {
			volume: func() *volume { v := machineVolume(); v.with("a", true, absent); return v },
			world:  world{complete: true, controllerAttaches: true, attached: true}, wait: "attach",
		},
		"not attached yet": {
			volume: func() *volume { v := machineVolume(); v.with("a", true, absent); return v },
			world:  world{complete: true, controllerAttaches: true, reported: true}, wait: "attach",
		},
		"attached: stage": {
			volume: func() *volume { v := machineVolume(); v.with("a", true, absent); return v },
			world:  attached, step: doStage, pod: "a",
		},
		"not attachable: stage at once": {
			volume: func() *volume { v := machineVolume(); v.attachable = false; v.with("a", true, absent); return v },
			step:   doStage, pod: "a",
		},
		"no stage step: publish at once": {
			volume: func() *volume {
				v := machineVolume()
				v.attachable, v.stages = false, false
				v.with("a", true, absent)
				return v
			},
			step: doPublish, pod: "a",
		},
		"staged: publish": {
			volume: func() *volume { v := machineVolume(); v.stage = present; v.with("a", true, absent); return v },
			world:  attached, step: doPublish, pod: "a",
		},
		"stage uncertain: stage again": {
			volume: func() *volume { v := machineVolume(); v.stage = uncertain; v.with("a", true, uncertain); return v },
			world:  attached, step: doStage, pod: "a",
		},
		"published: nothing": {
			volume: func() *volume { v := machineVolume(); v.stage = present; v.with("a", true, present); return v },
			world:  attached, step: doNothing,
		},
		"published, source changed: publish": {
			volume: func() *volume {
				v := machineVolume()
				v.stage = present
				v.with("a", true, present).refresh = true
				return v
			},
			world: attached, step: doPublish, pod: "a",
		},
		"left, before the pods are complete: nothing": {
			volume: func() *volume { v := machineVolume(); v.stage = uncertain; v.with("a", false, uncertain); return v },
			world:  world{controllerAttaches: true}, step: doNothing,
		},
		"left: unpublish": {
			volume: func() *volume { v := machineVolume(); v.stage = present; v.with("a", false, present); return v },
			world:  attached, step: doUnpublish, pod: "a",
		},
		"one left and one comes: unpublish first": {
			volume: func() *volume {
				v := machineVolume()
				v.stage = present
				v.with("b", true, absent)
				v.with("a", false, present)
				return v
			},
			world: attached, step: doUnpublish, pod: "a",
		},
		"held after a restart: nothing": {
			volume: func() *volume {
				v := machineVolume()
				v.stage = uncertain
				v.with("a", false, uncertain).held = true
				return v
			},
			world: attached, step: doNothing,
		},
		"last user gone: unstage": {
			volume: func() *volume { v := machineVolume(); v.stage = present; return v },
			world:  attached, step: doUnstage,
		},
		"unpublish backs off: no unstage below it": {
			volume: func() *volume {
				v := machineVolume()
				v.stage = present
				v.with("a", false, uncertain).back.until = later
				return v
			},
			world: attached, step: doNothing, retry: later,
		},
		"another pod wants it: stays staged": {
			volume: func() *volume {
				v := machineVolume()
				v.stage = present
				v.with("a", true, absent).back.until = later
				return v
			},
			world: attached, step: doNothing, retry: later, wait: "the next try",
		},
		"unstage backs off": {
			volume: func() *volume { v := machineVolume(); v.stage = uncertain; v.back.until = later; return v },
			world:  attached, step: doNothing, retry: later,
		},
		"read-write-once-pod: the one that has it": {
			volume: func() *volume {
				v := machineVolume(v1.ReadWriteOncePod)
				v.stage = present
				v.with("a", true, absent)
				v.with("b", true, present)
				return v
			},
			world: attached, step: doNothing, wait: "ReadWriteOncePod and pod b has it",
		},
		"read-write-once-pod: the first that wants it": {
			volume: func() *volume {
				v := machineVolume(v1.ReadWriteOncePod)
				v.stage = present
				v.with("b", true, absent)
				v.with("a", true, absent)
				return v
			},
			world: attached, step: doPublish, pod: "b",
		},
		"attach on the node": {
			volume: func() *volume { v := machineVolume(); v.with("a", true, absent); return v },
			world:  world{complete: true}, step: doAttach, pod: "a",
		},
		"attach on the node, under way": {
			volume: func() *volume {
				v := machineVolume()
				v.attach, v.attachPending = uncertain, "the driver"
				v.with("a", true, absent)
				return v
			},
			world: world{complete: true}, wait: "the driver",
		},
		"detach on the node": {
			volume: func() *volume { v := machineVolume(); v.attach = present; return v },
			world:  world{complete: true}, step: doDetach,
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := c.volume()
			d := next(v, c.world)
			var who types.UID
			if d.use != nil {
				who = d.use.pod
			}
			if d.step != c.step || who != c.pod {
				t.Errorf("step %d of %q, want %d of %q", d.step, who, c.step, c.pod)
			}
			if !d.retryAt.Equal(c.retry) {
				t.Errorf("retry at %s, want %s", d.retryAt, c.retry)
			}
			if u := v.uses["a"]; u != nil && !strings.Contains(d.waits[u], c.wait) {
				t.Errorf("waits for %q, want %q", d.waits[u], c.wait)
			}
		})
	}
}

func TestExpansionDue(t *testing.T) {
	for name, c := range map[string]struct {
		pv, claim string
		status    v1.ClaimResourceStatus
		pending   bool
		readOnly  bool
		done      int64
		want      bool
	}{
		"equal":                      {pv: "1Gi", claim: "1Gi", status: v1.PersistentVolumeClaimNodeResizePending},
		"pending":                    {pv: "2Gi", claim: "1Gi", status: v1.PersistentVolumeClaimNodeResizePending, want: true},
		"in progress when we died":   {pv: "2Gi", claim: "1Gi", status: v1.PersistentVolumeClaimNodeResizeInProgress, want: true},
		"infeasible":                 {pv: "2Gi", claim: "1Gi", status: v1.PersistentVolumeClaimNodeResizeInfeasible},
		"controller not done":        {pv: "2Gi", claim: "1Gi", status: v1.PersistentVolumeClaimControllerResizeInProgress},
		"condition of older resizer": {pv: "2Gi", claim: "1Gi", pending: true, want: true},
		"bigger volume than asked":   {pv: "2Gi", claim: "1Gi"},
		"done, cache is behind":      {pv: "2Gi", claim: "1Gi", pending: true, done: 2 << 30},
		"grown once more":            {pv: "3Gi", claim: "1Gi", pending: true, done: 2 << 30, want: true},
		"read-only":                  {pv: "2Gi", claim: "1Gi", pending: true, readOnly: true},
	} {
		t.Run(name, func(t *testing.T) {
			v := machineVolume()
			v.expandedTo = c.done
			u := v.with("a", true, present)
			u.resolved.ReadOnly = c.readOnly
			u.resolved.PV.Spec.Capacity = v1.ResourceList{v1.ResourceStorage: resource.MustParse(c.pv)}
			claim := u.resolved.Claim
			claim.Status.Capacity = v1.ResourceList{v1.ResourceStorage: resource.MustParse(c.claim)}
			if c.status != "" {
				claim.Status.AllocatedResourceStatuses = map[v1.ResourceName]v1.ClaimResourceStatus{v1.ResourceStorage: c.status}
			}
			if c.pending {
				claim.Status.Conditions = []v1.PersistentVolumeClaimCondition{{Type: v1.PersistentVolumeClaimFileSystemResizePending, Status: v1.ConditionTrue}}
			}
			if got := expansionDue(v, u); got != c.want {
				t.Errorf("due: %v", got)
			}
		})
	}
}
