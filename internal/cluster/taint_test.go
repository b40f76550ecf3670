package cluster

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

var notReady, others = corev1.Taint{Key: Taint, Effect: corev1.TaintEffectNoSchedule}, corev1.Taint{Key: "example.com/mine", Effect: corev1.TaintEffectNoExecute}

func csiNode(drivers ...string) *storagev1.CSINode {
	n := &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
	for _, d := range drivers {
		n.Spec.Drivers = append(n.Spec.Drivers, storagev1.CSINodeDriver{Name: d, NodeID: "n1"})
	}
	return n
}

func taints(t *testing.T, api *fake.Clientset) (keys string) {
	n, err := api.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, taint := range n.Spec.Taints {
		keys += taint.Key + " "
	}
	return keys
}

func readinessOf(t *testing.T, api *fake.Clientset, wants ...string) *readiness {
	r, err := newReadiness(api, "n1", slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range wants {
		r.want(w)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return r
}

// The taint stays until CSINode shows every driver, goes then, and takes no other taint along. A driver that goes does not bring it
// back.
func TestTaintGoesWhenAllDriversAreShown(t *testing.T) {
	api := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{others, notReady}}}, csiNode("a"))
	r := readinessOf(t, api, "a", "b")
	eventually(t, "the informers", func() bool { err := r.missing(); return err != nil && strings.Contains(err.Error(), "driver b") })
	time.Sleep(50 * time.Millisecond)
	if got := taints(t, api); got != others.Key+" "+Taint+" " {
		t.Fatalf("with one of two drivers: %s", got)
	}
	if _, err := api.StorageV1().CSINodes().Update(t.Context(), csiNode("a", "b"), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the taint to go", func() bool { return taints(t, api) == others.Key+" " })
	if err := r.missing(); err != nil {
		t.Errorf("not ready: %v", err)
	}
	if _, err := api.StorageV1().CSINodes().Update(t.Context(), csiNode("a"), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "readiness to end", func() bool { return r.missing() != nil })
	time.Sleep(50 * time.Millisecond)
	if got := taints(t, api); got != others.Key+" " {
		t.Errorf("after a driver went: %s", got)
	}
}

// A driver that has not said its name holds the taint, too.
func TestTaintWaitsForADriverWithoutName(t *testing.T) {
	api := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{notReady}}}, csiNode("a"))
	r, err := newReadiness(api, "n1", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	r.expect()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	time.Sleep(100 * time.Millisecond)
	if got := taints(t, api); got != Taint+" " {
		t.Fatalf("before its name: %q", got)
	}
	r.named("a")
	eventually(t, "the taint to go", func() bool { return taints(t, api) == "" })
}

// Somebody else writes the node's taints at the same moment: the write is refused, and made again from what is there then.
func TestTaintOfANodeThatChanges(t *testing.T) {
	api := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", ResourceVersion: "5"}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{notReady}}}, csiNode("a"))
	var refused atomic.Int32
	api.PrependReactor("patch", "nodes", func(action clienttesting.Action) (bool, runtime.Object, error) {
		patch := string(action.(clienttesting.PatchAction).GetPatch())
		if !strings.Contains(patch, "resourceVersion") {
			t.Errorf("the patch names no version: %s", patch)
		}
		if refused.Add(1) == 1 {
			return true, nil, apierrors.NewConflict(corev1.Resource("nodes"), "n1", nil)
		}
		return false, nil, nil
	})
	readinessOf(t, api, "a")
	eventually(t, "the taint to go", func() bool { return taints(t, api) == "" })
	if refused.Load() < 2 {
		t.Errorf("%d writes", refused.Load())
	}
}
