package mount

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"

	"berth.io/berth/internal/plugin"
)

const testNode = "node-1"

// rig is a Manager with a fake plugin and a fake API.
type rig struct {
	t       *testing.T
	client  *fake.Clientset
	plugin  *fakePlugin
	manager *Manager
	events  *record.FakeRecorder
	changes chan types.UID
	stop    func()
}

// option changes a rig before it starts.
type option func(*rig, *Options)

func newRig(t *testing.T, objects []runtime.Object, options ...option) *rig {
	t.Helper()
	r := &rig{t: t, plugin: newFakePlugin(t), events: record.NewFakeRecorder(1000), changes: make(chan types.UID, 1000)}
	node := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: testNode, UID: "node", Labels: map[string]string{"zone": "a"}}}
	r.client = fake.NewClientset(append(objects, node)...)
	r.start(options...)
	return r
}

func (r *rig) start(options ...option) {
	factory := informers.NewSharedInformerFactory(r.client, 0)
	o := Options{
		Client: r.client, Informers: factory, Plugins: plugin.NewRegistry(r.plugin), DataDir: r.plugin.dir, Node: testNode,
		AttachOnController: true, Events: r.events, Log: slog.New(slog.DiscardHandler),
		OnChange: func(uid types.UID) { r.changes <- uid },
	}
	for _, f := range options {
		f(r, &o)
	}
	m, err := New(o)
	if err != nil {
		r.t.Fatal(err)
	}
	r.manager = m
	ctx, cancel := context.WithCancel(r.t.Context())
	factory.Start(ctx.Done())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				r.t.Error(err)
			}
		case <-time.After(10 * time.Second):
			r.t.Error("Run does not end")
		}
		factory.Shutdown()
	}
	r.t.Cleanup(r.stop)
}

// volumes makes n claims claim-1.. bound to pv-1..
func volumes(n int, change ...func(*v1.PersistentVolumeClaim, *v1.PersistentVolume)) []runtime.Object {
	var out []runtime.Object
	for i := 1; i <= n; i++ {
		size := v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")}
		claim := &v1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("claim-%d", i), Namespace: "default", UID: types.UID(fmt.Sprintf("claim-uid-%d", i)), ResourceVersion: "1"},
			Spec:       v1.PersistentVolumeClaimSpec{VolumeName: fmt.Sprintf("pv-%d", i)},
			Status:     v1.PersistentVolumeClaimStatus{Phase: v1.ClaimBound, Capacity: size.DeepCopy()},
		}
		pv := &v1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: claim.Spec.VolumeName},
			Spec: v1.PersistentVolumeSpec{
				Capacity:               size,
				AccessModes:            []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce},
				ClaimRef:               &v1.ObjectReference{Namespace: "default", Name: claim.Name, UID: claim.UID},
				PersistentVolumeSource: v1.PersistentVolumeSource{CSI: &v1.CSIPersistentVolumeSource{Driver: "fake", VolumeHandle: claim.Spec.VolumeName}},
			},
		}
		for _, f := range change {
			f(claim, pv)
		}
		out = append(out, claim, pv)
	}
	return out
}

// pod makes a pod whose container mounts the claims.
func pod(name string, claims ...string) *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID(name)}}
	c := v1.Container{Name: "c"}
	for _, claim := range claims {
		p.Spec.Volumes = append(p.Spec.Volumes, v1.Volume{
			Name:         "vol-" + claim,
			VolumeSource: v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: claim}},
		})
		c.VolumeMounts = append(c.VolumeMounts, v1.VolumeMount{Name: "vol-" + claim, MountPath: "/" + claim})
	}
	p.Spec.Containers = []v1.Container{c}
	return p
}

