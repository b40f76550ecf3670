package attach

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"

	"berth.io/berth/internal/plugin"
)

// backend is an attacher whose answers the test gives. It logs its calls, with the node's status as it is then.
type backend struct {
	api *fake.Clientset

	mu      sync.Mutex
	on      map[key]bool     // attached
	pending bool             // Attach and Detach begin, and answer later
	fails   map[string]error // "attach" or "detach"
	log     []string
	list    []plugin.AttachedVolume
}

func (b *backend) Name() string                            { return "fake" }
func (b *backend) Supports(v *plugin.Volume) bool          { return v.PV != nil && v.PV.Spec.CSI != nil }
func (b *backend) Attachable(*plugin.Volume) (bool, error) { return true, nil }
func (b *backend) UniqueName(v *plugin.Volume) (v1.UniqueVolumeName, error) {
	return v1.UniqueVolumeName("fake/" + v.PV.Name), nil
}

func (b *backend) note(act string, volume v1.UniqueVolumeName, node types.NodeName) {
	state := ""
	if n, err := b.api.CoreV1().Nodes().Get(context.Background(), string(node), metav1.GetOptions{}); err == nil {
		for _, a := range n.Status.VolumesAttached {
			if a.Name == volume {
				state = " while reported"
			}
		}
	}
	b.log = append(b.log, fmt.Sprintf("%s %s %s%s", act, strings.TrimPrefix(string(volume), "fake/"), node, state))
}

func (b *backend) Attach(_ context.Context, v *plugin.Volume, node types.NodeName) (plugin.Attachment, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	name, _ := b.UniqueName(v)
	k := key{name, node}
	if b.on[k] {
		return plugin.Attachment{}, nil
	}
	b.note("attach", name, node)
	if err := b.fails["attach"]; err != nil {
		return plugin.Attachment{}, err
	}
	if b.pending {
		return plugin.Attachment{Pending: "the backend"}, nil
	}
	b.on[k] = true
	return plugin.Attachment{DevicePath: "/dev/x"}, nil
}

func (b *backend) Detach(_ context.Context, a plugin.AttachedVolume, node types.NodeName) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	k := key{a.Name, node}
	b.note("detach", a.Name, node)
	if err := b.fails["detach"]; err != nil {
		return false, err
	}
	if b.pending && b.on[k] {
		return false, nil
	}
	delete(b.on, k)
	return true, nil
}

func (b *backend) Attached(context.Context) ([]plugin.AttachedVolume, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.list, nil
}

func (b *backend) calls() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.log)
}

func (b *backend) set(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

type world struct {
	*testing.T
	api     *fake.Clientset
	backend *backend
	c       *Controller
	events  *record.FakeRecorder
	options Options
}

func start(t *testing.T, change func(*world), objects ...runtime.Object) *world {
	t.Helper()
	api := fake.NewClientset(objects...)
	f := informers.NewSharedInformerFactory(api, 0)
	w := &world{T: t, api: api, backend: &backend{api: api, on: map[key]bool{}, fails: map[string]error{}}, events: record.NewFakeRecorder(1000)}
	w.options = Options{Client: api, Informers: f, Plugins: plugin.NewRegistry(w.backend), Events: w.events,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	if change != nil {
		change(w)
	}
	var err error
	if w.c, err = New(w.options); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	f.Start(ctx.Done())
	// The fake API loses what happens between a list and its watch.
	f.WaitForCacheSync(ctx.Done())
	done := make(chan struct{})
	go func() { defer close(done); _ = w.c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			t.Error("Run did not end")
		}
	})
	return w
}

func (w *world) eventually(what string, fact func() bool) {
	w.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if fact() {
			return
		}
	}
	w.Fatalf("never: %s; calls %v; holders %+v", what, w.backend.calls(), w.c.Holders())
}

// quiet waits until nothing is queued, for facts that must not come true.
func (w *world) quiet() { time.Sleep(60 * time.Millisecond) }

