package node

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"

	"berth.io/berth/internal/mount"
)

// fakeMounts is a mount room whose volumes the test mounts and unmounts.
type fakeMounts struct {
	mu       sync.Mutex
	set      map[types.UID]*v1.Pod
	sets     int
	released map[types.UID]int
	complete bool
	mounted  map[types.UID]bool
	held     map[types.UID]bool // unmount does not happen
	waiting  string
	inUse    []v1.UniqueVolumeName
	onChange func(types.UID)
}

func newFakeMounts() *fakeMounts {
	return &fakeMounts{set: map[types.UID]*v1.Pod{}, released: map[types.UID]int{}, mounted: map[types.UID]bool{}, held: map[types.UID]bool{}}
}

func (f *fakeMounts) SetPod(pod *v1.Pod) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.set[pod.UID] = pod
	f.sets++
}

// ReleasePod answers with a change, also for pods that it does not know, as the real one.
func (f *fakeMounts) ReleasePod(uid types.UID) {
	f.mu.Lock()
	f.released[uid]++
	held := f.held[uid]
	if !held {
		delete(f.set, uid)
		delete(f.mounted, uid)
	}
	f.mu.Unlock()
	if !held {
		f.onChange(uid)
	}
}

func (f *fakeMounts) PodsComplete() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.complete = true
}

func (f *fakeMounts) isComplete() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.complete
}

func (f *fakeMounts) Status(uid types.UID) mount.PodStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	pod := f.set[uid]
	if pod == nil {
		return mount.PodStatus{AllUnmounted: true}
	}
	s := mount.PodStatus{AllMounted: f.mounted[uid] || len(pod.Spec.Volumes) == 0}
	for _, v := range pod.Spec.Volumes {
		vs := mount.VolumeStatus{Name: v.Name, Mounted: s.AllMounted, Waiting: f.waiting}
		if vs.Mounted {
			vs.Path = "/v/" + v.Name
		}
		s.Volumes = append(s.Volumes, vs)
	}
	return s
}

func (f *fakeMounts) Refresh(types.UID, string) {}

func (f *fakeMounts) VolumesInUse() []v1.UniqueVolumeName {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.inUse
}

func (f *fakeMounts) mount(uid types.UID) {
	f.mu.Lock()
	f.mounted[uid] = true
	f.mu.Unlock()
	f.onChange(uid)
}

func (f *fakeMounts) letGo(uid types.UID) {
	f.mu.Lock()
	f.held[uid] = false
	delete(f.set, uid)
	f.mu.Unlock()
	f.onChange(uid)
}

func (f *fakeMounts) releases(uid types.UID) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.released[uid]
}

// fakeDrivers is the table of drivers.
type fakeDrivers struct {
	mu    sync.Mutex
	table map[string]string
}

func (f *fakeDrivers) Register(name, endpoint string, _ ...string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.table[name] = endpoint
	return nil
}

func (f *fakeDrivers) Unregister(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.table, name)
}

func (f *fakeDrivers) names() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for name := range f.table {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// rig is an agent that runs against a fake API.
type rig struct {
	t       *testing.T
	agent   *Agent
	client  *fake.Clientset
	mounts  *fakeMounts
	drivers *fakeDrivers
	events  *record.FakeRecorder
	dir     string
}

func start(t *testing.T, objects ...runtime.Object) *rig {
	t.Helper()
	// Socket paths are at most 107 bytes long, and t.TempDir holds the test's name.
	dir, err := os.MkdirTemp("", "node")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{
		t: t, client: fake.NewClientset(objects...), mounts: newFakeMounts(), dir: dir,
		drivers: &fakeDrivers{table: map[string]string{}}, events: record.NewFakeRecorder(1000),
	}
	factory := informers.NewSharedInformerFactory(r.client, 0)
	r.agent, err = New(Options{
		Client: r.client, Informers: factory, Mount: r.mounts, Drivers: r.drivers,
		DataDir: dir, Node: "Node-1", Events: r.events, Version: "test",
	})
	if err != nil {
		t.Fatal(err)
	}
	r.mounts.onChange = r.agent.PodChanged
	ctx, cancel := context.WithCancel(context.Background())
	factory.Start(ctx.Done())
	done := make(chan error)
	go func() { done <- r.agent.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		factory.Shutdown()
		os.RemoveAll(dir)
	})
	return r
}

// eventually waits until check returns "".
func (r *rig) eventually(check func() string) {
	r.t.Helper()
	var last string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if last = check(); last == "" {
			return
		}
	}
	r.t.Fatal(last)
}

func (r *rig) create(pod *v1.Pod) *v1.Pod {
	r.t.Helper()
	pod, err := r.client.CoreV1().Pods(pod.Namespace).Create(r.t.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	return pod
}

func (r *rig) pod(name string) *v1.Pod {
	pod, err := r.client.CoreV1().Pods("ns").Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	return pod
}

func testPod(name string, edit ...func(*v1.Pod)) *v1.Pod {
	pod := &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid-" + name), ResourceVersion: "1"},
		Spec: v1.PodSpec{
			NodeName: "node-1", RestartPolicy: v1.RestartPolicyAlways,
			Containers: []v1.Container{{Name: "c", Image: "img"}},
			Volumes:    []v1.Volume{{Name: "data"}},
		},
	}
	for _, e := range edit {
		e(pod)
	}
	return pod
}

// phaseIs checks one pod's phase.
func (r *rig) phaseIs(name string, want v1.PodPhase) func() string {
	return func() string {
		pod := r.pod(name)
		if pod == nil || pod.Status.Phase != want {
			return fmt.Sprintf("pod %s is %+v, want phase %s", name, pod, want)
		}
		return ""
	}
}
