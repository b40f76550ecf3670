package provision

import (
	"context"
	"fmt"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

func attachment(name, driver, pv string) *storagev1.VolumeAttachment {
	return &storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: storagev1.VolumeAttachmentSpec{Attacher: driver, NodeName: "n", Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: &pv}}}
}

func (w *world) attached(name string) bool {
	va, err := w.api.StorageV1().VolumeAttachments().Get(context.Background(), name, metav1.GetOptions{})
	return err == nil && va.Status.Attached
}

func csiVolume(name, driver string) *v1.PersistentVolume {
	return &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1.PersistentVolumeSpec{AccessModes: []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce},
			PersistentVolumeSource: v1.PersistentVolumeSource{CSI: &v1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: "h-" + name}}}}
}

// Twenty detaches hang at the driver, more than there are workers; a new attachment is attached all the same.
func TestAttachDoesNotWaitBehindDetach(t *testing.T) {
	objects := []runtime.Object{
		&storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Spec: storagev1.CSINodeSpec{Drivers: []storagev1.CSINodeDriver{{Name: "d", NodeID: "id-n"}}}},
		csiVolume("new", "d"),
	}
	for i := range 20 {
		name := fmt.Sprintf("old-%d", i)
		va := attachment(name, "d", name)
		now := metav1.Now()
		va.DeletionTimestamp, va.Finalizers, va.Status.Attached = &now, []string{"external-attacher/d"}, true
		objects = append(objects, csiVolume(name, "d"), va)
	}
	w := start(t, objects...)
	hung := make(chan struct{}, 100)
	d := &tiny{name: "d", caps: []csi.ControllerServiceCapability_RPC_Type{csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME},
		unpublish: func(ctx context.Context, _ *csi.ControllerUnpublishVolumeRequest) (*csi.ControllerUnpublishVolumeResponse, error) {
			hung <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		}}
	w.m.AddDriver(t.Context(), d.serve(t))
	for range 4 {
		<-hung
	}
	w.api.StorageV1().VolumeAttachments().Create(t.Context(), attachment("va-new", "d", "new"), metav1.CreateOptions{})
	w.eventually("the attach", func() bool { return w.attached("va-new") })
	va, _ := w.api.StorageV1().VolumeAttachments().Get(t.Context(), "va-new", metav1.GetOptions{})
	if len(va.Finalizers) != 1 || va.Finalizers[0] != "external-attacher/d" {
		t.Errorf("finalizers %v", va.Finalizers)
	}
}

// Without PUBLISH_UNPUBLISH there is nothing to ask the driver: the attachment is attached at once.
func TestAttachmentOfADriverThatDoesNotPublish(t *testing.T) {
	w := start(t, csiVolume("pv", "d"), attachment("va", "d", "pv"))
	w.m.AddDriver(t.Context(), (&tiny{name: "d", noController: true}).serve(t))
	w.eventually("the attach", func() bool { return w.attached("va") })
}
