package provision

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// A claim that was handed to the driver gets a volume; the intent is on the claim before the driver is asked, and goes
// once the claim is Bound.
func TestClaimIsProvisionedWithIntentFirst(t *testing.T) {
	w := start(t, class("d"), claim("a", "d"))
	d := &tiny{name: "d", caps: createDelete}
	var intent atomic.Bool
	d.create = func(_ context.Context, q *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
		intent.Store(slices.Contains(w.claim("a").Finalizers, Finalizer))
		return volume(q), nil
	}
	w.m.AddDriver(t.Context(), d.serve(t))
	w.eventually("the PersistentVolume", func() bool { return w.volume("pvc-uid-a") != nil })
	if !intent.Load() {
		t.Error("CreateVolume was asked before the intent was written")
	}
	pv := w.volume("pvc-uid-a")
	if pv.Spec.CSI.VolumeHandle != "id-pvc-uid-a" || pv.Spec.ClaimRef.Name != "a" || !slices.Contains(pv.Finalizers, "external-provisioner.volume.kubernetes.io/finalizer") {
		t.Errorf("volume is %+v", pv)
	}

	c := w.claim("a")
	c.Spec.VolumeName, c.Status.Phase = pv.Name, v1.ClaimBound
	w.api.CoreV1().PersistentVolumeClaims("ns").Update(t.Context(), c, metav1.UpdateOptions{})
	w.eventually("the intent's removal", func() bool { return !slices.Contains(w.claim("a").Finalizers, Finalizer) })
}

// The process died between CreateVolume and the PersistentVolume, and the claim was deleted meanwhile: the volume is
// asked for again, so that its PersistentVolume can be reclaimed, and only then the claim may go.
func TestDeletedClaimOfACrashedCreationIsFinished(t *testing.T) {
	w := start(t, class("d"), claim("a", "d", deleted, intended))
	d := &tiny{name: "d", caps: createDelete}
	w.m.AddDriver(t.Context(), d.serve(t))
	w.eventually("the PersistentVolume", func() bool { return w.volume("pvc-uid-a") != nil })
	w.eventually("the intent's removal", func() bool { return !slices.Contains(w.claim("a").Finalizers, Finalizer) })
}

// The driver refuses for good: there is no volume, and the deleted claim goes without one.
func TestDeletedClaimGoesAfterAFinalError(t *testing.T) {
	w := start(t, class("d"), claim("a", "d", deleted, intended))
	d := &tiny{name: "d", caps: createDelete, create: func(context.Context, *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
		return nil, status.Error(codes.ResourceExhausted, "the pool is full")
	}}
	w.m.AddDriver(t.Context(), d.serve(t))
	w.eventually("the intent's removal", func() bool { return !slices.Contains(w.claim("a").Finalizers, Finalizer) })
	if w.volume("pvc-uid-a") != nil {
		t.Error("a PersistentVolume of nothing")
	}
}

// A claim deleted before the driver was ever asked is not provisioned for.
func TestDeletedClaimWithoutIntentIsLeftAlone(t *testing.T) {
	w := start(t, class("d"), claim("a", "d", deleted), claim("b", "d"))
	d := &tiny{name: "d", caps: createDelete}
	w.m.AddDriver(t.Context(), d.serve(t))
	w.eventually("the other claim's volume", func() bool { return w.volume("pvc-uid-b") != nil })
	if d.mu.Lock(); slices.Contains(d.creates, "pvc-uid-a") {
		t.Error("a deleted claim was provisioned for")
	}
	d.mu.Unlock()
}

// A volume of which neither claim nor PersistentVolume tells is not ours to delete: somebody may have kept it.
func TestUnknownVolumesAreLeftAlone(t *testing.T) {
	w := start(t, class("d"), claim("a", "d"))
	d := &tiny{name: "d", caps: append([]csi.ControllerServiceCapability_RPC_Type{csi.ControllerServiceCapability_RPC_LIST_VOLUMES}, createDelete...),
		holds: []string{"pvc-uid-a", "pvc-gone", "by-hand"}}
	w.m.AddDriver(t.Context(), d.serve(t))
	w.eventually("the claim's volume", func() bool { return w.volume("pvc-uid-a") != nil })
	time.Sleep(50 * time.Millisecond)
	if d.mu.Lock(); len(d.deletes) != 0 {
		t.Errorf("deleted %v", d.deletes)
	}
	d.mu.Unlock()
}

