package volume

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	snapfake "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned/fake"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

const ns = "docker"

// node is an API in which a holder pod is ready, or gone, as soon as it is asked for: the flow has tests of its own.
type node struct {
	*fake.Clientset
	service *Service
	stuck   bool // nothing gets ready
}

func newNode(t *testing.T) *node {
	t.Helper()
	class := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "berth-block",
		Annotations: map[string]string{"storageclass.kubernetes.io/is-default-class": "true"}}, Provisioner: blockDriver}
	n := &node{Clientset: fake.NewClientset(class,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "default"}})}
	n.PrependReactor("create", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
		p := a.(clienttesting.CreateAction).GetObject().(*corev1.Pod)
		p.UID = uuid.NewUUID()
		if !n.stuck {
			p.Annotations[pathsAnnotation] = `{"data":"/pods/` + p.Name + `"}`
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		}
		return false, nil, nil
	})
	n.PrependWatchReactor("pods", func(a clienttesting.Action) (bool, watch.Interface, error) {
		// The fake forgets what happened between a write and the watch; a real one begins with the version asked for.
		name, _ := a.(clienttesting.WatchAction).GetWatchRestrictions().Fields.RequiresExactMatch("metadata.name")
		_, err := n.Tracker().Get(corev1.SchemeGroupVersion.WithResource("pods"), ns, name)
		if !apierrors.IsNotFound(err) {
			return false, nil, nil
		}
		w := watch.NewFakeWithChanSize(1, false)
		w.Delete(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}})
		return true, w, nil
	})
	//lint:ignore SA1019 NewClientset is not generated for snapshots
	n.service = New(Options{Client: n.Clientset, Snapshots: snapfake.NewSimpleClientset(), Boot: "now",
		Problem: func(context.Context, string, string) string { return "the pool is full" }})
	return n
}

func (n *node) create(t *testing.T, name string) {
	t.Helper()
	if err := n.service.Create(t.Context(), ns, Request{Name: name}); err != nil {
		t.Fatal(err)
	}
}

