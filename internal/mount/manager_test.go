package mount

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/plugin"
)

// A pod with a claim comes and goes: report, attach, stage, publish; unpublish, unstage, report.
func TestJourney(t *testing.T) {
	r := newRig(t, volumes(1))
	r.manager.PodsComplete()
	r.manager.SetPod(pod("pod-1", "claim-1"))
	r.until("the report", func() bool { return slices.Equal(r.inUse(), []string{"pv-1"}) })
	r.until("waiting for the attach", func() bool {
		s := r.manager.Status("pod-1")
		return len(s.Volumes) == 1 && strings.Contains(s.Volumes[0].Waiting, "attach")
	})
	r.expectCalls()
	r.attach("pv-1")
	r.untilMounted("pod-1")
	r.expectCalls("stage pv-1", "publish pv-1 in pod-1")
	s := r.manager.Status("pod-1").Volumes[0]
	if s.Name != "vol-claim-1" || s.PV != "pv-1" || s.Path == "" || s.Waiting != "" || s.Err != nil {
		t.Errorf("status: %+v", s)
	}
	r.manager.SetPod(pod("pod-1", "claim-1")) // again: nothing happens

	r.manager.ReleasePod("pod-1")
	r.untilUnmounted("pod-1")
	r.until("the report", func() bool { return len(r.inUse()) == 0 })
	r.expectCalls("stage pv-1", "publish pv-1 in pod-1", "unpublish pv-1 in pod-1", "unstage pv-1")
	if left := r.plugin.left(); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}

// The claim is bound after the pod was seen: the claim's event goes on with it.
func TestClaimBoundLater(t *testing.T) {
	objects := volumes(1)
	claim := objects[0].(*v1.PersistentVolumeClaim)
	bound := claim.DeepCopy()
	claim.Status.Phase, claim.Spec.VolumeName = v1.ClaimPending, ""
	r := newRig(t, objects)
	r.attach("pv-1")
	r.manager.SetPod(pod("pod-1", "claim-1"))
	r.until("waiting", func() bool {
		s := r.manager.Status("pod-1")
		return len(s.Volumes) == 1 && strings.Contains(s.Volumes[0].Waiting, "to be bound")
	})
	if _, err := r.client.CoreV1().PersistentVolumeClaims("default").Update(t.Context(), bound, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.untilMounted("pod-1")
}

// What must not be mounted is refused, with an event in words.
func TestRefused(t *testing.T) {
	now := metav1.Now()
	block := v1.PersistentVolumeBlock
	for name, c := range map[string]struct {
		change func(*v1.PersistentVolumeClaim, *v1.PersistentVolume)
		pod    func(*v1.Pod)
		want   string
	}{
		"claim being deleted without its finalizer": {
			change: func(c *v1.PersistentVolumeClaim, _ *v1.PersistentVolume) {
				c.DeletionTimestamp, c.Finalizers = &now, []string{"example.com/other"}
			},
			want: "is being deleted",
		},
		"volume bound to another claim": {
			change: func(_ *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) { pv.Spec.ClaimRef.UID = "other" },
			want:   "is bound to another claim",
		},
		"block volume in volumeMounts": {
			change: func(_ *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) { pv.Spec.VolumeMode = &block },
			want:   "use volumeDevices",
		},
		"ephemeral claim of another pod": {
			pod: func(p *v1.Pod) {
				p.Spec.Volumes[0] = v1.Volume{Name: "1", VolumeSource: v1.VolumeSource{Ephemeral: &v1.EphemeralVolumeSource{}}}
				p.Spec.Containers[0].VolumeMounts[0].Name = "1"
				p.Name = "claim"
			},
			want: "not created for pod",
		},
		"source that nobody serves": {
			pod: func(p *v1.Pod) {
				p.Spec.Volumes[0].VolumeSource = v1.VolumeSource{ISCSI: &v1.ISCSIVolumeSource{}}
			},
			want: `"iscsi", which this node does not serve`,
		},
		"volume of another zone": {
			change: func(_ *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) {
				pv.Spec.NodeAffinity = &v1.VolumeNodeAffinity{Required: &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{{
					MatchExpressions: []v1.NodeSelectorRequirement{{Key: "zone", Operator: v1.NodeSelectorOpIn, Values: []string{"b"}}},
				}}}}
			},
			want: "can't be on node",
		},
	} {
		t.Run(name, func(t *testing.T) {
			var changes []func(*v1.PersistentVolumeClaim, *v1.PersistentVolume)
			if c.change != nil {
				changes = append(changes, c.change)
			}
			r := newRig(t, volumes(1, changes...))
			r.attach("pv-1")
			p := pod("pod-1", "claim-1")
			if c.pod != nil {
				c.pod(p)
			}
			r.manager.SetPod(p)
			select {
			case e := <-r.events.Events:
				if !strings.Contains(e, "FailedMount") || !strings.Contains(e, c.want) {
					t.Errorf("event %q, want %q", e, c.want)
				}
			case <-time.After(5 * time.Second):
				t.Fatal("no event")
			}
			if s := r.manager.Status("pod-1"); s.AllMounted || s.Volumes[0].Err == nil {
				t.Errorf("status %+v", s)
			}
			r.expectCalls()
		})
	}
}