// A driver that hangs and one that answers rubbish hold up their own claims only; rubbish crashes nothing, and is
// asked again.
func TestBadDriversHoldUpOnlyTheirOwn(t *testing.T) {
	w := start(t, class("good"), class("hangs"), class("rubbish"), claim("g", "good"), claim("h", "hangs"), claim("r", "rubbish"))
	hangs := &tiny{name: "hangs", caps: createDelete, create: func(ctx context.Context, _ *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	var asked atomic.Int32
	rubbish := &tiny{name: "rubbish", caps: createDelete, create: func(_ context.Context, q *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
		if asked.Add(1) < 3 {
			return &csi.CreateVolumeResponse{}, nil
		}
		return volume(q), nil
	}}
	good := &tiny{name: "good", caps: createDelete}
	for _, d := range []*tiny{hangs, rubbish, good} {
		w.m.AddDriver(t.Context(), d.serve(t))
	}
	w.eventually("the good driver's volume", func() bool { return w.volume("pvc-uid-g") != nil })
	w.eventually("the rubbish driver's third answer", func() bool { return w.volume("pvc-uid-r") != nil })
	w.eventually("the hanging RPC to be seen", func() bool {
		for _, h := range w.m.Holders() {
			if h.Driver == "hangs" && h.Step == "CreateVolume" && h.Volume == "pvc-uid-h" {
				return true
			}
		}
		return false
	})
}

// A released volume is deleted when its last VolumeAttachment has gone, on that event and without an error before.
func TestReleasedVolumeWaitsForItsAttachment(t *testing.T) {
	pv := &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv", Annotations: map[string]string{annProvisionedBy: "d"}},
		Spec: v1.PersistentVolumeSpec{PersistentVolumeReclaimPolicy: v1.PersistentVolumeReclaimDelete,
			PersistentVolumeSource: v1.PersistentVolumeSource{CSI: &v1.CSIPersistentVolumeSource{Driver: "d", VolumeHandle: "h"}}},
		Status: v1.PersistentVolumeStatus{Phase: v1.VolumeReleased}}
	w := start(t, class("d"), pv, attachment("va", "d", "pv"))
	d := &tiny{name: "d", caps: createDelete}
	w.m.AddDriver(t.Context(), d.serve(t))
	w.eventually("the driver to be served", func() bool { return w.m.serves("d") })
	time.Sleep(50 * time.Millisecond)
	if _, n := d.calls(); n != 0 {
		t.Fatal("deleted while attached")
	}
	w.api.StorageV1().VolumeAttachments().Delete(t.Context(), "va", metav1.DeleteOptions{})
	w.eventually("the deletion", func() bool { _, n := d.calls(); return n == 1 })
	w.eventually("the PersistentVolume to go", func() bool { return w.volume("pv") == nil })
}

// The finalizers of a volume that the driver has deleted go in one write, before the object: the deletion is the last
// write, and none of the three holders has to follow it with its own. A finalizer that is not theirs stays.
func TestDeletedVolumeLosesItsFinalizersInOneWrite(t *testing.T) {
	pv := &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv", UID: "uid-pv", Annotations: map[string]string{annProvisionedBy: "d"},
		Finalizers: []string{pvProtection, "external-attacher/d", "example.com/other", libFinalizer}},
		Spec: v1.PersistentVolumeSpec{PersistentVolumeReclaimPolicy: v1.PersistentVolumeReclaimDelete,
			PersistentVolumeSource: v1.PersistentVolumeSource{CSI: &v1.CSIPersistentVolumeSource{Driver: "d", VolumeHandle: "h"}}},
		Status: v1.PersistentVolumeStatus{Phase: v1.VolumeReleased}}
	d := &tiny{name: "d", caps: createDelete}
	var left atomic.Value
	api := fake.NewClientset(class("d"), pv)
	api.PrependReactor("delete", "persistentvolumes", func(clienttesting.Action) (bool, runtime.Object, error) {
		now, err := api.Tracker().Get(v1.SchemeGroupVersion.WithResource("persistentvolumes"), "", "pv")
		if err == nil {
			left.Store(now.(*v1.PersistentVolume).Finalizers)
		}
		return false, nil, nil
	})
	w := startOn(t, api)
	w.m.AddDriver(t.Context(), d.serve(t))
	w.eventually("the PersistentVolume to go", func() bool { return w.volume("pv") == nil })
	if got, _ := left.Load().([]string); !slices.Equal(got, []string{"example.com/other"}) {
		t.Errorf("finalizers at the deletion: %q", got)
	}
	if _, n := d.calls(); n != 1 {
		t.Errorf("DeleteVolume was asked %d times", n)
	}
}

