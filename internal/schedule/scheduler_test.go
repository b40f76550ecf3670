package schedule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	corev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	k8stesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"
	storagehelpers "k8s.io/component-helpers/storage/volume"
)

// bench is a scheduler against a fake API that binds pods as the real one does (the pod's nodeName is set).
type bench struct {
	*testing.T
	client *fake.Clientset
	events *record.FakeRecorder
	s      *Scheduler
}

// react adds a reaction while the scheduler runs, under the fake's own lock, which adding does not take.
func (b *bench) react(verb, resource string, f k8stesting.ReactionFunc) {
	b.client.Lock()
	defer b.client.Unlock()
	b.client.PrependReactor(verb, resource, f)
}

// versions has the fake API number each write, as the real one does: whether a write's answer is newer than what the
// watch has brought is decided by that number.
func (b *bench) versions() {
	var last atomic.Int64
	next := func() string { return strconv.FormatInt(last.Add(1)+1, 10) }
	b.client.PrependReactor("*", "*", func(a k8stesting.Action) (bool, runtime.Object, error) {
		switch a := a.(type) {
		case k8stesting.CreateActionImpl:
			setVersion(b.T, a.Object, next())
		case k8stesting.UpdateActionImpl:
			setVersion(b.T, a.Object, next())
		case k8stesting.PatchActionImpl:
			var body map[string]any
			if err := json.Unmarshal(a.Patch, &body); err != nil {
				return true, nil, err
			}
			metadata, _ := body["metadata"].(map[string]any)
			if metadata == nil {
				metadata = map[string]any{}
				body["metadata"] = metadata
			}
			metadata["resourceVersion"] = next()
			var err error
			if a.Patch, err = json.Marshal(body); err != nil {
				return true, nil, err
			}
			return k8stesting.ObjectReaction(b.client.Tracker())(a)
		}
		return false, nil, nil
	})
}

func setVersion(t *testing.T, o runtime.Object, version string) {
	m, err := meta.Accessor(o)
	if err != nil {
		t.Error(err)
		return
	}
	m.SetResourceVersion(version)
}

func start(t *testing.T, o Options, objects ...runtime.Object) *bench {
	for _, o := range objects {
		setVersion(t, o, "1")
	}
	b := &bench{T: t, client: fake.NewClientset(objects...), events: record.NewFakeRecorder(1000)}
	b.versions()
	b.client.PrependReactor("create", "pods", func(a k8stesting.Action) (bool, runtime.Object, error) {
		if a.GetSubresource() != "binding" {
			return false, nil, nil
		}
		binding := a.(k8stesting.CreateAction).GetObject().(*v1.Binding)
		gvr := schema.GroupVersionResource{Version: "v1", Resource: "pods"}
		o, err := b.client.Tracker().Get(gvr, a.GetNamespace(), binding.Name)
		if err != nil {
			return true, nil, err
		}
		pod := o.(*v1.Pod).DeepCopy()
		pod.Spec.NodeName = binding.Target.Name
		return true, binding, b.client.Tracker().Update(gvr, pod, a.GetNamespace())
	})
	if o.Client == nil {
		o.Client = b.client
	} else if c, ok := o.Client.(lateClient); ok {
		c.Interface = b.client
		o.Client = c
	}
	o.Events = b.events
	o.Informers = informers.NewSharedInformerFactory(b.client, 0)
	if o.ReportDelay == 0 {
		o.ReportDelay = time.Millisecond
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	b.s = s
	ctx, cancel := context.WithCancel(t.Context())
	o.Informers.Start(ctx.Done())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		o.Informers.Shutdown()
	})
	o.Informers.WaitForCacheSync(ctx.Done())
	return b
}

func (b *bench) eventually(what string, ok func() bool) {
	b.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	waits, _ := b.s.Waiting(b.Context())
	b.Fatalf("never: %s; waiting: %v", what, waits)
}

func (b *bench) pod(name string) *v1.Pod {
	p, err := b.client.CoreV1().Pods("ns").Get(b.Context(), name, metav1.GetOptions{})
	if err != nil {
		b.Fatal(err)
	}
	return p
}