// attach plays the attach room: it sets node.status.volumesAttached.
func (r *rig) attach(pvs ...string) {
	r.t.Helper()
	n, err := r.client.CoreV1().Nodes().Get(r.t.Context(), testNode, metav1.GetOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	n.Status.VolumesAttached = nil
	for _, pv := range pvs {
		n.Status.VolumesAttached = append(n.Status.VolumesAttached, v1.AttachedVolume{Name: fakeName(pv)})
	}
	if _, err := r.client.CoreV1().Nodes().UpdateStatus(r.t.Context(), n, metav1.UpdateOptions{}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) inUse() []string {
	n, err := r.client.CoreV1().Nodes().Get(context.Background(), testNode, metav1.GetOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	out := []string{}
	for _, name := range n.Status.VolumesInUse {
		_, pv, _ := strings.Cut(string(name), "^")
		out = append(out, pv)
	}
	slices.Sort(out)
	return out
}

// until waits for a condition; changes wake it.
func (r *rig) until(what string, cond func() bool) {
	r.t.Helper()
	deadline := time.After(15 * time.Second)
	for !cond() {
		select {
		case <-r.changes:
		case <-r.plugin.woken:
		case <-time.After(5 * time.Millisecond):
		case <-deadline:
			for _, uid := range r.manager.KnownPods() {
				r.t.Logf("pod %s: %+v", uid, r.manager.Status(uid))
			}
			r.t.Fatalf("timed out: %s\ncalls: %q\nholders: %+v", what, r.plugin.called(), r.manager.Holders())
		}
	}
}

func (r *rig) untilMounted(uid types.UID) {
	r.t.Helper()
	r.until("pod "+string(uid)+" mounted", func() bool { return r.manager.Status(uid).AllMounted })
}

func (r *rig) untilUnmounted(uid types.UID) {
	r.t.Helper()
	r.until("pod "+string(uid)+" unmounted", func() bool { return r.manager.Status(uid).AllUnmounted })
}

func (r *rig) expectCalls(want ...string) {
	r.t.Helper()
	if got := r.plugin.called(); !slices.Equal(got, want) {
		r.t.Errorf("calls\n got %q\nwant %q", got, want)
	}
}

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

// After a restart: what pods still want is mounted again as a repetition, the rest goes once the pods are complete, staged
// volumes without a pod too, and directories that tell nothing are cleaned.
func TestRestart(t *testing.T) {
	r := newRig(t, volumes(2))
	r.manager.PodsComplete()
	r.attach("pv-1", "pv-2")
	r.manager.SetPod(pod("pod-1", "claim-1"))
	r.manager.SetPod(pod("pod-2", "claim-2"))
	r.untilMounted("pod-1")
	r.untilMounted("pod-2")
	r.stop()

	for _, d := range []string{"pod-1/volumes/kubernetes.io~csi/pv-1", "pod-2/volumes/kubernetes.io~csi/pv-2", "pod-3/volumes/kubernetes.io~csi/broken-1", "pod-3/volumes/vendor~gone/x"} {
		if err := os.MkdirAll(filepath.Join(r.plugin.dir, "pods", d), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	r.plugin.stays["pv-9"] = true // staged, and no pod has it
	r.plugin.calls = nil
	r.start()
	r.manager.SetPod(pod("pod-1", "claim-1"))
	r.untilMounted("pod-1")
	r.expectCalls("stage pv-1 again", "publish pv-1 in pod-1 again")
	if got := r.inUse(); !slices.Contains(got, "pv-2") {
		t.Errorf("in use before the pods are complete: %q", got)
	}
	r.manager.PodsComplete()
	r.untilUnmounted("pod-2")
	r.untilUnmounted("pod-3")
	r.until("the report", func() bool { return slices.Equal(r.inUse(), []string{"pv-1"}) })
	if left := r.plugin.left(); !slices.Equal(left, []string{"pod-1/pv-1", "pv-1"}) {
		t.Errorf("left: %q", left)
	}
	if dirs := entries(podsDir(r.plugin.dir)); !slices.Equal(dirs, []string{"pod-1"}) {
		t.Errorf("pod directories: %q", dirs)
	}
}

// A pod whose claim can't be resolved yet after a restart keeps what is mounted.
func TestRestartHoldsUnresolved(t *testing.T) {
	objects := volumes(1)
	r := newRig(t, objects)
	r.stop()
	if err := os.MkdirAll(filepath.Join(r.plugin.dir, "pods/pod-1/volumes/kubernetes.io~csi/pv-1"), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := r.client.CoreV1().PersistentVolumeClaims("default").Delete(t.Context(), "claim-1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.manager.SetPod(pod("pod-1", "claim-1"))
	r.manager.PodsComplete()
	r.until("waiting", func() bool {
		s := r.manager.Status("pod-1")
		return len(s.Volumes) == 1 && s.Volumes[0].Waiting != ""
	})
	time.Sleep(50 * time.Millisecond) // nothing may happen: there is no event to wait for
	r.expectCalls()
	r.manager.ReleasePod("pod-1")
	r.untilUnmounted("pod-1")
	r.expectCalls("unpublish pv-1 in pod-1")
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
	release()
	if err := r.manager.Teardown(t.Context()); err != nil {
		t.Error(err)
	}
	if left := r.plugin.left(); len(left) != 0 || len(r.inUse()) != 0 {
		t.Errorf("left: %q, in use %q", left, r.inUse())
	}
}

// The node's object is made again (its registration was deleted): the report is written again.
func TestNodeMadeAgain(t *testing.T) {
	r := newRig(t, volumes(1))
	r.attach("pv-1")
	r.manager.SetPod(pod("pod-1", "claim-1"))
	r.untilMounted("pod-1")
	nodes := r.client.CoreV1().Nodes()
	if err := nodes.Delete(t.Context(), testNode, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := nodes.Create(t.Context(), &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: testNode, UID: "again"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.until("the report", func() bool { return slices.Equal(r.inUse(), []string{"pv-1"}) })
}
