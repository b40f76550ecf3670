package provision

import (
	"context"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The capacity object appears with the driver, and follows a pushed change without any poll.
func TestCapacityIsPushed(t *testing.T) {
	node := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{"zone": "a"}}}
	csiNode := &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Spec: storagev1.CSINodeSpec{Drivers: []storagev1.CSINodeDriver{{Name: "d", NodeID: "n", TopologyKeys: []string{"zone"}}}}}
	w := start(t, class("d"), node, csiNode)
	d := &tiny{name: "d", free: 100, caps: append([]csi.ControllerServiceCapability_RPC_Type{csi.ControllerServiceCapability_RPC_GET_CAPACITY}, createDelete...)}
	w.m.AddDriver(t.Context(), d.serve(t))
	capacity := func() int64 {
		l, _ := w.api.StorageV1().CSIStorageCapacities("berth-system").List(context.Background(), metav1.ListOptions{})
		if len(l.Items) != 1 {
			return -1
		}
		return l.Items[0].Capacity.Value()
	}
	w.eventually("the object", func() bool { return capacity() == 100 })
	for _, free := range []int64{70, 40, 10} { // a burst: the last one wins
		d.mu.Lock()
		d.free = free
		d.mu.Unlock()
		w.m.CapacityChanged("d")
	}
	w.eventually("the last change", func() bool { return capacity() == 10 })
}
