package mount

import (
	"context"
	"fmt"
	"log/slog"
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