// The user changes the policy to Retain, and the cache does not show it yet when the volume's turn to be deleted has come.
func TestVolumeThatIsRetainedAtTheLastMomentIsKept(t *testing.T) {
	pv := &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv", Annotations: map[string]string{annProvisionedBy: "d"}},
		Spec: v1.PersistentVolumeSpec{PersistentVolumeReclaimPolicy: v1.PersistentVolumeReclaimDelete,
			PersistentVolumeSource: v1.PersistentVolumeSource{CSI: &v1.CSIPersistentVolumeSource{Driver: "d", VolumeHandle: "h"}}},
		Status: v1.PersistentVolumeStatus{Phase: v1.VolumeReleased}}
	var asked atomic.Int32
	api := fake.NewClientset(class("d"), pv)
	api.PrependReactor("get", "persistentvolumes", func(clienttesting.Action) (bool, runtime.Object, error) {
		asked.Add(1)
		now := pv.DeepCopy()
		now.Spec.PersistentVolumeReclaimPolicy = v1.PersistentVolumeReclaimRetain
		return true, now, nil
	})
	w := startOn(t, api)
	d := &tiny{name: "d", caps: createDelete}
	w.m.AddDriver(t.Context(), d.serve(t))
	w.eventually("the last look", func() bool { return asked.Load() > 0 })
	time.Sleep(50 * time.Millisecond)
	if _, n := d.calls(); n != 0 {
		t.Error("deleted")
	}
}

// A driver without a controller service, one added twice, and one that goes.
func TestDriversComeAndGo(t *testing.T) {
	w := start(t, class("d"))
	node := &tiny{name: "node-only", noController: true}
	d := &tiny{name: "d", caps: createDelete}
	reg := d.serve(t)
	w.m.AddDriver(t.Context(), node.serve(t))
	w.m.AddDriver(t.Context(), reg)
	w.m.AddDriver(t.Context(), reg)
	ready := func() (n int) {
		for _, s := range w.m.Status() {
			if s.Ready {
				n++
			}
		}
		return n
	}
	w.eventually("both ready", func() bool { return ready() == 2 })
	if s := w.m.Status(); s[1].Controller || !slices.Equal(s[1].Roles, []string{"attach"}) || !slices.Contains(s[0].Roles, "provision") {
		t.Errorf("status is %+v", s)
	}
	w.m.RemoveDriver("d")
	if n := len(w.m.Status()); n != 1 {
		t.Errorf("%d drivers left", n)
	}
	w.api.CoreV1().PersistentVolumeClaims("ns").Create(t.Context(), claim("late", "d"), metav1.CreateOptions{})
	time.Sleep(50 * time.Millisecond)
	if n, _ := d.calls(); n != 0 {
		t.Error("a removed driver was asked")
	}
	w.m.AddDriver(t.Context(), reg)
	w.eventually("the volume after its return", func() bool { return w.volume("pvc-uid-late") != nil })
}

// An impostor on the socket is not served.
func TestDriverOfAnotherNameIsRefused(t *testing.T) {
	w := start(t)
	reg := (&tiny{name: "real"}).serve(t)
	reg.Name = "claimed"
	w.m.AddDriver(t.Context(), reg)
	w.eventually("the refusal", func() bool { s := w.m.Status(); return len(s) == 1 && s[0].Err != "" && !s[0].Ready })
}
