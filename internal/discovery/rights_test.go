package discovery

import (
	"errors"
	"log/slog"
	"testing"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"
)

// agent is a discovery whose informers know nothing: those of a node agent that watches its own Node alone.
func agent(t *testing.T, objects ...runtime.Object) (*Discovery, *fake.Clientset) {
	t.Helper()
	api := fake.NewClientset(objects...)
	m, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	f := informers.NewSharedInformerFactory(api, 0)
	return &Discovery{opts: Options{Client: api, Node: "n"}, log: slog.New(slog.DiscardHandler), metrics: m, nodes: f.Core().V1().Nodes().Lister()}, api
}

// The volume of a disk that has come here from another node goes only when the API says that the node is gone, whatever the informer knows.
func TestStrayedAsksTheAPI(t *testing.T) {
	e := directory()
	for name, tc := range map[string]struct {
		phase  v1.PersistentVolumePhase
		nodes  []runtime.Object
		fails  bool
		strays bool
	}{
		"its node is gone":              {v1.VolumeAvailable, []runtime.Object{node("other")}, false, true},
		"its node is there":             {v1.VolumeAvailable, []runtime.Object{node("n"), node("other")}, false, false},
		"somebody has the volume":       {v1.VolumeBound, nil, false, false},
		"the API does not say anything": {v1.VolumeAvailable, nil, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			pv := volume(e, tc.phase)
			d, api := agent(t, append(tc.nodes, pv)...)
			if tc.fails {
				api.PrependReactor("list", "nodes", func(k8stesting.Action) (bool, runtime.Object, error) { return true, nil, errors.New("away") })
			}
			strayed := (&scan{Discovery: d}).strayed(t.Context(), pv)
			_, err := api.CoreV1().PersistentVolumes().Get(t.Context(), pv.Name, metav1.GetOptions{})
			if strayed != tc.strays || apierrors.IsNotFound(err) != tc.strays {
				t.Errorf("strayed %v, %v", strayed, err)
			}
		})
	}
}

// A released volume is wiped by an agent that may not read claims; one that may sees a claim that is still there.
func TestStillReleasedWithoutTheRightToReadClaims(t *testing.T) {
	claim := &v1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "c", UID: "c"}}
	released := func() *v1.PersistentVolume {
		pv := volume(directory(), v1.VolumeReleased)
		pv.Spec.PersistentVolumeReclaimPolicy = v1.PersistentVolumeReclaimDelete
		pv.Spec.ClaimRef = &v1.ObjectReference{Namespace: "ns", Name: "c", UID: "c"}
		return pv
	}
	forbidden := apierrors.NewForbidden(schema.GroupResource{Resource: "persistentvolumeclaims"}, "c", errors.New("no role"))
	for name, tc := range map[string]struct {
		claims []runtime.Object
		answer error
		free   bool
	}{
		"the claim is gone":             {nil, nil, true},
		"the claim is there":            {[]runtime.Object{claim}, nil, false},
		"claims are not for it to read": {[]runtime.Object{claim}, forbidden, true},
		"the API does not say anything": {nil, errors.New("away"), false},
	} {
		t.Run(name, func(t *testing.T) {
			pv := released()
			d, api := agent(t, append(tc.claims, pv)...)
			if tc.answer != nil {
				api.PrependReactor("get", "persistentvolumeclaims", func(k8stesting.Action) (bool, runtime.Object, error) { return true, nil, tc.answer })
			}
			if err := d.stillReleased(t.Context(), pv); (err == nil) != tc.free {
				t.Errorf("%v", err)
			}
		})
	}
}

// The taint goes by a patch that is refused when somebody else has written the node meanwhile, and leaves the other taints.
func TestTheTaintGoesByAPatch(t *testing.T) {
	n := node("n")
	n.ResourceVersion = "7"
	n.Spec.Taints = []v1.Taint{{Key: "a", Effect: v1.TaintEffectNoSchedule}, {Key: "wait", Effect: v1.TaintEffectNoSchedule}}
	d, api := agent(t, n)
	d.config = &Config{NotReadyTaint: "wait"}
	(&scan{Discovery: d, node: n}).takeTaintAway(t.Context())
	got, err := api.CoreV1().Nodes().Get(t.Context(), "n", metav1.GetOptions{})
	if err != nil || len(got.Spec.Taints) != 1 || got.Spec.Taints[0].Key != "a" || !d.untaint {
		t.Errorf("%+v, %v", got.Spec.Taints, err)
	}
	for _, a := range api.Actions() {
		if p, is := a.(k8stesting.PatchAction); is && string(p.GetPatch()) != `{"metadata":{"resourceVersion":"7"},"spec":{"taints":[{"effect":"NoSchedule","key":"a"}]}}` && string(p.GetPatch()) != `{"metadata":{"resourceVersion":"7"},"spec":{"taints":[{"key":"a","effect":"NoSchedule"}]}}` {
			t.Errorf("patch %s", p.GetPatch())
		}
		if a.GetVerb() == "update" {
			t.Error("the node was written whole")
		}
	}
}