// Volumes that come together share patches of the node's status; all are mounted.
func TestManyAtOnce(t *testing.T) {
	const n = 50
	r := newRig(t, volumes(n))
	var pvs []string
	for i := 1; i <= n; i++ {
		pvs = append(pvs, fmt.Sprintf("pv-%d", i))
	}
	r.attach(pvs...)
	for i := 1; i <= n; i++ {
		r.manager.SetPod(pod(fmt.Sprintf("pod-%d", i), fmt.Sprintf("claim-%d", i)))
	}
	for i := 1; i <= n; i++ {
		r.untilMounted(types.UID(fmt.Sprintf("pod-%d", i)))
	}
	patches := 0
	for _, a := range r.client.Actions() {
		if a.Matches("patch", "nodes/status") {
			patches++
		}
	}
	if patches > n/2 {
		t.Errorf("%d patches of the node's status for %d volumes", patches, n)
	}
}

// A driver that hangs holds up its own volume only; Holders names it, and stopping is not held up.
func TestHanging(t *testing.T) {
	r := newRig(t, volumes(2))
	r.attach("pv-1", "pv-2")
	r.plugin.hang("stage pv-1")
	r.manager.SetPod(pod("pod-1", "claim-1"))
	r.until("the hang", func() bool { return len(r.manager.Holders()) == 1 })
	r.manager.SetPod(pod("pod-2", "claim-2"))
	r.untilMounted("pod-2")
	h := r.manager.Holders()
	if len(h) != 1 || h[0].PV != "pv-1" || h[0].Step != "Staged" || h[0].Pod.Name != "pod-1" {
		t.Errorf("holders: %+v", h)
	}
	r.stop()
}

// A publish whose outcome is unknown is undone although the pod goes before it ever succeeded.
func TestUncertainIsUnmounted(t *testing.T) {
	for name, c := range map[string]struct {
		call string
		want []string
	}{
		"publish": {"publish pv-1 in pod-1", []string{"stage pv-1", "publish pv-1 in pod-1", "unpublish pv-1 in pod-1", "unstage pv-1"}},
		"stage":   {"stage pv-1", []string{"stage pv-1", "unstage pv-1"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, volumes(1))
			r.manager.PodsComplete()
			r.attach("pv-1")
			r.plugin.fail(c.call, fmt.Errorf("no answer: %w", plugin.ErrUncertain))
			r.manager.SetPod(pod("pod-1", "claim-1"))
			r.until("the failure", func() bool {
				s := r.manager.Status("pod-1")
				return len(s.Volumes) == 1 && s.Volumes[0].Err != nil
			})
			r.manager.ReleasePod("pod-1")
			r.untilUnmounted("pod-1")
			r.until("the end", func() bool { return len(r.inUse()) == 0 })
			r.expectCalls(c.want...)
		})
	}
}

// A final failure of the publish leaves nothing to unpublish, but the stage to undo. It is tried again after a pause.
func TestFinalFailure(t *testing.T) {
	r := newRig(t, volumes(1))
	r.manager.PodsComplete()
	r.attach("pv-1")
	r.plugin.fail("publish pv-1 in pod-1", fmt.Errorf("refused"))
	begun := time.Now()
	r.manager.SetPod(pod("pod-1", "claim-1"))
	r.untilMounted("pod-1")
	if took := time.Since(begun); took < firstBackoff {
		t.Errorf("tried again after %s, want %s", took, firstBackoff)
	}
	r.expectCalls("stage pv-1", "publish pv-1 in pod-1", "publish pv-1 in pod-1")
	event := <-r.events.Events
	if want := `FailedMount MountVolume.SetUp failed for volume "pv-1" : refused`; !strings.Contains(event, want) {
		t.Errorf("event %q, want %q", event, want)
	}
}

