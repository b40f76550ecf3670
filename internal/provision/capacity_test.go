package provision

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

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

// A change is told in a moment, and the changes after it once a second; while a pod waits for room, at once.
func TestWhenFreeSpaceIsTold(t *testing.T) {
	const ms = time.Millisecond
	type at struct {
		after time.Duration // since the one before
		do    func(*capacities)
	}
	change, await := (*capacities).changed, (*capacities).awaited
	for _, c := range []struct {
		name string
		when []at
		told []time.Duration // since the beginning
	}{
		{"one change", []at{{0, change}}, []time.Duration{150 * ms}},
		{"a burst", []at{{0, change}, {10 * ms, change}, {500 * ms, change}, {10 * ms, change}}, []time.Duration{150 * ms, 1150 * ms}},
		{"a pod waits for what is to be told", []at{{0, change}, {200 * ms, change}, {100 * ms, await}}, []time.Duration{150 * ms, 300 * ms}},
		{"a pod waits for what is not free yet", []at{{0, await}, {5000 * ms, change}}, []time.Duration{5000 * ms}},
		{"a pod waits, and waits again after what it is told", []at{{0, await}, {0, change}, {1 * ms, await}, {1 * ms, change}, {1 * ms, change}}, []time.Duration{0, 100 * ms}},
		{"two pods wait for one change", []at{{0, await}, {0, await}, {10 * ms, change}, {10 * ms, change}}, []time.Duration{10 * ms, 1010 * ms}},
		{"nothing changes while a pod waits", []at{{0, await}, {1000 * ms, await}}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				var told []time.Duration
				o := &capacities{}
				o.refresh = func() { told = append(told, time.Since(began)) }
				for _, w := range c.when {
					time.Sleep(w.after)
					synctest.Wait()
					w.do(o)
				}
				time.Sleep(2 * capacityEvery)
				synctest.Wait()
				if !slices.Equal(told, c.told) {
					t.Errorf("told after %s, not %s", told, c.told)
				}
			})
		})
	}
}
