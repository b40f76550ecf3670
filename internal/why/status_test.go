package why

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"berth.io/berth/internal/trace"
)

func surveyed(t *testing.T) *Status {
	t.Helper()
	n2 := node("n2")
	n2.Spec.Unschedulable, n2.Status.Conditions[0].Status, n2.Status.Conditions[0].Message = true, v1.ConditionFalse, "agent is gone"
	c := claim("data", "berth-block", bound)
	c.Status.Capacity = v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")}
	limited := csiNode("n1", "block.csi.berth.io")
	limited.Spec.Drivers[0].Allocatable = &storagev1.VolumeNodeResources{Count: ptr.To(int32(512))}
	capacity := func(name, class string) *storagev1.CSIStorageCapacity {
		return &storagev1.CSIStorageCapacity{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: name}, StorageClassName: class,
			NodeTopology: &metav1.LabelSelector{MatchLabels: map[string]string{"node": "n1"}}, Capacity: ptr.To(resource.MustParse("9Gi"))}
	}
	s, err := Survey(t.Context(), StatusSources{
		Client: fake.NewClientset(
			class("berth-block", storagev1.VolumeBindingWaitForFirstConsumer), class("berth-block-immediate", storagev1.VolumeBindingImmediate),
			driver(), node("n1"), n2, limited, capacity("a", "berth-block"), capacity("b", "berth-block-immediate"),
			c, volume("data"), running(pod("app", "n1", "data")), attachment("data", "n1", true),
			claim("stuck", "fast"), claim("early", "berth-block"), volume("old", func(pv *v1.PersistentVolume) { pv.Status.Phase = v1.VolumeFailed }),
			refused(pod("waiting", "", "stuck"), "no"),
			event("Node", "n1", v1.EventTypeWarning, "FailedPluginRegistration", "plugin at /var/lib/berth/plugins_registry/rubbish.example.com-reg.sock: NodeGetInfo: no node ID", time.Second, 2),
		),
		Components: []Component{{Name: "API server", Ready: true, Detail: "https://127.0.0.1:6443"}, {Name: "controllers", Detail: "starting"}},
		Pools:      []Pool{{Name: "default", Driver: "block.csi.berth.io", Path: "/var/lib/berth/pools/default.img", Size: 10 << 30, Used: 1 << 30, Available: 9 << 30, Volumes: 1}},
		Holders:    []Holder{{Volume: "pvc-stuck-uid", Driver: "block.csi.berth.io", Step: "CreateVolume", Since: at(58 * time.Second)}},
		Unwell: []Unwell{
			{PV: "pvc-data-uid", Claim: dataClaim, Pod: appPod, Name: "vol-data", Problems: []string{"DEGRADED (OnePath): one path is left"}, Since: at(50 * time.Second)},
			{PV: "pvc-data-uid", Claim: dataClaim, Pod: trace.ObjectRef{Namespace: "default", Name: "other"}, Name: "d", Problems: []string{"DEGRADED (OnePath): one path is left"}, Since: at(51 * time.Second)},
			{Pod: appPod, Name: "scratch", Problems: []string{"INACCESSIBLE"}, Since: at(52 * time.Second)},
		},
		Notes: []string{"this is a test"},
		Now:   at(time.Minute),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStatusText(t *testing.T) {
	var b bytes.Buffer
	if err := surveyed(t).WriteText(&b, TextOptions{Location: time.UTC}); err != nil {
		t.Fatal(err)
	}
	golden(t, "status", b.Bytes())
}

// TestStructs: what -o json and -o yaml print can be read back.
func TestStructs(t *testing.T) {
	s := surveyed(t)
	data, err := yaml.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var again Status
	if err := yaml.Unmarshal(data, &again); err != nil || again.Volumes["Bound"] != 1 || len(again.Drivers) != 2 {
		t.Errorf("%v\n%s", err, data)
	}
	story := stories()[0]
	j := story.explain(t)
	if data, err = json.Marshal(j); err != nil {
		t.Fatal(err)
	}
	var journey Journey
	if err := json.Unmarshal(data, &journey); err != nil || len(journey.Volumes) != 1 || journey.Volumes[0].Total != 49 {
		t.Errorf("%v\n%s", err, data)
	}
}

// TestColor: only where it is asked for.
func TestColor(t *testing.T) {
	var b bytes.Buffer
	if err := surveyed(t).WriteText(&b, TextOptions{Location: time.UTC, Color: true}); err != nil || !bytes.Contains(b.Bytes(), []byte(red)) {
		t.Errorf("%v %q", err, b.String())
	}
}