func (w *world) reported(node string) (names []string) {
	n, err := w.api.CoreV1().Nodes().Get(context.Background(), node, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	for _, a := range n.Status.VolumesAttached {
		names = append(names, strings.TrimPrefix(string(a.Name), "fake/"))
	}
	return names
}

func (w *world) event(part string) bool {
	for {
		select {
		case e := <-w.events.Events:
			if strings.Contains(e, part) {
				return true
			}
		default:
			return false
		}
	}
}

func (w *world) nodeWrites() (n int) {
	for _, a := range w.api.Actions() {
		if p, ok := a.(clienttesting.PatchAction); ok && p.GetResource().Resource == "nodes" {
			n++
		}
	}
	return n
}

func (w *world) changeNode(name string, f func(*v1.Node)) {
	w.Helper()
	n, err := w.api.CoreV1().Nodes().Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		w.Fatal(err)
	}
	f(n)
	if _, err := w.api.CoreV1().Nodes().Update(context.Background(), n, metav1.UpdateOptions{}); err != nil {
		w.Fatal(err)
	}
}

func (w *world) deletePod(ns, name string) {
	w.Helper()
	if err := w.api.CoreV1().Pods(ns).Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
		w.Fatal(err)
	}
}

func uses(volumes ...string) func(*v1.Node) {
	return func(n *v1.Node) {
		n.Status.VolumesInUse = nil
		for _, v := range volumes {
			n.Status.VolumesInUse = append(n.Status.VolumesInUse, v1.UniqueVolumeName("fake/"+v))
		}
	}
}

func has(volumes ...string) func(*v1.Node) {
	return func(n *v1.Node) {
		for _, v := range volumes {
			n.Status.VolumesAttached = append(n.Status.VolumesAttached, v1.AttachedVolume{Name: v1.UniqueVolumeName("fake/" + v)})
		}
	}
}

// ofKubelet makes it a kubelet's node; one that took over a node of ours leaves our annotation on it.
func ofKubelet(n *v1.Node) { n.Status.NodeInfo.KubeletVersion = "v1.36.3" }

func notReady(n *v1.Node) { n.Status.Conditions[0].Status = v1.ConditionUnknown }

func machine(name string, change ...func(*v1.Node)) *v1.Node {
	n := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{annManaged: "true", annKeepsUse: "v1.36.3+berth"}},
		Status: v1.NodeStatus{Conditions: []v1.NodeCondition{{Type: v1.NodeReady, Status: v1.ConditionTrue}}, NodeInfo: v1.NodeSystemInfo{KubeletVersion: "v1.36.3+berth"}}}
	for _, f := range change {
		f(n)
	}
	return n
}

// bound is a claim and its volume of the same name, bound to each other.
func bound(ns, name string, mode v1.PersistentVolumeAccessMode) []runtime.Object {
	return []runtime.Object{
		&v1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, UID: types.UID("c-" + name)},
			Spec: v1.PersistentVolumeClaimSpec{VolumeName: name}, Status: v1.PersistentVolumeClaimStatus{Phase: v1.ClaimBound}},
		&v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: v1.PersistentVolumeSpec{AccessModes: []v1.PersistentVolumeAccessMode{mode},
				ClaimRef:               &v1.ObjectReference{Namespace: ns, Name: name, UID: types.UID("c-" + name)},
				PersistentVolumeSource: v1.PersistentVolumeSource{CSI: &v1.CSIPersistentVolumeSource{Driver: "d", VolumeHandle: name}}}},
	}
}

func user(ns, name, node string, claims ...string) *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, UID: types.UID("p-" + ns + "-" + name)}, Spec: v1.PodSpec{NodeName: node}}
	for _, c := range claims {
		p.Spec.Volumes = append(p.Spec.Volumes, v1.Volume{Name: c, VolumeSource: v1.VolumeSource{
			PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: c}}})
	}
	return p
}

func attachmentOf(pv, node string) *storagev1.VolumeAttachment {
	return &storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: pv + "-" + node},
		Spec: storagev1.VolumeAttachmentSpec{Attacher: "d", NodeName: node, Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: &pv}}}
}