func (n *node) callers(t *testing.T, name string) []Caller {
	t.Helper()
	p, err := n.CoreV1().Pods(ns).Get(t.Context(), ClaimName(name), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return callersOf(p)
}

func engine(id string) Caller { return Caller{By: Engine, ID: id} }

// Two containers mount one volume, one of them twice, as after a restart of the engine. The pod goes with the last.
func TestCallersCountOnce(t *testing.T) {
	n := newNode(t)
	n.create(t, "My_Data")
	for _, id := range []string{"a", "b", "a"} {
		path, err := n.service.Hold(t.Context(), ns, "My_Data", engine(id))
		if err != nil || path != "/pods/"+ClaimName("My_Data") {
			t.Fatalf("%s: %q %v", id, path, err)
		}
	}
	if got := n.callers(t, "My_Data"); len(got) != 2 {
		t.Fatalf("callers %v", got)
	}
	for i, id := range []string{"nobody", "b", "b", "a", "a"} {
		if err := n.service.Release(t.Context(), ns, "My_Data", engine(id)); err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		if got, want := len(n.callers(t, "My_Data")), []int{2, 1, 1, 0, 0}[i]; got != want {
			t.Errorf("after %s: %d callers, want %d", id, got, want)
		}
	}
}

// A volume that somebody has is not removed, and the refusal says who.
func TestRemoveInUse(t *testing.T) {
	n := newNode(t)
	n.create(t, "data")
	if _, err := n.service.Hold(t.Context(), ns, "data", engine("0123456789abcdef")); err != nil {
		t.Fatal(err)
	}
	err := n.service.Remove(t.Context(), ns, "data")
	if err == nil || !strings.Contains(err.Error(), "in use by a container (mount 0123456789ab)") {
		t.Errorf("got %v", err)
	}
	if err := n.service.Release(t.Context(), ns, "data", engine("0123456789abcdef")); err != nil {
		t.Fatal(err)
	}
	if err := n.service.Remove(t.Context(), ns, "data"); err != nil {
		t.Error(err)
	}
	if err := n.service.Remove(t.Context(), ns, "data"); !errors.Is(err, ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
}

// Whoever gives up waiting does not count, and leaves nothing.
func TestMountThatIsGivenUp(t *testing.T) {
	n := newNode(t)
	n.create(t, "data")
	n.stuck = true
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := n.service.Hold(ctx, ns, "data", engine("a"))
	if err == nil || !strings.Contains(err.Error(), "the pool is full") {
		t.Errorf("got %v", err)
	}
	if got := n.callers(t, "data"); got != nil {
		t.Errorf("left: %v", got)
	}
}

// A mount tells its reason before Podman's five seconds are over, and has undone what it began.
func TestMountThatCannotBe(t *testing.T) {
	n := newNode(t)
	n.create(t, "data")
	n.stuck = true
	began := time.Now()
	_, err := n.service.Hold(t.Context(), ns, "data", engine("a"))
	if err == nil || !strings.Contains(err.Error(), "mount volume data: the pool is full") || time.Since(began) < reasonAfter {
		t.Errorf("got %v after %s", err, time.Since(began))
	}
	if got := n.callers(t, "data"); got != nil {
		t.Errorf("left: %v", got)
	}
}

func TestCreateTwice(t *testing.T) {
	n := newNode(t)
	size := func(text string) Request {
		r, err := ParseOptions("data", map[string]string{"size": text})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if err := n.service.Create(t.Context(), ns, size("1Gi")); err != nil {
		t.Fatal(err)
	}
	if err := n.service.Create(t.Context(), ns, size("1Gi")); err != nil {
		t.Errorf("the same again: %v", err)
	}
	err := n.service.Create(t.Context(), ns, size("2Gi"))
	if err == nil || !strings.Contains(err.Error(), "exists with other options (size=1Gi; asked for: size=2Gi)") {
		t.Errorf("got %v", err)
	}
}

// A size in other words, and the one that a resize has made since, are no other options; one that the volume never had is.
func TestCreateAgainWithItsSize(t *testing.T) {
	n := newNode(t)
	create := func(options map[string]string) error {
		r, err := ParseOptions("data", options)
		if err != nil {
			t.Fatal(err)
		}
		return n.service.Create(t.Context(), ns, r)
	}
	if err := create(map[string]string{"size": "1Gi", "fsType": "xfs"}); err != nil {
		t.Fatal(err)
	}
	patch := []byte(`{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}`)
	if _, err := n.CoreV1().PersistentVolumeClaims(ns).Patch(t.Context(), "data", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, size := range []string{"1Gi", "1024Mi", "2Gi", "2048Mi"} {
		if err := create(map[string]string{"size": size, "fsType": "xfs"}); err != nil {
			t.Errorf("%s: %v", size, err)
		}
	}
	for _, options := range []map[string]string{{"size": "3Gi", "fsType": "xfs"}, {"size": "2Gi"}, {"fsType": "xfs"}} {
		if err := create(options); err == nil || !strings.Contains(err.Error(), "(fsType=xfs size=1Gi, 2Gi by now; asked for: ") {
			t.Errorf("%v: %v", options, err)
		}
	}
}

func TestCreateRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		given map[string]string
		want  string
	}{
		"unknown class":              {map[string]string{"class": "nope"}, "there is no class nope"},
		"unknown filesystem":         {map[string]string{"fsType": "zfs"}, "makes ext4, xfs and btrfs"},
		"too small for xfs":          {map[string]string{"fsType": "xfs", "size": "100Mi"}, "xfs needs 300Mi"},
		"snapshot that is not there": {map[string]string{"snapshot": "nope"}, "there is no snapshot nope"},
		"clone of nothing":           {map[string]string{"clone": "nope"}, "there is no volume nope to clone"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			r, err := ParseOptions("data", c.given)
			if err == nil {
				err = n.service.Create(t.Context(), ns, r)
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v", err)
			}
			if l, err := n.CoreV1().PersistentVolumeClaims(ns).List(t.Context(), metav1.ListOptions{}); err != nil || len(l.Items) > 0 {
				t.Errorf("left: %v %v", l.Items, err)
			}
			if l, err := n.StorageV1().StorageClasses().List(t.Context(), metav1.ListOptions{}); err != nil || len(l.Items) != 1 {
				t.Errorf("classes: %v %v", l.Items, err)
			}
		})
	}
}

// A filesystem of one's own is a class of its own, made once; when the class that it was made from is another by now, so
// is it.
func TestFilesystemClass(t *testing.T) {
	n := newNode(t)
	make := func(name string) *storagev1.StorageClass {
		t.Helper()
		if err := n.service.Create(t.Context(), ns, Request{Name: name, FSType: "xfs"}); err != nil {
			t.Fatal(err)
		}
		c, err := n.CoreV1().PersistentVolumeClaims(ns).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil || *c.Spec.StorageClassName != "berth-block-xfs" {
			t.Fatalf("%v %v", c.Spec.StorageClassName, err)
		}
		k, err := n.StorageV1().StorageClasses().Get(t.Context(), "berth-block-xfs", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	if p := make("a").Parameters; p[fsTypeParameter] != "xfs" {
		t.Errorf("parameters %v", p)
	}
	make("b")
	if _, err := n.StorageV1().StorageClasses().Patch(t.Context(), "berth-block", types.MergePatchType, []byte(`{"parameters":{"more":"1"}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	if p := make("c").Parameters; p["more"] != "1" {
		t.Errorf("parameters %v", p)
	}
}

// After a restart of the machine no container of before can have a volume; a mount on the host is wanted still.
func TestForget(t *testing.T) {
	n := newNode(t)
	n.service.records = recordsIn(t.TempDir())
	for _, v := range []string{"before", "now", "both", "host", "lost"} {
		n.create(t, v)
	}
	hold := func(volume, boot string, c Caller) {
		t.Helper()
		n.service.boot = boot
		if _, err := n.service.Hold(t.Context(), ns, volume, c); err != nil {
			t.Fatal(err)
		}
	}
	hold("before", "former", engine("a"))
	hold("now", "now", engine("a"))
	hold("both", "former", engine("a"))
	hold("both", "now", engine("b"))
	hold("host", "former", Caller{By: Host, ID: "/srv/host"})
	hold("lost", "now", Caller{By: Host, ID: "/srv/lost"})
	if err := n.service.records.write(&record{Path: "/srv/host", Namespace: ns, Name: "host"}); err != nil {
		t.Fatal(err)
	}
	n.service.forget(t.Context())
	for volume, want := range map[string]int{"before": 0, "now": 1, "both": 1, "host": 1, "lost": 0} {
		if got := n.callers(t, volume); len(got) != want {
			t.Errorf("%s: %v", volume, got)
		}
	}
}

// An instance that starts looks at who counts; a mount that begins at that moment is nobody's leftover.
func TestAMountThatBeginsWhileTheInstanceForgets(t *testing.T) {
	n := newNode(t)
	n.service.records = recordsIn(t.TempDir())
	n.create(t, "data")
	began := false
	n.PrependReactor("list", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		if began {
			return false, nil, nil
		}
		began = true
		m := &record{Path: "/srv/data", Namespace: ns, Name: "data"}
		if err := n.service.records.write(m); err != nil {
			t.Error(err)
		}
		pod := holderPod(&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "data"}}, m.caller())
		if err := n.Tracker().Add(pod); err != nil { // a call of the client would wait for this one
			t.Error(err)
		}
		return false, nil, nil
	})
	if err := n.service.Run(t.Context()); err != nil || !began {
		t.Fatal(err)
	}
	if got := n.callers(t, "data"); len(got) != 1 {
		t.Errorf("counts: %v", got)
	}
}

// A pod that somebody else made under the name is not taken for a holder.
func TestPodOfAnother(t *testing.T) {
	n := newNode(t)
	n.create(t, "data")
	other := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "data", Annotations: map[string]string{}}}
	if _, err := n.CoreV1().Pods(ns).Create(t.Context(), other, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.service.Hold(t.Context(), ns, "data", engine("a")); err == nil || !strings.Contains(err.Error(), "has the name that the volume's holder needs") {
		t.Errorf("got %v", err)
	}
	if err := n.service.Release(t.Context(), ns, "data", engine("a")); err != nil {
		t.Error(err)
	}
	if _, err := n.CoreV1().Pods(ns).Get(t.Context(), "data", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
}

// An annotation that nobody can read still is a caller: nothing is unmounted for it, and --force takes it away.
func TestUnreadableCaller(t *testing.T) {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{
		callerPrefix + "x": "rubbish", engine("a").key(): engine("a").value(), "other": "y"}}}
	got := callersOf(p)
	if len(got) != 2 {
		t.Fatalf("%v", got)
	}
	drop := map[string]any{}
	for _, c := range got {
		drop[keyOn(p, c)] = nil
	}
	b, _ := json.Marshal(drop)
	if _, ok := drop[callerPrefix+"x"]; !ok || len(drop) != 2 {
		t.Errorf("%s", b)
	}
}