// The second pod with a ReadWriteOncePod volume waits, with the first one's name, and has it when that has gone.
func TestReadWriteOncePod(t *testing.T) {
	r := newRig(t, volumes(1, func(_ *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) {
		pv.Spec.AccessModes = []v1.PersistentVolumeAccessMode{v1.ReadWriteOncePod}
	}))
	r.manager.PodsComplete()
	r.attach("pv-1")
	r.manager.SetPod(pod("pod-1", "claim-1"))
	r.untilMounted("pod-1")
	r.manager.SetPod(pod("pod-2", "claim-1"))
	r.until("the reason", func() bool {
		return strings.Contains(r.manager.Status("pod-2").Volumes[0].Waiting, "pod default/pod-1 has it")
	})
	r.manager.ReleasePod("pod-1")
	r.untilMounted("pod-2")
	r.expectCalls("stage pv-1", "publish pv-1 in pod-1", "unpublish pv-1 in pod-1", "publish pv-1 in pod-2")
}

// A pod that waited in vain leaves at once, although the volume stays for another.
func TestWaitingPodLeaves(t *testing.T) {
	r := newRig(t, volumes(1, func(_ *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) {
		pv.Spec.AccessModes = []v1.PersistentVolumeAccessMode{v1.ReadWriteOncePod}
	}))
	r.manager.PodsComplete()
	r.attach("pv-1")
	r.manager.SetPod(pod("pod-1", "claim-1"))
	r.untilMounted("pod-1")
	r.manager.SetPod(pod("pod-2", "claim-1"))
	r.manager.ReleasePod("pod-2")
	r.untilUnmounted("pod-2")
	r.expectCalls("stage pv-1", "publish pv-1 in pod-1")
}

// Two pods share a stage; it goes with the last of them.
func TestSharedStage(t *testing.T) {
	r := newRig(t, volumes(1))
	r.manager.PodsComplete()
	r.attach("pv-1")
	r.manager.SetPod(pod("pod-1", "claim-1"))
	r.untilMounted("pod-1")
	r.manager.SetPod(pod("pod-2", "claim-1"))
	r.untilMounted("pod-2")
	r.manager.ReleasePod("pod-1")
	r.untilUnmounted("pod-1")
	if got := r.inUse(); !slices.Equal(got, []string{"pv-1"}) {
		t.Errorf("in use: %q", got)
	}
	r.manager.ReleasePod("pod-2")
	r.until("the end", func() bool { return len(r.inUse()) == 0 })
	r.expectCalls("stage pv-1", "publish pv-1 in pod-1", "publish pv-1 in pod-2",
		"unpublish pv-1 in pod-1", "unpublish pv-1 in pod-2", "unstage pv-1")
}

// Refresh publishes again; a failure of that takes nothing away.
func TestRefresh(t *testing.T) {
	r := newRig(t, volumes(1))
	r.plugin.refreshes = true
	r.attach("pv-1")
	r.manager.SetPod(pod("pod-1", "claim-1"))
	r.untilMounted("pod-1")
	r.plugin.fail("publish pv-1 in pod-1 again", fmt.Errorf("refused"))
	r.manager.Refresh("pod-1", "vol-claim-1")
	r.until("the failure", func() bool { return r.manager.Status("pod-1").Volumes[0].Err != nil })
	if !r.manager.Status("pod-1").AllMounted {
		t.Error("a failed refresh unmounted the volume")
	}
	r.until("the second try", func() bool { return r.manager.Status("pod-1").Volumes[0].Err == nil })
	r.expectCalls("stage pv-1", "publish pv-1 in pod-1", "publish pv-1 in pod-1 again", "publish pv-1 in pod-1 again")
}

// The resizer has grown the volume and left the rest to the node: it is grown, and the claim says so.
func TestExpand(t *testing.T) {
	r := newRig(t, volumes(1, func(c *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) {
		pv.Spec.Capacity = v1.ResourceList{v1.ResourceStorage: resource.MustParse("2Gi")}
		c.Status.AllocatedResourceStatuses = map[v1.ResourceName]v1.ClaimResourceStatus{v1.ResourceStorage: v1.PersistentVolumeClaimNodeResizePending}
		c.Status.Conditions = []v1.PersistentVolumeClaimCondition{{Type: v1.PersistentVolumeClaimFileSystemResizePending, Status: v1.ConditionTrue}}
	}))
	r.attach("pv-1")
	r.manager.SetPod(pod("pod-1", "claim-1"))
	r.untilMounted("pod-1")
	r.expectCalls("stage pv-1", "publish pv-1 in pod-1", "expand pv-1 to 2147483648")
	c, err := r.client.CoreV1().PersistentVolumeClaims("default").Get(t.Context(), "claim-1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if size(c.Status.Capacity) != 2<<30 || len(c.Status.AllocatedResourceStatuses) != 0 || len(c.Status.Conditions) != 0 {
		t.Errorf("claim's status: %+v", c.Status)
	}
}