func (b *bench) claim(name string) *v1.PersistentVolumeClaim {
	c, err := b.client.CoreV1().PersistentVolumeClaims("ns").Get(b.Context(), name, metav1.GetOptions{})
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// bind does what the provisioner and the PV controller do.
func (b *bench) bind(claim, pv string) {
	b.Helper()
	c := b.claim(claim)
	volumes := b.client.CoreV1().PersistentVolumes()
	v, err := volumes.Get(b.Context(), pv, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		v, err = volumes.Create(b.Context(), testVolume(pv, "late", "1Gi", refTo(claim)), metav1.CreateOptions{})
	}
	if err != nil {
		b.Fatal(err)
	}
	v.Status.Phase = v1.VolumeBound
	if _, err := volumes.UpdateStatus(b.Context(), v, metav1.UpdateOptions{}); err != nil {
		b.Fatal(err)
	}
	boundTo(pv)(c)
	if _, err := b.client.CoreV1().PersistentVolumeClaims("ns").Update(b.Context(), c, metav1.UpdateOptions{}); err != nil {
		b.Fatal(err)
	}
}

func (b *bench) create(pod *v1.Pod) {
	b.Helper()
	if _, err := b.client.CoreV1().Pods("ns").Create(b.Context(), pod, metav1.CreateOptions{}); err != nil {
		b.Fatal(err)
	}
}

func (b *bench) placed(name string) func() bool {
	return func() bool { return b.pod(name).Spec.NodeName != "" }
}

func (b *bench) selected(claim, node string) func() bool {
	return func() bool { return b.claim(claim).Annotations[storagehelpers.AnnSelectedNode] == node }
}

func (b *bench) condition(name string) *v1.PodCondition {
	for _, c := range b.pod(name).Status.Conditions {
		if c.Type == v1.PodScheduled {
			return &c
		}
	}
	return &v1.PodCondition{}
}

func (b *bench) event() string {
	select {
	case e := <-b.events.Events:
		return e
	case <-time.After(10 * time.Second):
		return "no event"
	}
}

// TestProvisionThenBind: the claim gets its node; when it is bound the pod gets the same.
func TestProvisionThenBind(t *testing.T) {
	b := start(t, Options{}, testNode("n1"), testClass("late", late, "d.csi"), testClaim("c", "late", "1Gi"), testPod("p", "c"))
	b.eventually("claim has its node", b.selected("c", "n1"))
	if b.pod("p").Spec.NodeName != "" {
		t.Fatal("the pod was bound before its claim")
	}
	b.bind("c", "pv")
	b.eventually("pod has its node", b.placed("p"))
	if got, want := b.event(), "Normal Scheduled Successfully assigned ns/p to n1"; got != want {
		t.Errorf("event %q, want %q", got, want)
	}
}

// TestPrebindThenBind: the volume chosen for the claim is reserved for it, marked as the controller's choice.
func TestPrebindThenBind(t *testing.T) {
	b := start(t, Options{}, testNode("n1"), testClass("static", late, "kubernetes.io/no-provisioner"),
		testClaim("c", "static", "1Gi"), testVolume("pv", "static", "1Gi"), testPod("p", "c"))
	b.eventually("volume is reserved", func() bool {
		pv, _ := b.client.CoreV1().PersistentVolumes().Get(t.Context(), "pv", metav1.GetOptions{})
		return pv.Spec.ClaimRef != nil && pv.Spec.ClaimRef.UID == "c" && pv.Annotations[storagehelpers.AnnBoundByController] == "yes"
	})
	b.bind("c", "pv")
	b.eventually("pod has its node", b.placed("p"))
}

// TestManyAtOnce: 200 pods with a claim each, and their claims, all arrive together; each volume is given once.
func TestManyAtOnce(t *testing.T) {
	const n = 200
	objects := []runtime.Object{testNode("n1"), testClass("static", late, "kubernetes.io/no-provisioner")}
	for i := range n {
		objects = append(objects, testVolume(fmt.Sprintf("pv%d", i), "static", "1Gi"))
	}
	b := start(t, Options{}, objects...)
	for i := range n {
		b.create(testPod(fmt.Sprintf("p%d", i), fmt.Sprintf("c%d", i)))
		if _, err := b.client.CoreV1().PersistentVolumeClaims("ns").Create(t.Context(), testClaim(fmt.Sprintf("c%d", i), "static", "1Gi"), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	given := map[string]string{}
	b.eventually("all volumes are reserved", func() bool {
		list, _ := b.client.CoreV1().PersistentVolumes().List(t.Context(), metav1.ListOptions{})
		clear(given)
		for _, pv := range list.Items {
			if r := pv.Spec.ClaimRef; r != nil {
				given[r.Name] = pv.Name
			}
		}
		return len(given) == n
	})
	for claim, pv := range given {
		b.bind(claim, pv)
	}
	b.eventually("all pods have their node", func() bool {
		list, _ := b.client.CoreV1().Pods("ns").List(t.Context(), metav1.ListOptions{})
		for _, p := range list.Items {
			if p.Spec.NodeName == "" {
				return false
			}
		}
		return true
	})
}

// TestRefusalIsToldOnce, and the claim's arrival wakes the pod.
func TestRefusalIsToldOnce(t *testing.T) {
	b := start(t, Options{}, testNode("n1"), testClass("late", late, "d.csi"), testPod("p", "c"))
	want := `0/1 nodes are available: persistentvolumeclaim "c" not found.`
	b.eventually("condition says why", func() bool {
		c := b.condition("p")
		return c.Status == v1.ConditionFalse && c.Reason == v1.PodReasonUnschedulable && c.Message == want
	})
	if got := b.event(); got != "Warning FailedScheduling "+want {
		t.Errorf("event %q", got)
	}
	// Something that does not help: no second event.
	if _, err := b.client.CoreV1().PersistentVolumes().Create(t.Context(), testVolume("pv", "late", "1Gi"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.client.CoreV1().PersistentVolumeClaims("ns").Create(t.Context(), testClaim("c", "other", "1Gi"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := b.event(); !strings.Contains(got, reasonUnbound) {
		t.Errorf("event %q", got)
	}
	b.bind("c", "pv2")
	b.eventually("pod has its node", b.placed("p"))
}

// TestRefusalThatPassesIsNotTold: the claim comes a moment after the pod; nothing is written about it.
func TestRefusalThatPassesIsNotTold(t *testing.T) {
	b := start(t, Options{ReportDelay: time.Minute}, testNode("n1"), testClass("late", late, "d.csi"), testPod("p", "c"))
	b.eventually("pod is refused", func() bool {
		w, _ := b.s.Waiting(t.Context())
		return len(w) == 1 && w[0].Phase == "refused" && strings.Contains(w[0].Reason, "not found")
	})
	if _, err := b.client.CoreV1().PersistentVolumeClaims("ns").Create(t.Context(), testClaim("c", "late", "1Gi"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	b.eventually("claim has its node", b.selected("c", "n1"))
	for _, a := range b.client.Actions() {
		if a.GetSubresource() == "status" {
			t.Error("a refusal was told that had passed")
		}
	}
}

// TestNodeWakes: what the refusal was about has to change, and does.
func TestNodeWakes(t *testing.T) {
	b := start(t, Options{}, testNode("n1", func(n *v1.Node) { n.Spec.Unschedulable = true }), testPod("p"))
	b.eventually("pod is refused", func() bool { return strings.Contains(b.condition("p").Message, reasonUnschedulable) })
	if _, err := b.client.CoreV1().Nodes().Update(t.Context(), testNode("n1"), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	b.eventually("pod has its node", b.placed("p"))
}

// TestNoRoomIsSaid: whoever keeps the capacities hears of a pod that waits for room, and not of one that waits for its claim.
func TestNoRoomIsSaid(t *testing.T) {
	var said atomic.Int32
	b := start(t, Options{OnNoRoom: func() { said.Add(1) }}, testNode("n1"), testClass("late", late, "d.csi"), testClaim("c", "late", "5Gi"), capacityDriver(),
		testCapacity("k1", "late", "4Gi", "n1"), testPod("q", "none"))
	b.eventually("q is refused", func() bool { return b.condition("q").Status == v1.ConditionFalse })
	if n := said.Load(); n != 0 {
		t.Errorf("said %d times for a pod without its claim", n)
	}
	b.create(testPod("p", "c"))
	b.eventually("it is said", func() bool { return said.Load() > 0 })
}

// TestReadWriteOncePodPassesOn: the next pod gets the claim when the first is gone.
func TestReadWriteOncePodPassesOn(t *testing.T) {
	b := start(t, Options{}, testNode("n1"), testClaim("c", "late", "1Gi", boundTo("pv"), oncePod), testVolume("pv", "late", "1Gi", refTo("c")), testPod("p1", "c"))
	b.eventually("first pod has its node", b.placed("p1"))
	b.create(testPod("p2", "c"))
	b.eventually("second pod is refused", func() bool { return strings.Contains(b.condition("p2").Message, reasonReadWriteOncePod) })
	if err := b.client.CoreV1().Pods("ns").Delete(t.Context(), "p1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	b.eventually("second pod has its node", b.placed("p2"))
}

// TestProvisioningFails: the provisioner takes the annotation away; the pod is decided again, here for another node.
func TestProvisioningFails(t *testing.T) {
	b := start(t, Options{}, testNode("n1"), testClass("late", late, "d.csi"), testClaim("c", "late", "1Gi"), testPod("p", "c"))
	b.eventually("claim has its node", b.selected("c", "n1"))
	if _, err := b.client.CoreV1().Nodes().Update(t.Context(), testNode("n1", func(n *v1.Node) { n.Spec.Unschedulable = true }), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.client.CoreV1().Nodes().Create(t.Context(), testNode("n2"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c := b.claim("c")
	delete(c.Annotations, storagehelpers.AnnSelectedNode)
	if _, err := b.client.CoreV1().PersistentVolumeClaims("ns").Update(t.Context(), c, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	b.eventually("condition says why", func() bool {
		c := b.condition("p")
		return c.Reason == "SchedulerError" && c.Message == `binding volumes: provisioning failed for PVC "c"`
	})
	b.eventually("claim has the other node", b.selected("c", "n2"))
}

// TestConflictIsTriedAgain: the API server refuses the first writes.
func TestConflictIsTriedAgain(t *testing.T) {
	b := start(t, Options{}, testNode("n1"), testClass("static", late, "kubernetes.io/no-provisioner"))
	var refusals atomic.Int32
	b.react("patch", "persistentvolumes", func(k8stesting.Action) (bool, runtime.Object, error) {
		if refusals.Add(1) <= 3 {
			return true, nil, apierrors.NewConflict(schema.GroupResource{Resource: "persistentvolumes"}, "pv", errors.New("changed"))
		}
		return false, nil, nil
	})
	for _, o := range []*v1.PersistentVolume{testVolume("pv", "static", "1Gi")} {
		if _, err := b.client.CoreV1().PersistentVolumes().Create(t.Context(), o, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.client.CoreV1().PersistentVolumeClaims("ns").Create(t.Context(), testClaim("c", "static", "1Gi"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	b.create(testPod("p1", "c"))
	b.create(testPod("p2", "c")) // relies on the first one's decision, and must not be lost with it
	b.eventually("volume is reserved", func() bool {
		pv, _ := b.client.CoreV1().PersistentVolumes().Get(t.Context(), "pv", metav1.GetOptions{})
		return pv.Spec.ClaimRef != nil
	})
	b.bind("c", "pv")
	b.eventually("first pod has its node", b.placed("p1"))
	b.eventually("second pod has its node", b.placed("p2"))
}

// TestAnswerComesLate: all that follows from a write is seen before the write's own answer. The pod that relies on the
// other's decision is woken by that answer, as no event comes any more.
func TestAnswerComesLate(t *testing.T) {
	answer := make(chan struct{})
	b := start(t, Options{Client: lateClient{answer: answer}}, testNode("n1"), testClass("static", late, "kubernetes.io/no-provisioner"),
		testClaim("c", "static", "1Gi"), testVolume("pv", "static", "1Gi"))
	b.create(testPod("p1", "c"))
	b.create(testPod("p2", "c"))
	b.eventually("volume is reserved", func() bool {
		pv, _ := b.client.CoreV1().PersistentVolumes().Get(t.Context(), "pv", metav1.GetOptions{})
		return pv.Spec.ClaimRef != nil
	})
	b.bind("c", "pv")
	b.eventually("the scheduler has seen all", func() bool {
		waits, _ := b.s.Waiting(t.Context())
		seen := make(chan bool)
		b.s.inbox.put(func() {
			seen <- fullyBound(b.s.cluster.claims["ns/c"]) && b.s.cluster.volumes["pv"].Status.Phase == v1.VolumeBound
		})
		return <-seen && len(waits) == 2
	})
	close(answer)
	b.eventually("first pod has its node", b.placed("p1"))
	b.eventually("second pod has its node", b.placed("p2"))
}

// lateClient keeps the answers to patches of volumes back until answer is closed.
type lateClient struct {
	kubernetes.Interface
	answer chan struct{}
}

type lateCore struct {
	corev1.CoreV1Interface
	answer chan struct{}
}

type lateVolumes struct {
	corev1.PersistentVolumeInterface
	answer chan struct{}
}

func (c lateClient) CoreV1() corev1.CoreV1Interface { return lateCore{c.Interface.CoreV1(), c.answer} }

func (c lateCore) PersistentVolumes() corev1.PersistentVolumeInterface {
	return lateVolumes{c.CoreV1Interface.PersistentVolumes(), c.answer}
}

func (v lateVolumes) Patch(ctx context.Context, name string, pt types.PatchType, data []byte, o metav1.PatchOptions, sub ...string) (*v1.PersistentVolume, error) {
	pv, err := v.PersistentVolumeInterface.Patch(ctx, name, pt, data, o, sub...)
	select {
	case <-v.answer:
	case <-ctx.Done():
	}
	return pv, err
}

// TestGivesUp: claims that are never bound; the pod says so and is decided again.
func TestGivesUp(t *testing.T) {
	b := start(t, Options{BindTimeout: 20 * time.Millisecond}, testNode("n1"), testClass("late", late, "d.csi"), testClaim("c", "late", "1Gi"), testPod("p", "c"))
	b.eventually("condition says why", func() bool {
		return b.condition("p").Message == `binding volumes: context deadline exceeded: after 20ms still not bound: "ns/c"`
	})
	b.bind("c", "pv")
	b.eventually("pod has its node", b.placed("p"))
}

// TestDeletedPodLeavesNothing: a pod deleted while it waits gives back the volume that was chosen but not written.
func TestDeletedPodLeavesNothing(t *testing.T) {
	b := start(t, Options{}, testNode("n1"), testClass("static", late, "kubernetes.io/no-provisioner"),
		testClaim("c1", "static", "1Gi"), testClaim("c2", "static", "1Gi"), testVolume("pv", "static", "1Gi"))
	hold := make(chan struct{})
	var once atomic.Bool
	b.react("patch", "persistentvolumes", func(k8stesting.Action) (bool, runtime.Object, error) {
		if once.CompareAndSwap(false, true) {
			<-hold
			return true, nil, errors.New("the connection broke")
		}
		return false, nil, nil
	})
	b.create(testPod("p1", "c1"))
	b.eventually("first pod's decision is being written", once.Load)
	if _, err := b.client.Tracker().Get(schema.GroupVersionResource{Version: "v1", Resource: "pods"}, "ns", "p1"); err != nil {
		t.Fatal(err)
	}
	b.client.Tracker().Delete(schema.GroupVersionResource{Version: "v1", Resource: "pods"}, "ns", "p1")
	close(hold)
	b.create(testPod("p2", "c2"))
	b.eventually("the volume goes to the second pod", func() bool {
		pv, _ := b.client.CoreV1().PersistentVolumes().Get(t.Context(), "pv", metav1.GetOptions{})
		return pv.Spec.ClaimRef != nil && pv.Spec.ClaimRef.Name == "c2"
	})
}

// TestOtherPodsAreLeftAlone: gated pods, pods of another scheduler, pods being deleted, pods that have ended.
func TestOtherPodsAreLeftAlone(t *testing.T) {
	gated := testPod("gated")
	gated.Spec.SchedulingGates = []v1.PodSchedulingGate{{Name: "wait"}}
	foreign := testPod("foreign")
	foreign.Spec.SchedulerName = "volcano"
	ended := testPod("ended")
	ended.Status.Phase = v1.PodFailed
	ours := testPod("ours")
	ours.Spec.SchedulerName = SchedulerName
	b := start(t, Options{}, testNode("n1"), gated, foreign, ended, ours)
	b.eventually("our pod has its node", b.placed("ours"))
	for _, name := range []string{"gated", "foreign", "ended"} {
		if b.placed(name)() {
			t.Errorf("%s was placed", name)
		}
	}
	gated = b.pod("gated")
	gated.Spec.SchedulingGates = nil
	if _, err := b.client.CoreV1().Pods("ns").Update(t.Context(), gated, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	b.eventually("the gate is open", b.placed("gated"))
}
