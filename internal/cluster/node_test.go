package cluster

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"log/slog"
)

// What a container of a pod has, and what the host has.
func TestSharedAt(t *testing.T) {
	const table = `1 0 0:1 / / rw - overlay overlay rw
2 1 8:1 /var/lib/kubelet /var/lib/kubelet rw shared:7 master:1 - ext4 /dev/sda1 rw
3 1 8:1 /var/lib/berth /var/lib/berth rw master:1 - ext4 /dev/sda1 rw
4 2 0:9 / /var/lib/kubelet/pods/u/volumes/x rw - tmpfs tmpfs rw
5 1 8:1 /x /var/lib/with\040space rw shared:9 - ext4 /dev/sda1 rw
6 1 8:1 /a /var/lib/twice rw shared:1 - ext4 /dev/sda1 rw
7 6 8:1 /b /var/lib/twice rw - ext4 /dev/sda1 rw
`
	for dir, want := range map[string]bool{
		"/var/lib/kubelet": true, "/var/lib/kubelet/plugins": true, "/var/lib/kubelet2": false, "/var/lib/berth": false, "/": false,
		"/var/lib/kubelet/pods/u/volumes/x": false, "/var/lib/with space": true, "/var/lib/twice": false,
	} {
		if got := sharedAt(table, dir); got != want {
			t.Errorf("%s: %t", dir, got)
		}
	}
}

// Whatever stands in the table, the question has an answer.
func FuzzSharedAt(f *testing.F) {
	f.Add("1 0 0:1 / / rw shared:1 - overlay overlay rw\n", "/a")
	f.Add("1 0 0:1 / /a\\040b rw shared:1 -", "/a b")
	f.Add("\n \n1 2 3 4 5 6 7\n", "")
	f.Fuzz(func(t *testing.T, table, dir string) { sharedAt(table, dir) })
}

// well is a driver whose Probe answers as it is told.
type well struct {
	csi.UnimplementedIdentityServer
	answer func() (*csi.ProbeResponse, error)
}

func (w well) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return w.answer()
}

func TestProbe(t *testing.T) {
	for name, c := range map[string]struct {
		answer *csi.ProbeResponse
		err    string
	}{
		"ready":          {&csi.ProbeResponse{Ready: wrapperspb.Bool(true)}, ""},
		"says nothing":   {&csi.ProbeResponse{}, ""},
		"not ready":      {&csi.ProbeResponse{Ready: wrapperspb.Bool(false)}, "not ready"},
		"does not serve": {nil, "probe at "},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "b-")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			socket := filepath.Join(dir, "csi.sock")
			if c.answer != nil {
				l, err := net.Listen("unix", socket)
				if err != nil {
					t.Fatal(err)
				}
				s := grpc.NewServer()
				csi.RegisterIdentityServer(s, well{answer: func() (*csi.ProbeResponse, error) { return c.answer, nil }})
				go func() { _ = s.Serve(l) }()
				t.Cleanup(s.Stop)
			}
			p, err := newProber(socket)
			if err != nil {
				t.Fatal(err)
			}
			defer p.close()
			if err := p.probe(t.Context()); (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("%v", err)
			}
		})
	}
}

// The informers keep what is read, and nothing that is written back loses a field.
func TestLean(t *testing.T) {
	managed := []metav1.ManagedFieldsEntry{{Manager: "m"}}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "u", ResourceVersion: "7", ManagedFields: managed, Labels: map[string]string{"a": "b"}},
		Spec: corev1.PodSpec{NodeName: "n", Containers: []corev1.Container{{Name: "c", Image: "i"}}, Volumes: []corev1.Volume{
			{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}},
			{Name: "tmp", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, Message: "m"}}
	got, err := lean(pod)
	if err != nil {
		t.Fatal(err)
	}
	p := got.(*corev1.Pod)
	if p.Name != "p" || p.Namespace != "ns" || p.UID != "u" || p.ResourceVersion != "7" || p.Status.Phase != corev1.PodRunning || len(p.Spec.Volumes) != 1 || p.Spec.Volumes[0].PersistentVolumeClaim.ClaimName != "c" {
		t.Errorf("pod: %+v", p)
	}
	if len(p.Spec.Containers) != 0 || p.Labels != nil || p.ManagedFields != nil {
		t.Errorf("the pod keeps what nobody reads: %+v", p)
	}
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "v", ManagedFields: managed, Annotations: map[string]string{"a": "b"}},
		Spec: corev1.PersistentVolumeSpec{Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}}}
	if got, _ := lean(pv); got.(*corev1.PersistentVolume).Annotations["a"] != "b" || got.(*corev1.PersistentVolume).Spec.Capacity.Storage().Value() != 1<<30 || got.(*corev1.PersistentVolume).ManagedFields != nil {
		t.Errorf("volume: %+v", got)
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{"zone": "a"}}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{notReady}}, Status: corev1.NodeStatus{Images: make([]corev1.ContainerImage, 50),
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeMemoryPressure}, {Type: corev1.NodeReady, Status: corev1.ConditionFalse}}}}
	if got, _ := lean(node); got.(*corev1.Node).Labels["zone"] != "a" || len(got.(*corev1.Node).Spec.Taints) != 1 || got.(*corev1.Node).Status.Images != nil ||
		len(got.(*corev1.Node).Status.Conditions) != 1 || got.(*corev1.Node).Status.Conditions[0].Type != corev1.NodeReady {
		t.Errorf("node: %+v", got)
	}
}

// At the end of a process nobody says whether another follows: the FlexVolume drivers go only when the DaemonSet is known to be gone.
func TestUninstalled(t *testing.T) {
	going := metav1.Now()
	for name, c := range map[string]struct {
		set   *appsv1.DaemonSet
		knew  bool
		fails error
		want  bool
	}{
		"an update":                  {set: &appsv1.DaemonSet{}, knew: true},
		"being deleted":              {set: &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &going, Finalizers: []string{"x"}}}, knew: true, want: true},
		"deleted":                    {knew: true, want: true},
		"never was one":              {},
		"deleted, and its role, too": {knew: true, fails: apierrors.NewForbidden(appsv1.Resource("daemonsets"), "berth-node", nil), want: true},
		"never was allowed to ask":   {fails: apierrors.NewForbidden(appsv1.Resource("daemonsets"), "berth-node", nil)},
		"the API does not answer":    {knew: true, fails: apierrors.NewServiceUnavailable("gone")},
	} {
		t.Run(name, func(t *testing.T) {
			api := fake.NewClientset()
			if c.set != nil {
				c.set.Namespace, c.set.Name = "berth-system", "berth-node"
				if err := api.Tracker().Add(c.set); err != nil {
					t.Fatal(err)
				}
			}
			if c.fails != nil {
				api.PrependReactor("get", "daemonsets", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, c.fails })
			}
			n := &node{NodeOptions: NodeOptions{DaemonSet: "berth-node"}, client: api, namespace: "berth-system", knewDaemonSet: c.knew, log: slog.New(slog.NewTextHandler(t.Output(), nil))}
			if got := n.uninstalled(t.Context()); got != c.want {
				t.Errorf("uninstalled: %t", got)
			}
		})
	}
}