// A node that attaches by itself attaches before and detaches after, and reports too.
func TestAttachOnNode(t *testing.T) {
	r := newRig(t, volumes(1), func(_ *rig, o *Options) { o.AttachOnController = false })
	r.manager.PodsComplete()
	r.manager.SetPod(pod("pod-1", "claim-1"))
	r.untilMounted("pod-1")
	r.manager.ReleasePod("pod-1")
	r.untilUnmounted("pod-1")
	r.until("the end", func() bool { return len(r.inUse()) == 0 })
	r.expectCalls("attach pv-1", "stage pv-1", "publish pv-1 in pod-1", "unpublish pv-1 in pod-1", "unstage pv-1", "detach pv-1")
}

// Teardown takes everything away and says what it could not.
func TestTeardown(t *testing.T) {
	r := newRig(t, volumes(2))
	r.manager.PodsComplete()
	r.attach("pv-1", "pv-2")
	r.manager.SetPod(pod("pod-1", "claim-1", "claim-2"))
	r.untilMounted("pod-1")
	release := r.plugin.hang("unstage pv-2")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := r.manager.Teardown(ctx); err == nil || !strings.Contains(err.Error(), "pv-2") {
		t.Errorf("teardown of a hanging driver: %v", err)
	}
	// The instance goes on, so its pods get their volumes back, those that came meanwhile as well.
	release()
	r.untilMounted("pod-1")
	if got := r.inUse(); !slices.Equal(got, []string{"pv-1", "pv-2"}) {
		t.Errorf("in use %q", got)
	}
	if err := r.manager.Teardown(t.Context()); err != nil {
		t.Error(err)
	}
	if left := r.plugin.left(); len(left) != 0 || len(r.inUse()) != 0 {
		t.Errorf("left: %q, in use %q", left, r.inUse())
	}
}

// What a plugin keeps for a pod that lives on stays through a teardown; a pod that is deleted meanwhile takes it along.
func TestTeardownKeepsWhatLivesInThePodsDirectory(t *testing.T) {
	r := newRig(t, volumes(2))
	r.manager.PodsComplete()
	r.attach("pv-1", "pv-2")
	for i, name := range []string{"stays", "leaves"} {
		pv := fmt.Sprintf("pv-%d", i+1)
		r.plugin.keeps[pv] = true
		r.manager.SetPod(pod(name, fmt.Sprintf("claim-%d", i+1)))
		r.untilMounted(types.UID(name))
	}
	r.manager.ReleasePod("leaves")
	r.untilUnmounted("leaves")
	if err := r.manager.Teardown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := r.plugin.left(); !slices.Equal(left, []string{"pv-1", "stays/pv-1"}) {
		t.Errorf("left %q", left)
	}
	r.manager.ReleasePod("stays")
	r.untilUnmounted("stays")
	if left := r.plugin.left(); len(left) != 0 {
		t.Errorf("left after the pod: %q", left)
	}
}

// Each try has another loop device: the events must not differ for that, or nobody counts them as one.
func TestEventsOfTheSameFailureAreTheSame(t *testing.T) {
	r := newRig(t, volumes(1))
	r.plugin.fail("stage pv-1", errors.New("mount /dev/loop3 (ext4): bad superblock"), errors.New("mount /dev/loop14 (ext4): bad superblock"))
	r.manager.PodsComplete()
	r.attach("pv-1")
	r.manager.SetPod(pod("pod-1", "claim-1"))
	r.untilMounted("pod-1")
	first, second := <-r.events.Events, <-r.events.Events
	if first != second || !strings.Contains(first, "FailedMount") || !strings.Contains(first, "mount /dev/loop* (ext4): bad superblock") {
		t.Errorf("%q and %q", first, second)
	}
}

// The node's object is made again (its registration was deleted): the report is written again.
func TestNodeMadeAgain(t *testing.T) {
	r := newRig(t, volumes(1))
	r.attach("pv-1")
	r.manager.SetPod(pod("pod-1", "claim-1"))
	r.untilMounted("pod-1")
	if got := r.manager.VolumesInUse(); !slices.Equal(got, []v1.UniqueVolumeName{fakeName("pv-1")}) {
		t.Errorf("for the new object: %q", got)
	}
	nodes := r.client.CoreV1().Nodes()
	if err := nodes.Delete(t.Context(), testNode, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := nodes.Create(t.Context(), &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: testNode, UID: "again"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.until("the report", func() bool { return slices.Equal(r.inUse(), []string{"pv-1"}) })
}
