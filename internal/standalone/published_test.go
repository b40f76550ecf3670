package standalone

import (
	"context"
	"testing"
	"time"

	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/cache"
)

// publishedWorld is a published over stores that a test fills.
type publishedWorld struct {
	*published
	classes, capacities cache.Indexer
}

func newPublishedWorld() *publishedWorld {
	index := func() cache.Indexer { return cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{}) }
	w := &publishedWorld{classes: index(), capacities: index()}
	w.published = &published{classes: storagelisters.NewStorageClassLister(w.classes), capacities: storagelisters.NewCSIStorageCapacityLister(w.capacities), changed: make(chan struct{}, 1)}
	return w
}

func (w *publishedWorld) class(name string) {
	_ = w.classes.Add(&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: blockDriver})
}

func (w *publishedWorld) capacity(class string) {
	_ = w.capacities.Add(&storagev1.CSIStorageCapacity{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "of-" + class}, StorageClassName: class})
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

func TestPublishedIsComplete(t *testing.T) {
	w := newPublishedWorld()
	if !w.complete(blockDriver) {
		t.Error("no class lacks its capacity")
	}
	w.class("a")
	if w.complete(blockDriver) {
		t.Error("class a lacks its capacity")
	}
	w.capacity("a")
	if !w.complete(blockDriver) || !w.complete("another.example.com") {
		t.Error("class a has its capacity")
	}
	if w.complete(blockDriver, "applied-a-moment-ago") {
		t.Error("a class that the informer has not seen yet was taken for none")
	}
}

// A file with a class of its own and a pod: the pod is made when the class's capacity is known, or the scheduler would refuse
// it once with "not enough free storage".
func TestWhatFollowsAClassWaitsForItsCapacity(t *testing.T) {
	w := newPublishedWorld()
	g := &classGate{published: w.published, driver: blockDriver}
	class := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": map[string]any{"name": "own"}, "provisioner": blockDriver}}
	foreign := class.DeepCopy()
	foreign.SetName("foreign")
	foreign.Object["provisioner"] = "another.example.com"
	pod := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": "app"}}}

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	g.before(ctx, pod)
	g.before(ctx, foreign)
	g.before(ctx, class)
	passed := make(chan struct{})
	go func() {
		g.before(ctx, pod)
		close(passed)
	}()
	w.class("own")
	select {
	case <-passed:
		t.Fatal("the pod was let through before the class had its capacity")
	default:
	}
	w.capacity("own")
	select {
	case <-passed:
	case <-ctx.Done():
		t.Fatal("the pod was not let through")
	}
	if !w.complete(blockDriver, "own") {
		t.Error("let through without the capacity")
	}
}
